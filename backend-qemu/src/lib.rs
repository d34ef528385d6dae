#![doc = include_str!("../README.md")]

mod acpi;
mod board;
mod config;
mod config_space;
mod defects;
mod enumerate;
mod function;
mod fw_cfg;
mod machine;
mod messages;
mod mmio;
mod monitor;
mod platform;
mod process;
mod program;
mod qtest;
mod ram;
mod threads;

pub use acpi::{AcpiError, AcpiTables};
pub use config::Config;
pub use defects::Defect;
pub use fw_cfg::FwCfgError;
pub use machine::{QemuError, QemuMachine};
pub use platform::QemuPlatform;
pub use program::{Emulator, Program, ProgramError, Version};
pub use qemu_devices::{EDU_BUFFER, Edu, EduBench, EduError, Testdev, TestdevError};
pub use qtest::QtestError;
