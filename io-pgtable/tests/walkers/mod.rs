//! One walker a format, written from its specification without a look at the engine: what hardware finds by the raw words.

#![allow(dead_code, reason = "not every test walks every format")]

pub(crate) mod amdv1;
pub(crate) mod arm_lpae;
pub(crate) mod arm_v7s;
pub(crate) mod dart;
pub(crate) mod mali_lpae;
pub(crate) mod mock2k;
pub(crate) mod riscv;
pub(crate) mod vtdss;
pub(crate) mod x86_64;

use io_pgtable::{IoPgtableCfg, Root};

use crate::common::Arena;

/// What hardware finds for one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// Physical address of the byte.
    pub(crate) phys: u64,
    /// Bytes of the page that holds it: as much as one entry of a TLB may stand for.
    pub(crate) size: u64,
    /// Whether a request without privilege may read.
    pub(crate) read: bool,
    /// Whether it may write.
    pub(crate) write: bool,
    /// Whether it may fetch instructions.
    pub(crate) execute: bool,
}

/// Why hardware finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// No address of the table, or an entry that is clear.
    Absent,
    /// An entry that no driver may write.
    Refused(&'static str),
}

impl Fault {
    /// That of an entry that hardware takes for empty.
    pub(crate) fn of_empty(entry: u64) -> Self {
        if entry == 0 { Self::Absent } else { Self::Refused("not present, and not clear") }
    }
}

/// A walk: memory, the top as the table says it, the configuration that hardware was told too, and an I/O address.
pub(crate) type Walk = fn(&Arena, Root, &IoPgtableCfg, u64) -> Result<Found, Fault>;

/// What a walk found in a table that nobody has tampered with.
#[track_caller]
pub(crate) fn sound(found: Result<Found, Fault>) -> Option<Found> {
    match found {
        Ok(found) => Some(found),
        Err(Fault::Absent) => None,
        Err(Fault::Refused(why)) => panic!("hardware refuses an entry: {why}"),
    }
}
