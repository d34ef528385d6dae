//! Random use of a pool against a model that knows each slot, each copy and each original.

mod common;

use common::{Host, Original, SEGMENT, pattern, pool};
use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use platform::PhysAddr;
use proptest::prelude::*;
use swiotlb::{SEGMENT_SLOTS, SLOT_SIZE, Swiotlb};

#[derive(Clone, Debug)]
struct Shape {
    low_bits: usize,
    len: usize,
    dir: Direction,
    min_align_mask: u64,
    alloc_align_mask: u64,
    boundary: u64,
    untrusted: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Map(Shape),
    /// Which mapping, and where in it, as fractions of 256.
    DeviceWrites(u8, u8, u8),
    SyncForCpu(u8, u8, u8),
    CpuWritesAndSyncs(u8, u8, u8),
    Unmap(u8, bool),
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::ToDevice), Just(Direction::FromDevice), Just(Direction::Bidirectional)]
}

fn shape() -> impl Strategy<Value = Shape> {
    let len = prop_oneof![4 => 1..SLOT_SIZE, 4 => 1..20_000_usize, 2 => 60_000..SEGMENT + 10];
    let min_align = prop_oneof![3 => Just(0), 1 => Just(0x1ff), 2 => Just(0xfff), 1 => Just(0x3fff)];
    let alloc_align = prop_oneof![3 => Just(0), 1 => Just(0x3ff), 2 => Just(0xfff), 1 => Just(0x7fff)];
    let boundary = prop_oneof![4 => Just(0xffff_ffff), 1 => Just(0xffff), 1 => Just(0x3fff)];
    (0..0x1_0000_usize, len, direction(), min_align, alloc_align, boundary, any::<bool>()).prop_map(
        |(low_bits, len, dir, min_align_mask, alloc_align_mask, boundary, untrusted)| Shape {
            low_bits,
            len,
            dir,
            min_align_mask,
            alloc_align_mask,
            boundary,
            untrusted,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => shape().prop_map(Step::Map),
        2 => any::<(u8, u8, u8)>().prop_map(|(which, at, len)| Step::DeviceWrites(which, at, len)),
        1 => any::<(u8, u8, u8)>().prop_map(|(which, at, len)| Step::SyncForCpu(which, at, len)),
        1 => any::<(u8, u8, u8)>().prop_map(|(which, at, len)| Step::CpuWritesAndSyncs(which, at, len)),
        3 => any::<(u8, bool)>().prop_map(|(which, skip)| Step::Unmap(which, skip)),
    ]
}

/// A mapping, and what memory must hold.
struct Live {
    shape: Shape,
    copy: u64,
    /// The first slot of the run, from the pool's start, and how many.
    slots: std::ops::Range<usize>,
    original: Original,
    expected_original: Vec<u8>,
    expected_copy: Vec<u8>,
}

impl Live {
    fn part(&self, at: u8, len: u8) -> std::ops::Range<usize> {
        let start = self.shape.len * usize::from(at) / 256;
        start..start + (self.shape.len - start) * (usize::from(len) + 1) / 256
    }
}

struct Model<'a> {
    pool: &'a Swiotlb,
    host: &'a Host,
    /// Where the pool begins.
    start: u64,
    taken: Vec<bool>,
    live: Vec<Live>,
    seed: u8,
}

