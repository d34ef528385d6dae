//! Random use of a pool against a model that knows each slot, each copy and each original.

mod common;

use common::{Host, Original, SEGMENT, configured, pattern};
use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use platform::PhysAddr;
use proptest::prelude::*;
use swiotlb::{Config, SEGMENT_SLOTS, SLOT_SIZE, Statistics, Swiotlb};

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
    Grow,
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::ToDevice), Just(Direction::FromDevice), Just(Direction::Bidirectional)]
}

fn shape() -> impl Strategy<Value = Shape> {
    let len = prop_oneof![4 => 1..SLOT_SIZE, 4 => 1..20_000_usize, 4 => 60_000..SEGMENT + 10];
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
        8 => shape().prop_map(Step::Map),
        2 => any::<(u8, u8, u8)>().prop_map(|(which, at, len)| Step::DeviceWrites(which, at, len)),
        1 => any::<(u8, u8, u8)>().prop_map(|(which, at, len)| Step::SyncForCpu(which, at, len)),
        1 => any::<(u8, u8, u8)>().prop_map(|(which, at, len)| Step::CpuWritesAndSyncs(which, at, len)),
        3 => any::<(u8, bool)>().prop_map(|(which, skip)| Step::Unmap(which, skip)),
        2 => Just(Step::Grow),
    ]
}

/// Where a mapping's run is.
enum Place {
    /// Slots of a pool, by number.
    Pool(usize, std::ops::Range<usize>),
    /// Frames of its own.
    Transient(u64, usize),
}

/// A mapping, and what memory must hold.
struct Live {
    shape: Shape,
    copy: u64,
    place: Place,
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

/// Which slots of a pool are taken.
struct Pool {
    start: u64,
    taken: Vec<bool>,
}

struct Model<'a> {
    swiotlb: &'a Swiotlb,
    host: &'a Host,
    max_size: usize,
    pools: Vec<Pool>,
    live: Vec<Live>,
    /// Whether a mapping has found no run since the last growth.
    wants_growth: bool,
    seed: u8,
}

