//! Making a device's operations fail on purpose.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use platform::sync::Mutex;
use platform::{DmaAddr, PhysAddr};

use crate::forward::forward_members;
use crate::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, IovaOps, IovaPart, IovaRange,
    PageMemory, Quarantined, SgEntry,
};

bitflags::bitflags! {
    /// The members of [`DmaMapOps`] that can fail.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Calls: u16 {
        /// [`DmaMapOps::alloc`].
        const ALLOC = 1 << 0;
        /// [`DmaMapOps::map_phys`].
        const MAP_PHYS = 1 << 1;
        /// [`DmaMapOps::map_foreign`].
        const MAP_FOREIGN = 1 << 2;
        /// [`DmaMapOps::map_sg`].
        const MAP_SG = 1 << 3;
        /// [`DmaMapOps::free`].
        const FREE = 1 << 4;
        /// [`DmaMapOps::unmap_phys`].
        const UNMAP_PHYS = 1 << 5;
        /// [`DmaMapOps::unmap_sg`].
        const UNMAP_SG = 1 << 6;
        /// [`DmaMapOps::alloc_pages`].
        const ALLOC_PAGES = 1 << 7;
        /// [`DmaMapOps::free_pages`].
        const FREE_PAGES = 1 << 8;
        /// [`IovaOps::try_alloc`].
        const IOVA_TRY_ALLOC = 1 << 9;
        /// [`IovaOps::link`].
        const IOVA_LINK = 1 << 10;
        /// [`IovaOps::sync`].
        const IOVA_SYNC = 1 << 11;
        /// [`IovaOps::unlink`].
        const IOVA_UNLINK = 1 << 12;
        /// [`IovaOps::destroy`].
        const IOVA_DESTROY = 1 << 13;
        /// All that give a device memory.
        const MAPS = Self::ALLOC.bits() | Self::MAP_PHYS.bits() | Self::MAP_FOREIGN.bits() | Self::MAP_SG.bits()
            | Self::ALLOC_PAGES.bits() | Self::IOVA_TRY_ALLOC.bits() | Self::IOVA_LINK.bits() | Self::IOVA_SYNC.bits();
        /// All that take it away.
        const UNMAPS = Self::FREE.bits() | Self::UNMAP_PHYS.bits() | Self::UNMAP_SG.bits()
            | Self::FREE_PAGES.bits() | Self::IOVA_UNLINK.bits() | Self::IOVA_DESTROY.bits();
    }
}

/// Which calls of [`Faulty`] ops fail; at first none. What was asked for stays in force until [`FaultPlan::clear`]; a call
/// that several rules want to fail is told the oldest rule's error.
#[derive(Default)]
pub struct FaultPlan {
    state: Mutex<State>,
    delay: Option<Box<dyn Fn(Calls) + Send + Sync>>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    failed: u64,
}

#[derive(Debug)]
struct Rule {
    calls: Calls,
    when: When,
    error: DmaError,
}

#[derive(Debug)]
enum When {
    /// So many calls from now; 0 is past.
    Nth(u64),
    /// Of a thousand calls so many, as this generator says.
    Chance { per_mille: u32, random: Xorshift },
}

/// Marsaglia's generator with the shifts 13, 7, 17: the same numbers on every machine.
#[derive(Debug)]
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

impl Rule {
    fn wants(&mut self, call: Calls) -> bool {
        if !self.calls.contains(call) {
            return false;
        }
        match &mut self.when {
            When::Nth(left) => {
                let hit = *left == 1;
                *left = left.saturating_sub(1);
                hit
            }
            When::Chance { per_mille, random } => random.next() % 1000 < u64::from(*per_mille),
        }
    }
}

impl FaultPlan {
    /// A plan that calls `delay` with the member's flag before each call goes on, the failing ones too: it may wait as long as
    /// slow hardware would, or let another thread go first.
    pub fn delayed(delay: impl Fn(Calls) + Send + Sync + 'static) -> Self {
        Self { state: Mutex::default(), delay: Some(Box::new(delay)) }
    }

    /// Lets the `n`-th of `calls` from now on fail, once; 1 is the next, and with 0 none fails. A map or allocation answers `error`, an unmap
    /// [`Quarantined`].
    pub fn fail_nth(&self, calls: Calls, n: u64, error: DmaError) {
        self.add(calls, When::Nth(n), error);
    }

    /// Lets `per_mille` of a thousand of `calls` fail, at random but the same ones for the same `seed`; with 1000 all.
    pub fn fail_by_chance(&self, calls: Calls, per_mille: u32, seed: u64, error: DmaError) {
        // The generator never leaves zero. An odd factor keeps different seeds different, and fills the high bits.
        let random = Xorshift(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1));
        self.add(calls, When::Chance { per_mille, random }, error);
    }

    /// From now on nothing fails.
    pub fn clear(&self) {
        self.state.lock().rules.clear();
    }

    /// How many calls were made to fail.
    pub fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    fn add(&self, calls: Calls, when: When, error: DmaError) {
        self.state.lock().rules.push(Rule { calls, when, error });
    }

    /// # Errors
    /// What `call` is to fail with.
    fn check(&self, call: Calls) -> Result<(), DmaError> {
        if let Some(delay) = &self.delay {
            delay(call);
        }
        let mut state = self.state.lock();
        // Every rule counts the call, also when an older one has it fail.
        let wants = |error: Option<DmaError>, rule: &mut Rule| {
            let wanted = rule.wants(call);
            error.or(wanted.then_some(rule.error))
        };
        let error = state.rules.iter_mut().fold(None, wants);
        state.failed += u64::from(error.is_some());
        error.map_or(Ok(()), Err)
    }
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultPlan").field("state", &self.state).finish_non_exhaustive()
    }
}

