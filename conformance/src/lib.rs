#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod bench;
mod checks;
pub mod modes;
mod report;

pub use bench::{Bench, Refused, Waiver};
pub use checks::{CHECKS, Check, Failure};
pub use report::{Outcome, Report, run};
