//! The formats, a file each.

mod amdv1;
mod riscv;
mod x86_64;

pub use amdv1::AmdV1;
pub use riscv::RiscV;
pub use x86_64::X86_64;
