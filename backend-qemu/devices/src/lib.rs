#![doc = include_str!("../README.md")]
#![no_std]

extern crate alloc;

mod edu;
mod testdev;

pub use edu::{EDU_BUFFER, Edu, EduBench, EduError};
pub use testdev::{Testdev, TestdevError};