impl Model<'_> {
    /// The bytes between the start of a run and its data; the bytes in the run; whether a run may begin at an address.
    fn rules(shape: &Shape) -> (usize, usize, impl Fn(u64) -> bool + use<>) {
        let align = (shape.alloc_align_mask as usize + 1).max(SLOT_SIZE);
        let before = shape.low_bits & shape.min_align_mask as usize & (align - 1);
        let size = (shape.len + before).next_multiple_of(shape.alloc_align_mask as usize + 1);
        let pages = shape.min_align_mask == 0 && shape.alloc_align_mask == 0 && shape.len >= 4096;
        let shape = shape.clone();
        let fits = move |at: u64| {
            let last = at + size as u64 - 1;
            let data = at + before as u64;
            at.is_multiple_of(align as u64)
                && (!pages || at.is_multiple_of(4096))
                && data & shape.min_align_mask == shape.low_bits as u64 & shape.min_align_mask
                && data / (shape.boundary + 1) == (data + shape.len as u64 - 1) / (shape.boundary + 1)
                && at / SEGMENT as u64 == last / SEGMENT as u64
        };
        (before, size, fits)
    }

    /// Frames that the model knows nothing of yet.
    fn new_frames(&self) -> Option<(u64, usize)> {
        let mut frames = self.host.allocations();
        for pool in &self.pools {
            frames.remove(&pool.start);
        }
        for live in &self.live {
            if let Place::Transient(start, size) = live.place {
                assert_eq!(frames.remove(&start), Some(size));
            }
        }
        assert!(frames.len() <= 1, "{frames:x?}");
        frames.pop_first()
    }

    /// Bytes that pools may still take.
    fn spare(&self) -> usize {
        let all: usize = self.host.allocations().values().sum();
        self.max_size.saturating_sub(all)
    }

    fn map(&mut self, shape: Shape) {
        let parms = DeviceParms::new(true, shape.untrusted);
        parms.set_min_align_mask(shape.min_align_mask);
        parms.set_segment_boundary(shape.boundary);
        self.seed = self.seed.wrapping_add(1);
        let data = pattern(self.seed, shape.len);
        let original = Original::new(shape.low_bits, &data);
        let spare = self.spare();
        // SAFETY: the original lives as long as the mapping, in `live`.
        let mapped = unsafe {
            self.swiotlb.map(
                &parms,
                original.ptr(),
                shape.len,
                shape.alloc_align_mask,
                shape.dir,
                Attrs::empty(),
            )
        };
        let (before, size, fits) = Self::rules(&shape);
        let count = size.div_ceil(SLOT_SIZE);
        let at = |pool: &Pool, slot: usize| pool.start + (slot * SLOT_SIZE) as u64;
        let free = |pool: &Pool, slot: usize| pool.taken[slot..slot + count].iter().all(|taken| !taken);
        let possible = |pool: &Pool, slot: usize| slot + count <= pool.taken.len() && fits(at(pool, slot));
        let possible_somewhere =
            self.pools.iter().any(|pool| (0..pool.taken.len()).any(|slot| possible(pool, slot)));
        let free_somewhere = self
            .pools
            .iter()
            .any(|pool| (0..pool.taken.len()).any(|slot| possible(pool, slot) && free(pool, slot)));
        // What the address bits to keep put before a run in frames of its own.
        let low_align = shape.alloc_align_mask.max(SLOT_SIZE as u64 - 1);
        let skip = shape.low_bits & (shape.min_align_mask & !low_align) as usize;
        let transient_size = (skip + count * SLOT_SIZE).next_multiple_of(4096);
        match mapped {
            Ok(copy) => {
                let run = copy.get() - before as u64;
                assert!(run.is_multiple_of(SLOT_SIZE as u64) && fits(run), "{shape:?} at {copy}");
                let inside = |pool: &Pool| run >= pool.start && run < at(pool, pool.taken.len());
                let place = match self.pools.iter().position(inside) {
                    Some(number) => {
                        let pool = &mut self.pools[number];
                        let slot = (run - pool.start) as usize / SLOT_SIZE;
                        assert!(free(pool, slot), "a run that is taken: {shape:?} at {copy}");
                        pool.taken[slot..slot + count].fill(true);
                        Place::Pool(number, slot..slot + count)
                    }
                    None => {
                        assert!(!free_somewhere, "a free run was not found: {shape:?}");
                        let (start, frames) = self.new_frames().expect("frames of its own");
                        assert_eq!((run, frames), (start + skip as u64, transient_size), "{shape:?}");
                        self.wants_growth = true;
                        Place::Transient(start, frames)
                    }
                };
                if shape.untrusted {
                    let mut all = vec![0; count * SLOT_SIZE];
                    all[before..before + shape.len].copy_from_slice(&data);
                    assert_eq!(self.host.device_read(run, all.len()), all);
                }
                self.live.push(Live {
                    shape,
                    copy: copy.get(),
                    place,
                    original,
                    expected_original: data.clone(),
                    expected_copy: data,
                });
            }
            Err(DmaError::TooLargeForBounce { size, max }) => {
                assert_eq!(size, shape.len);
                assert!(size > max, "{size} of {max}");
                assert!(!possible_somewhere, "an empty pool has this run: {shape:?}");
            }
            Err(DmaError::BouncePoolFull { size, used, total }) => {
                let taken = self.pools.iter().flat_map(|pool| &pool.taken).filter(|&&taken| taken).count();
                let slots: usize = self.pools.iter().map(|pool| pool.taken.len()).sum();
                assert_eq!((size, used, total), (shape.len, taken, slots));
                assert!(possible_somewhere, "no pool has this run: {shape:?}");
                assert!(!free_somewhere, "a free run was not found: {shape:?}");
                assert!(spare < transient_size, "{spare} bytes were left: {shape:?}");
                self.wants_growth = true;
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn grow(&mut self) {
        let spare = self.spare();
        let grown = self.swiotlb.grow();
        let sizes = [1 << 20].into_iter().filter(|&size| self.wants_growth && size <= spare);
        // The default pool is smaller than the least to grow by.
        assert_eq!(grown, sizes.max().unwrap_or(0));
        self.wants_growth = false;
        if let Some((start, size)) = self.new_frames() {
            assert_eq!(size, grown);
            self.pools.push(Pool { start, taken: vec![false; size / SLOT_SIZE] });
        }
    }

    fn step(&mut self, step: Step) {
        let step = match step {
            Step::Map(shape) => return self.map(shape),
            Step::Grow => return self.grow(),
            other => other,
        };
        let count = self.live.len();
        let pick = |which: u8| (count != 0).then(|| usize::from(which) % count.max(1));
        self.seed = self.seed.wrapping_add(1);
        match step {
            Step::Map(_) | Step::Grow => {}
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
                unsafe { self.swiotlb.sync_for_cpu(from, part.len(), live.shape.dir) };
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
                unsafe { self.swiotlb.sync_for_device(from, part.len(), live.shape.dir) };
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
        unsafe { self.swiotlb.unmap(PhysAddr::new(live.copy), live.shape.len, live.shape.dir, attrs) };
        let written = live.shape.dir != Direction::ToDevice && !skip;
        let expected = if written { live.expected_copy } else { live.expected_original };
        assert!(live.original.read() == expected, "{:?}, skip {skip}", live.shape);
        match live.place {
            Place::Pool(number, slots) => self.pools[number].taken[slots].fill(false),
            Place::Transient(start, _) => assert!(!self.host.allocations().contains_key(&start), "freed"),
        }
    }

    fn check(&self) {
        assert!(self.swiotlb.is_consistent());
        let taken = self.pools.iter().flat_map(|pool| &pool.taken).filter(|&&taken| taken).count();
        let transient = self.live.iter().map(|live| match live.place {
            Place::Pool(..) => 0,
            Place::Transient(_, size) => size / SLOT_SIZE,
        });
        let Statistics { slots, used, high_water, transient_slots, .. } = self.swiotlb.statistics();
        assert_eq!(slots, self.pools.iter().map(|pool| pool.taken.len()).sum());
        assert_eq!((used, transient_slots), (taken, transient.sum()));
        assert!(high_water >= used);
        assert_eq!(self.new_frames(), None, "nothing else was taken");
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
        segments in prop_oneof![2 => Just(1), 1 => 2..4_usize],
        areas in 1..3_usize,
        spare in prop_oneof![Just(0), Just(20_000), Just(1 << 20), Just(5 << 19)],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let host = Host::new();
        let size = segments * SEGMENT;
        // Less than asked for, when the segments are no multiple of the areas.
        let default = segments / areas.min(segments) * areas.min(segments) * SEGMENT;
        let config = Config { size, areas, max_size: default + spare, ..Config::default() };
        let swiotlb = configured(&host, &config);
        let pools = Vec::new();
        let mut model = Model {
            swiotlb: &swiotlb,
            host: &host,
            max_size: config.max_size,
            pools,
            live: Vec::new(),
            wants_growth: false,
            seed: 0,
        };
        let (start, len) = model.new_frames().expect("the default pool");
        prop_assert_eq!(len, default);
        model.pools.push(Pool { start, taken: vec![false; len / SLOT_SIZE] });
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
        let slots = swiotlb.statistics().slots;
        for _ in 0..slots / SEGMENT_SLOTS {
            let parms = DeviceParms::new(true, false);
            // SAFETY: the device only reads, and the original is never written.
            unsafe { swiotlb.map(&parms, whole.ptr(), SEGMENT, 0, Direction::ToDevice, Attrs::empty()) }.unwrap();
        }
        prop_assert_eq!(swiotlb.statistics().used, slots);
    }
}
