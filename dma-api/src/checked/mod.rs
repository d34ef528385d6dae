//! Checking what a driver does with the DMA API.

mod debug;
mod iova;
mod ledger;
mod pool_watch;
mod ranges;
mod report;
mod watch;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::panic::Location;
use core::ptr::NonNull;

use platform::{DmaAddr, PhysAddr};

use crate::forward::forward_members;
use crate::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, IovaOps, PageMemory, Quarantined,
    SgEntry,
};
use iova::CheckedIova;
use ledger::{Ended, Memory, Record};
use watch::{SyncVerdict, Verdict, Watched};

pub use debug::DmaDebug;
pub(crate) use pool_watch::PoolWatch;
pub use report::{Mapping, MappingKind, Mistake, Report};

/// A decorator over any [`DmaMapOps`] of one device that remembers every mapping, and reports to a [`DmaDebug`] what breaks
/// the rules (Linux: `CONFIG_DMA_API_DEBUG`). Dropped, it reports what is still mapped. [`Device::checked`] puts it in.
///
/// What would be unsound is not handed on. An unmap of what is not mapped, or is mapped as another kind, answers
/// [`Quarantined`], so that the memory is not used again; such a sync does nothing. An unmap that differs from its map only in
/// its arguments ends the mapping with the arguments that it was made with.
///
/// It takes a lock and allocates in each call: for tests, and for finding a mistake. Memory for it is bounded
/// ([`DmaDebug::MAX_MAPPINGS`], [`DmaDebug::CAPACITY`]).
///
/// # The checks
///
/// Linux's, and what becomes of each here. A dash says that there is nothing to check.
///
/// | | Linux's check | here |
/// |---|---|---|
/// | 1 | the end of a mapping at the address that means a failed map | – no address does, a failed map is an `Err`; one that is ended all the same is [`Mistake::NotMapped`] |
/// | 2 | of what was never mapped | [`Mistake::NotMapped`]; [`Mistake::EndedTwice`] when it was, not long before |
/// | 3 | with another size | [`Mistake::WrongSize`] |
/// | 4 | by the wrong function | [`Mistake::WrongKind`] |
/// | 5 | of coherent memory with another CPU address | [`Mistake::WrongCpuAddress`] |
/// | 6 | of a list with another number of entries | [`Mistake::WrongElements`] |
/// | 7 | with another direction | [`Mistake::WrongDirection`] |
/// | 8 | `dma_mapping_error` was never called | – the address is in a `Result` |
/// | 9 | a map of the stack | – the safe types own their memory, and what is borrowed is copied ([`Device::map_scoped`]) |
/// | 10 | of the kernel's code or constants | – the same |
/// | 11 | of an invalid address | – the platform's `translate` knows it: [`DmaError::NotRam`], or a bounce |
/// | 12 | of a `vmalloc` address | – the same |
/// | 13 | a sync of what is not mapped | [`Mistake::SyncNotMapped`], and [`Mistake::SyncCoherent`] |
/// | 14 | beyond its mapping | [`Mistake::SyncOutside`] |
/// | 15 | in another direction | [`Mistake::SyncDirection`] |
/// | 16 | for the CPU, of what the device only reads | [`Mistake::SyncReadOnlyForCpu`] |
/// | 17 | for the device, of what it only writes | [`Mistake::SyncWriteOnlyForDevice`] |
/// | 18 | of a list with another number of entries | [`Mistake::SyncElements`] |
/// | 19 | a segment is longer than the device takes | [`Mistake::SegmentTooLong`] |
/// | 20 | a segment crosses the device's boundary | [`Mistake::SegmentCrossesBoundary`] |
/// | 21 | a cache line is mapped twice | [`Mistake::MemoryInUse`]: bytes, and whole lines where the device does not see the caches |
/// | 22 | a cache line is mapped more than seven times | – every mapping is remembered, none is merely counted |
/// | 23 | the driver goes with mappings left | [`Mistake::Leaked`] |
/// | 24 | no memory is left for the checks | [`Mistake::TooMany`] |
/// | 25 | a hint that the pool of entries has doubled | – there is no pool; [`DmaDebug::dump`] says what lives, and [`Counted`] how much |
/// | 26 | a mask was never set; a flag or a page of the wrong kind | – masks have a value from the beginning ([`DeviceParms::new`]); there are no such flags or pages |
/// | | | beyond Linux's: [`Mistake::Empty`], [`Mistake::BeyondMask`], [`Mistake::AddressInUse`], [`Mistake::ListChanged`], [`Mistake::WrongAttrs`] |
///
/// Memory that two *devices* have mapped at once is not compared. Memory that was freed while it was mapped cannot be told here: a
/// simulated machine can.
///
/// [`Counted`]: crate::Counted
/// [`Device::map_scoped`]: crate::Device::map_scoped
/// [`Device::checked`]: crate::Device::checked
#[derive(Debug)]
#[doc(alias = "dma-debug")]
pub struct Checked<T> {
    ops: T,
    watched: Arc<Watched>,
}

