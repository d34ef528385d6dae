//! Copies in memory of their own, for as long as a full pool has not grown (Linux: transient pools).

use alloc::boxed::Box;

use platform::PhysAddr;
use platform::frames::FRAME_SIZE;
use platform::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::area::{Mapping, Run};

/// The most transient pools at a time: a lookup asks each. Loom pays for each atomic.
const TRANSIENT_POOLS: usize = if cfg!(loom) { 2 } else { 128 };

/// A record's range while it is being written: it has no address.
const CLAIMED: u64 = FRAME_SIZE as u64;

/// Whole frames in one word, so that nobody sees the start of one range with the length of another: the first frame's address,
/// and how many there are in the bits below it. 0 has no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FrameRange(u64);

impl FrameRange {
    fn new(start: PhysAddr, size: usize) -> Self {
        Self(start.get() | (size / FRAME_SIZE) as u64)
    }

    fn start(self) -> PhysAddr {
        PhysAddr::new(self.0).align_down(FRAME_SIZE as u64)
    }

    fn size(self) -> usize {
        self.0 as usize % FRAME_SIZE * FRAME_SIZE
    }

    fn contains(self, at: PhysAddr) -> bool {
        at.get().wrapping_sub(self.start().get()) < self.size() as u64
    }
}

/// Frames, and the one copy in them.
#[derive(Debug, Default)]
struct Record {
    /// Published with the rest, and cleared before the frames are given back: an address that is found here is a live copy's.
    frames: AtomicU64,
    original: AtomicUsize,
    len: AtomicU32,
    /// Bytes of the frames before the copy's first byte.
    before: AtomicU32,
}

/// Records in which a lookup takes no lock. They outlive what they record.
#[derive(Debug)]
pub(crate) struct Transients {
    records: Box<[Record]>,
    /// Frames recorded, in bytes.
    size: AtomicUsize,
    /// Copies ever recorded.
    maps: AtomicU64,
}

impl Transients {
    /// Room for [`TRANSIENT_POOLS`], or for none.
    pub(crate) fn new(any: bool) -> Self {
        let records = (0..if any { TRANSIENT_POOLS } else { 0 }).map(|_| Record::default()).collect();
        Self { records, size: AtomicUsize::new(0), maps: AtomicU64::new(0) }
    }

    /// Bytes in frames of transient pools.
    pub(crate) fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// Copies ever made in transient pools.
    pub(crate) fn maps(&self) -> u64 {
        self.maps.load(Ordering::Relaxed)
    }

    /// Records a copy that begins `skip + run.before` bytes into whole frames. Says whether there was room.
    pub(crate) fn insert(&self, start: PhysAddr, size: usize, skip: usize, run: Run) -> bool {
        // Acquire: the last owner's reads of the record are over.
        let claim = |record: &&Record| {
            record.frames.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let Some(record) = self.records.iter().find(claim) else { return false };
        record.original.store(run.original, Ordering::Relaxed);
        record.len.store(run.len, Ordering::Relaxed);
        record.before.store(run.before + skip as u32, Ordering::Relaxed);
        self.size.fetch_add(size, Ordering::Relaxed);
        self.maps.fetch_add(1, Ordering::Relaxed);
        record.frames.store(FrameRange::new(start, size).0, Ordering::Release);
        true
    }

    /// Forgets the copy that has an address; returns its frames, which are the caller's to free.
    pub(crate) fn remove(&self, at: PhysAddr) -> Option<(PhysAddr, usize)> {
        let (record, frames) = self.find(at)?;
        self.size.fetch_sub(frames.size(), Ordering::Relaxed);
        record.frames.store(0, Ordering::Release);
        Some((frames.start(), frames.size()))
    }

    /// Whether an address is in a transient pool.
    pub(crate) fn contains(&self, at: PhysAddr) -> bool {
        self.find(at).is_some()
    }

    /// The original of a byte of a live copy.
    pub(crate) fn lookup(&self, at: PhysAddr) -> Option<Mapping> {
        let (record, frames) = self.find(at)?;
        let into = (at.get() - frames.start().get()) as usize;
        let skipped = into.checked_sub(record.before.load(Ordering::Relaxed) as usize)?;
        let left = (record.len.load(Ordering::Relaxed) as usize).checked_sub(skipped)?;
        let original = record.original.load(Ordering::Relaxed).wrapping_add(skipped);
        (left != 0).then_some(Mapping { original, len: left })
    }

    fn find(&self, at: PhysAddr) -> Option<(&Record, FrameRange)> {
        // Whoever asks for an address of his own has seen it counted.
        if self.size() == 0 {
            return None;
        }
        self.records.iter().find_map(|record| {
            let frames = FrameRange(record.frames.load(Ordering::Acquire));
            frames.contains(at).then_some((record, frames))
        })
    }
}
