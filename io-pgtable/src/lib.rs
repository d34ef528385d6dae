#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod cfg;
mod engine;
mod entries;
mod format;
mod formats;
mod registers;
mod table;

pub use cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
pub use engine::{ChangeTop, PageTable, Parts};
pub use format::{Decoded, Format};
pub use formats::{
    AmdV1, Arm32LpaeS1, Arm32LpaeS2, ArmLpa2S1, ArmLpaeS1, ArmLpaeS2, ArmV7s, Dart, Dart1, Dart2,
    IoPgtableFmt, MaliLpae, RiscV, RiscV32, VtdSs, X86_64, alloc_io_pgtable_ops,
};
pub use registers::{ArmTcr, Registers};
pub use table::{Broken, IoPageTable, NoDirtyMarks, Root, Split, SplitError, Translation, WalkEntry};
