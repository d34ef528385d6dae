#![doc = include_str!("../README.md")]
#![no_std]

extern crate alloc;

mod edu;

pub use edu::{EDU_BUFFER, Edu, EduBench, EduError};