impl Model<'_> {
    /// The bytes between the start of a run and its data; the bytes in the run; whether a run may begin at a slot.
    fn rules(&self, shape: &Shape) -> (usize, usize, impl Fn(usize) -> bool + use<>) {
        let align = (shape.alloc_align_mask as usize + 1).max(SLOT_SIZE);
        let before = shape.low_bits & shape.min_align_mask as usize & (align - 1);
        let size = (shape.len + before).next_multiple_of(shape.alloc_align_mask as usize + 1);
        let pages = shape.min_align_mask == 0 && shape.alloc_align_mask == 0 && shape.len >= 4096;
        let (start, shape) = (self.start, shape.clone());
        let fits = move |slot: usize| {
            let at = start + (slot * SLOT_SIZE) as u64;
            let last = at + size as u64 - 1;
            let data = at + before as u64;
            at.is_multiple_of(align as u64)
                && (!pages || at.is_multiple_of(4096))
                && (at + before as u64) & shape.min_align_mask == shape.low_bits as u64 & shape.min_align_mask
                && data / (shape.boundary + 1) == (data + shape.len as u64 - 1) / (shape.boundary + 1)
                && at / SEGMENT as u64 == last / SEGMENT as u64
        };
        (before, size, fits)
    }

    fn map(&mut self, shape: Shape) {
        let parms = DeviceParms::new(true, shape.untrusted);
        parms.set_min_align_mask(shape.min_align_mask);
        parms.set_segment_boundary(shape.boundary);
        self.seed = self.seed.wrapping_add(1);
        let data = pattern(self.seed, shape.len);
        let original = Original::new(shape.low_bits, &data);
        // SAFETY: the original lives as long as the mapping, in `live`.
        let mapped = unsafe {
            self.pool.map(
                &parms,
                original.ptr(),
                shape.len,
                shape.alloc_align_mask,
                shape.dir,
                Attrs::empty(),
            )
        };
        let (before, size, fits) = self.rules(&shape);
        let count = size.div_ceil(SLOT_SIZE);
        let free = |slot: usize| self.taken[slot..slot + count].iter().all(|taken| !taken);
        let possible = |slot: &usize| fits(*slot) && slot + count <= self.taken.len();
        match mapped {
            Ok(copy) => {
                let run = copy.get() - before as u64 - self.start;
                let slot = run as usize / SLOT_SIZE;
                assert!(run.is_multiple_of(SLOT_SIZE as u64) && fits(slot), "{shape:?} at {copy}");
                assert!(free(slot), "a run that is taken: {shape:?} at {copy}");
                if shape.untrusted {
                    let mut all = vec![0; count * SLOT_SIZE];
                    all[before..before + shape.len].copy_from_slice(&data);
                    assert_eq!(self.host.device_read(self.start + run, all.len()), all);
                }
                self.taken[slot..slot + count].fill(true);
                self.live.push(Live {
                    shape,
                    copy: copy.get(),
                    slots: slot..slot + count,
                    original,
                    expected_original: data.clone(),
                    expected_copy: data,
                });
            }
            Err(DmaError::TooLargeForBounce { size, max }) => {
                assert_eq!(size, shape.len);
                assert!(size > max, "{size} of {max}");
                let slot = (0..self.taken.len()).find(possible);
                assert_eq!(slot, None, "an empty pool has this run: {shape:?}");
            }
            Err(DmaError::BouncePoolFull { size, used, total }) => {
                let taken = self.taken.iter().filter(|&&taken| taken).count();
                assert_eq!((size, used, total), (shape.len, taken, self.taken.len()));
                assert!((0..total).any(|slot| possible(&slot)), "no pool has this run: {shape:?}");
                let slot = (0..total).find(|slot| possible(slot) && free(*slot));
                assert_eq!(slot, None, "a free run was not found: {shape:?}");
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn step(&mut self, step: Step) {
        if let Step::Map(shape) = step {
            return self.map(shape);
        }
        let count = self.live.len();
        let pick = |which: u8| (count != 0).then(|| usize::from(which) % count.max(1));
        self.seed = self.seed.wrapping_add(1);
        match step {
            Step::Map(_) => {}
            Step::DeviceWrites(which, at, len) => {
                let Some(live) = pick(which).map(|index| &mut self.live[index]) else { return };
                let part = live.part(at, len);
                let data = pattern(self.seed, part.len());
                self.host.device_write(live.copy + part.start as u64, &data);
                live.expected_copy[part].copy_from_slice(&data);
            }
            Step::SyncForCpu(which, at, len) => {
                let Some(live) = pick(which).map(|index| &mut self.live[index]) else { return };
                let part = live.part(at, len);
                let from = PhysAddr::new(live.copy + part.start as u64);
                // SAFETY: a part of a live mapping.
                unsafe { self.pool.sync_for_cpu(from, part.len(), live.shape.dir) };
                if live.shape.dir != Direction::ToDevice {
                    live.expected_original[part.clone()].copy_from_slice(&live.expected_copy[part]);
                }
            }
            Step::CpuWritesAndSyncs(which, at, len) => {
                let Some(live) = pick(which).map(|index| &mut self.live[index]) else { return };
                let part = live.part(at, len);
                let data = pattern(self.seed, part.len());
                live.original.write(part.start, &data);
                live.expected_original[part.clone()].copy_from_slice(&data);
                let from = PhysAddr::new(live.copy + part.start as u64);
                // SAFETY: a part of a live mapping.
                unsafe { self.pool.sync_for_device(from, part.len(), live.shape.dir) };
                if live.shape.dir != Direction::FromDevice {
                    live.expected_copy[part].copy_from_slice(&data);
                }
            }
            Step::Unmap(which, skip) => {
                if let Some(index) = pick(which) {
                    self.unmap(index, skip);
                }
            }
        }
    }

    fn unmap(&mut self, index: usize, skip: bool) {
        let live = self.live.swap_remove(index);
        let attrs = if skip { Attrs::SKIP_CPU_SYNC } else { Attrs::empty() };
        // SAFETY: a live mapping, ended once.
        unsafe { self.pool.unmap(PhysAddr::new(live.copy), live.shape.len, live.shape.dir, attrs) };
        let written = live.shape.dir != Direction::ToDevice && !skip;
        let expected = if written { live.expected_copy } else { live.expected_original };
        assert!(live.original.read() == expected, "{:?}, skip {skip}", live.shape);
        self.taken[live.slots].fill(false);
    }

    fn check(&self) {
        assert!(self.pool.is_consistent());
        let taken = self.taken.iter().filter(|&&taken| taken).count();
        assert_eq!(self.pool.statistics().used, taken);
        for live in &self.live {
            let copy = self.host.device_read(live.copy, live.shape.len);
            assert!(copy == live.expected_copy, "a copy has changed: {:?}", live.shape);
            assert!(live.original.read() == live.expected_original, "an original has changed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn a_pool_does_what_the_model_says(
        segments in 1..4_usize,
        cpus in 1..3_usize,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let host = Host::new();
        let pool = pool(&host, segments * SEGMENT, cpus);
        let slots = pool.statistics().slots;
        // The host hands out the highest memory below 4 GiB.
        let start = common::FOUR_GIB - (slots * SLOT_SIZE) as u64;
        let taken = vec![false; slots];
        let mut model = Model { pool: &pool, host: &host, start, taken, live: Vec::new(), seed: 0 };
        for step in steps {
            model.step(step);
            model.check();
        }
        while let Some(index) = model.live.len().checked_sub(1) {
            model.unmap(index, false);
        }
        model.check();
        // Everything has grown together again: each segment is one run.
        let whole = Original::new(0, &[0; SEGMENT]);
        for _ in 0..slots / SEGMENT_SLOTS {
            let parms = DeviceParms::new(true, false);
            // SAFETY: the device only reads, and the original is never written.
            unsafe { pool.map(&parms, whole.ptr(), SEGMENT, 0, Direction::ToDevice, Attrs::empty()) }.unwrap();
        }
    }
}
