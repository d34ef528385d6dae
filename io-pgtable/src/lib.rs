#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod amdv1;
mod engine;
mod format;
mod table;

pub use amdv1::AmdV1;
pub use engine::PageTable;
pub use format::{Decoded, Format};
pub use table::{IoPageTable, Root, Translation};
