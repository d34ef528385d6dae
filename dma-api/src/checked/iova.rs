//! Checking the two-step interface: each link is a mapping of its own.

use alloc::boxed::Box;
use core::panic::Location;

use platform::PhysAddr;

use super::ledger::{Memory, Record};
use super::report::{Mapping, MappingKind};
use super::watch::Watched;
use crate::{Attrs, DeviceParms, Direction, DmaError, IovaOps, IovaPart, IovaRange, Quarantined};

#[derive(Debug)]
pub(super) struct CheckedIova<'a> {
    pub(super) ops: Box<dyn IovaOps + 'a>,
    pub(super) watched: &'a Watched,
}

// SAFETY: what the ops within return is returned, and they are asked to unlink only what they linked, once, as they did.
unsafe impl IovaOps for CheckedIova<'_> {
    fn try_alloc(&self, dev: &DeviceParms, phys: PhysAddr, size: usize) -> Result<IovaRange, DmaError> {
        self.ops.try_alloc(dev, phys, size)
    }

    unsafe fn link(
        &self,
        dev: &DeviceParms,
        part: IovaPart,
        phys: PhysAddr,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), DmaError> {
        let made_at = Location::caller();
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.link(dev, part, phys, dir, attrs) }?;
        let mapping =
            Mapping { kind: MappingKind::Linked, address: part.address(), len: part.len, dir, made_at };
        self.watched.made(dev, Record { mapping, attrs, memory: Memory::Phys(phys) });
        Ok(())
    }

    fn sync(&self, dev: &DeviceParms, part: IovaPart) -> Result<(), DmaError> {
        self.ops.sync(dev, part)
    }

    unsafe fn unlink(
        &self,
        dev: &DeviceParms,
        part: IovaPart,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let kept = Quarantined { address: part.range.address, len: part.range.size };
        let dir = self.watched.unlinked(part.address(), part.len, part.len, dir).ok_or(kept)?;
        // SAFETY: the part is whole links in this direction, and the ledger has them no more.
        unsafe { self.ops.unlink(dev, part, dir, attrs) }
    }

    unsafe fn destroy(
        &self,
        dev: &DeviceParms,
        range: IovaRange,
        linked: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let kept = Quarantined { address: range.address, len: range.size };
        let dir = self.watched.unlinked(range.address, linked, range.size, dir).ok_or(kept)?;
        // SAFETY: all that is linked are the first `linked` bytes, in this direction, and the ledger has them no more.
        unsafe { self.ops.destroy(dev, range, linked, dir, attrs) }
    }
}