/// A decorator over any [`DmaMapOps`] that lets calls fail as a [`FaultPlan`] says, to see what a driver does then (Linux:
/// fault injection).
///
/// A map or allocation that fails never reaches the ops within. Nor does an unmap: it answers [`Quarantined`], and the device
/// still reaches the memory, as after an IOMMU that did not answer.
#[derive(Debug)]
pub struct Faulty<T> {
    ops: T,
    plan: Arc<FaultPlan>,
}

impl<T: DmaMapOps> Faulty<T> {
    /// Lets calls of `ops` fail as `plan` says.
    pub fn new(ops: T, plan: Arc<FaultPlan>) -> Self {
        Self { ops, plan }
    }
}

// SAFETY: every member is handed to the ops within, whose promises hold, or fails without a trace: a map or allocation has
// mapped nothing, and after an unmap or free that answers `Quarantined` the memory is as mapped as before, so that the caller
// is told the truth.
unsafe impl<T: DmaMapOps> DmaMapOps for Faulty<T> {
    forward_members!(self => self.ops;
        sync_for_cpu, sync_for_device, sync_sg_for_cpu, sync_sg_for_device, dma_supported, required_mask,
        max_mapping_size, opt_mapping_size, merge_boundary
    );

    fn iova_ops(&self) -> Option<Box<dyn IovaOps + '_>> {
        let ops = self.ops.iova_ops()?;
        Some(Box::new(FaultyIova { ops, plan: &self.plan }))
    }

    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        self.plan.check(Calls::ALLOC)?;
        self.ops.alloc(dev, size, attrs)
    }

    unsafe fn free(
        &self,
        dev: &DeviceParms,
        memory: CoherentMemory,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let kept = Quarantined { address: memory.dma, len: memory.size };
        self.plan.check(Calls::FREE).map_err(|_| kept)?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.free(dev, memory, attrs) }
    }

    fn alloc_pages(
        &self,
        dev: &DeviceParms,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        self.plan.check(Calls::ALLOC_PAGES)?;
        self.ops.alloc_pages(dev, size, dir, attrs)
    }

    unsafe fn free_pages(
        &self,
        dev: &DeviceParms,
        memory: PageMemory,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let kept = Quarantined { address: memory.dma, len: memory.size };
        self.plan.check(Calls::FREE_PAGES).map_err(|_| kept)?;
        // SAFETY: the caller's promise, handed on.
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
        self.plan.check(Calls::MAP_PHYS)?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.map_phys(dev, phys, len, dir, attrs) }
    }

    unsafe fn unmap_phys(
        &self,
        dev: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        self.plan.check(Calls::UNMAP_PHYS).map_err(|_| Quarantined { address, len })?;
        // SAFETY: the caller's promise, handed on.
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
        self.plan.check(Calls::MAP_FOREIGN)?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.map_foreign(dev, cpu, len, dir, attrs) }
    }

    unsafe fn map_sg(
        &self,
        dev: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        self.plan.check(Calls::MAP_SG)?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.map_sg(dev, list, dir, attrs) }
    }

    unsafe fn unmap_sg(
        &self,
        dev: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let first = list.first().map(|entry| (entry.dma_address, entry.dma_len)).unwrap_or_default();
        let kept = Quarantined { address: first.0, len: first.1 };
        self.plan.check(Calls::UNMAP_SG).map_err(|_| kept)?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.unmap_sg(dev, list, dir, attrs) }
    }
}

/// The two-step interface, whose calls fail too.
#[derive(Debug)]
struct FaultyIova<'a> {
    ops: Box<dyn IovaOps + 'a>,
    plan: &'a FaultPlan,
}

// SAFETY: as for `Faulty`; a range whose unlink or destroy fails is never used again, within or without.
unsafe impl IovaOps for FaultyIova<'_> {
    fn try_alloc(&self, dev: &DeviceParms, phys: PhysAddr, size: usize) -> Result<IovaRange, DmaError> {
        self.plan.check(Calls::IOVA_TRY_ALLOC)?;
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
        self.plan.check(Calls::IOVA_LINK)?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.link(dev, part, phys, dir, attrs) }
    }

    fn sync(&self, dev: &DeviceParms, part: IovaPart) -> Result<(), DmaError> {
        self.plan.check(Calls::IOVA_SYNC)?;
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
        self.plan.check(Calls::IOVA_UNLINK).map_err(|_| kept)?;
        // SAFETY: the caller's promise, handed on.
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
        self.plan.check(Calls::IOVA_DESTROY).map_err(|_| kept)?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.destroy(dev, range, linked, dir, attrs) }
    }
}