impl<T: DmaMapOps> Checked<T> {
    /// Checks what goes through `ops` for the device called `name`. What was mapped before is not known.
    pub fn new(ops: T, name: impl Into<Box<str>>, debug: &Arc<DmaDebug>) -> Self {
        Self { ops, watched: Watched::new(name.into(), Arc::clone(debug)) }
    }

    /// A map or an allocation of nothing is refused.
    fn not_empty(
        &self,
        len: usize,
        kind: MappingKind,
        made_at: &'static Location<'static>,
    ) -> Result<(), DmaError> {
        if len == 0 {
            self.watched.report(Mistake::Empty { kind, made_at });
            return Err(DmaError::InvalidLength(len));
        }
        Ok(())
    }
}

impl<T> Checked<T> {
    /// The direction of a list that is synced; `None` when it is not all of it, or not mapped as a sync needs it.
    fn synced_list(&self, list: &[SgEntry], dir: Direction, for_cpu: bool) -> Option<Direction> {
        if !self.watched.synced_whole(list) {
            return None;
        }
        let mut verdict = Some(dir);
        // Each segment's mistakes are told.
        for segment in list.iter().take_while(|entry| entry.dma_len != 0) {
            verdict = match self.watched.synced(segment.dma_address, segment.dma_len, dir, for_cpu) {
                SyncVerdict::In(dir) => verdict.map(|_| dir),
                SyncVerdict::Refused => None,
            };
        }
        verdict
    }
}

impl<T> Drop for Checked<T> {
    fn drop(&mut self) {
        self.watched.gone();
    }
}

