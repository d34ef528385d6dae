//! One walker a format, written from its specification without a look at the engine: what hardware finds by the raw words.

#![allow(dead_code, reason = "not every test walks every format")]

pub(crate) mod amdv1;
pub(crate) mod riscv;
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
}

/// A walk: memory, the top as the table says it, the configuration that hardware was told too, and an I/O address. `None` where
/// hardware faults for want of an entry; a panic at an entry that no driver may write.
pub(crate) type Walk = fn(&Arena, Root, &IoPgtableCfg, u64) -> Option<Found>;