// SAFETY: what the ops within return is returned, and they are asked to end only what they made, once, as they made it.
unsafe impl<T: DmaMapOps> DmaMapOps for Checked<T> {
    forward_members!(self => self.ops;
        dma_supported, required_mask, max_mapping_size, opt_mapping_size, merge_boundary
    );

    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        let (kind, made_at) = (MappingKind::Coherent, Location::caller());
        self.not_empty(size, kind, made_at)?;
        let memory = self.ops.alloc(dev, size, attrs)?;
        let dir = Direction::Bidirectional;
        let mapping = Mapping { kind, address: memory.dma, len: size, dir, made_at };
        self.watched.made(dev, Record { mapping, attrs, memory: Memory::Coherent(memory) });
        Ok(memory)
    }

    unsafe fn free(
        &self,
        dev: &DeviceParms,
        memory: CoherentMemory,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let (memory, attrs) = match self.watched.ends(Ended::Coherent { memory, attrs }) {
            Verdict::Ends(Record { memory: Memory::Coherent(made), attrs, .. }) => (made, attrs),
            Verdict::Unknown => (memory, attrs),
            Verdict::Ends(_) | Verdict::Refused => {
                return Err(Quarantined { address: memory.dma, len: memory.size });
            }
        };
        // SAFETY: it was allocated so, and the ledger has it no more; or else this is the caller's promise, handed on.
        unsafe { self.ops.free(dev, memory, attrs) }
    }

    fn iova_ops(&self) -> Option<Box<dyn IovaOps + '_>> {
        let ops = self.ops.iova_ops()?;
        Some(Box::new(CheckedIova { ops, watched: &self.watched }))
    }

    fn alloc_pages(
        &self,
        dev: &DeviceParms,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        let (kind, made_at) = (MappingKind::Pages, Location::caller());
        self.not_empty(size, kind, made_at)?;
        let memory = self.ops.alloc_pages(dev, size, dir, attrs)?;
        let mapping = Mapping { kind, address: memory.dma, len: size, dir, made_at };
        self.watched.made(dev, Record { mapping, attrs, memory: Memory::Pages(memory.clone()) });
        Ok(memory)
    }

    unsafe fn free_pages(
        &self,
        dev: &DeviceParms,
        memory: PageMemory,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let (memory, dir, attrs) = match self.watched.ends(Ended::Pages { memory: &memory, dir, attrs }) {
            Verdict::Ends(Record { mapping, attrs, memory: Memory::Pages(made) }) => {
                (made, mapping.dir, attrs)
            }
            Verdict::Unknown => (memory, dir, attrs),
            Verdict::Ends(_) | Verdict::Refused => {
                return Err(Quarantined { address: memory.dma, len: memory.size });
            }
        };
        // SAFETY: they were allocated so, and the ledger has them no more; or else this is the caller's promise, handed on.
        unsafe { self.ops.free_pages(dev, memory, dir, attrs) }
    }

    unsafe fn map_phys(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        let (kind, made_at) = (MappingKind::Single, Location::caller());
        self.not_empty(len, kind, made_at)?;
        // SAFETY: the caller's promise, handed on.
        let address = unsafe { self.ops.map_phys(dev, phys, len, dir, attrs) }?;
        let mapping = Mapping { kind, address, len, dir, made_at };
        self.watched.made(dev, Record { mapping, attrs, memory: Memory::Phys(phys) });
        Ok(address)
    }

    unsafe fn unmap_phys(
        &self,
        dev: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let (len, dir) = match self.watched.ends(Ended::Single { address, len, dir }) {
            Verdict::Ends(Record { mapping, .. }) => (mapping.len, mapping.dir),
            Verdict::Unknown => (len, dir),
            Verdict::Refused => return Err(Quarantined { address, len }),
        };
        // SAFETY: it was mapped so, and the ledger has it no more; or else this is the caller's promise, handed on.
        unsafe { self.ops.unmap_phys(dev, address, len, dir, attrs) }
    }

    unsafe fn map_foreign(
        &self,
        dev: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        let (kind, made_at) = (MappingKind::Foreign, Location::caller());
        self.not_empty(len, kind, made_at)?;
        // SAFETY: the caller's promise, handed on.
        let address = unsafe { self.ops.map_foreign(dev, cpu, len, dir, attrs) }?;
        let mapping = Mapping { kind, address, len, dir, made_at };
        let memory = Memory::Foreign(cpu.addr().get() as u64);
        self.watched.made(dev, Record { mapping, attrs, memory });
        Ok(address)
    }

    unsafe fn map_sg(
        &self,
        dev: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        let (kind, made_at) = (MappingKind::Scatter, Location::caller());
        let shortest = list.iter().map(|entry| entry.len).min().unwrap_or(0);
        self.not_empty(shortest, kind, made_at)?;
        // SAFETY: the caller's promise, handed on.
        let segments = unsafe { self.ops.map_sg(dev, list, dir, attrs) }?;
        let len = list.iter().take(segments).map(|entry| entry.dma_len).sum();
        let mapping = Mapping { kind, address: list[0].dma_address, len, dir, made_at };
        let memory = Memory::List(Box::from(&*list), segments);
        self.watched.made(dev, Record { mapping, attrs, memory });
        Ok(segments)
    }

    unsafe fn unmap_sg(
        &self,
        dev: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        match self.watched.ends(Ended::List { list, dir }) {
            Verdict::Ends(Record { mapping, memory: Memory::List(made, _), .. }) => {
                // SAFETY: it was mapped so, and the ledger has it no more.
                unsafe { self.ops.unmap_sg(dev, &made, mapping.dir, attrs) }
            }
            // SAFETY: the caller's promise, handed on.
            Verdict::Unknown => unsafe { self.ops.unmap_sg(dev, list, dir, attrs) },
            Verdict::Ends(_) | Verdict::Refused => {
                let first =
                    list.first().map_or((DmaAddr::new(0), 0), |first| (first.dma_address, first.dma_len));
                Err(Quarantined { address: first.0, len: first.1 })
            }
        }
    }

    unsafe fn sync_for_cpu(&self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        if let SyncVerdict::In(dir) = self.watched.synced(address, len, dir, true) {
            // SAFETY: the range is in a mapping that was made in this direction.
            unsafe { self.ops.sync_for_cpu(dev, address, len, dir) };
        }
    }

    unsafe fn sync_for_device(&self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        if let SyncVerdict::In(dir) = self.watched.synced(address, len, dir, false) {
            // SAFETY: the range is in a mapping that was made in this direction.
            unsafe { self.ops.sync_for_device(dev, address, len, dir) };
        }
    }

    unsafe fn sync_sg_for_cpu(&self, dev: &DeviceParms, list: &[SgEntry], dir: Direction) {
        if let Some(dir) = self.synced_list(list, dir, true) {
            // SAFETY: the segments are in a mapping that was made in this direction.
            unsafe { self.ops.sync_sg_for_cpu(dev, list, dir) };
        }
    }

    unsafe fn sync_sg_for_device(&self, dev: &DeviceParms, list: &[SgEntry], dir: Direction) {
        if let Some(dir) = self.synced_list(list, dir, false) {
            // SAFETY: the segments are in a mapping that was made in this direction.
            unsafe { self.ops.sync_sg_for_device(dev, list, dir) };
        }
    }
}
