//! What must hold whatever drivers and owners do, in whichever order, on hardware that forgets nothing by itself.

mod common;

use std::time::Duration;

use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine;
use common::engine::RawEngine;
use common::{LAZY, STRICT, boot, page};
use conformance::Bench;
use dma_api::{Attrs, Direction, DmaBuffer, SgEntry};
use iommu_core::{Owner, PagingFlags};
use platform::{Clock, DmaAddr, PhysAddr, Platform, Prot};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 64;
const MAX_SEGMENT: u64 = 5 * PAGE;
const BOUNDARY: u64 = 8 * PAGE - 1;

/// What a driver does. Places and lengths count in words of 8 bytes.
#[derive(Clone, Debug)]
enum Step {
    Map {
        word: u64,
        words: u64,
        dir: Direction,
    },
    Unmap(prop::sample::Index),
    List {
        pages: Vec<(u64, u64)>,
        dir: Direction,
    },
    Unlist(prop::sample::Index),
    /// What timers do.
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const DIRECTIONS: &[Direction] = &[Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional];
    let dir = || prop::sample::select(DIRECTIONS);
    let whole = (0..PAGES - 4, 1..4_u64).prop_map(|(page, pages)| (page * PAGE / 8, pages * PAGE / 8));
    let part = (0..(PAGES - 2) * PAGE / 8, 1..PAGE / 8);
    let map =
        (prop_oneof![whole, part], dir()).prop_map(|((word, words), dir)| Step::Map { word, words, dir });
    let list = (prop::collection::vec((0..PAGES - 4, 1..4_u64), 1..6), dir())
        .prop_map(|(pages, dir)| Step::List { pages, dir });
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => map,
        3 => index().prop_map(Step::Unmap),
        2 => list,
        1 => index().prop_map(Step::Unlist),
        1 => Just(Step::Tick),
    ];
    prop::collection::vec(step, 1..40)
}

/// A piece of memory that the device has: where it finds it, where it is, in bytes.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: DmaAddr,
    offset: u64,
    len: u64,
    dir: Direction,
}

struct World {
    engine: backend_sim::EngineBench,
    lazy: bool,
    /// Each word is its own place, and a mark: none is zero.
    memory: DmaBuffer<u64>,
    maps: Vec<Piece>,
    lists: Vec<(Vec<SgEntry>, Vec<Piece>)>,
    // Dropped last: what is dropped after it waits for an IOMMU that is gone.
    machine: SimMachine,
}

const MARK: u64 = 0x5ec7_0000_0000_0000;

impl World {
    fn new(lazy: bool) -> Self {
        let machine = boot(|config| {
            config.settings = if lazy { LAZY } else { STRICT };
            // Ticks are steps.
            config.tick = Duration::from_secs(3600);
        });
        let engine = machine.engine(Machine::ENGINE).unwrap();
        let parms = engine.device().parms();
        parms.set_max_segment_size(MAX_SEGMENT);
        parms.set_segment_boundary(BOUNDARY);
        let platform: std::sync::Arc<dyn Platform> = machine.platform().clone();
        let mut memory = DmaBuffer::zeroed_in(&platform, (PAGES * PAGE / 8) as usize).unwrap();
        (0..).zip(memory.iter_mut()).for_each(|(place, word): (u64, &mut u64)| *word = MARK | place);
        Self { engine, lazy, memory, maps: Vec::new(), lists: Vec::new(), machine }
    }

    fn phys(&self, offset: u64) -> PhysAddr {
        self.memory.phys().wrapping_add(offset)
    }

    fn live(&self) -> impl Iterator<Item = Piece> + '_ {
        let listed = self.lists.iter().flat_map(|(_, pieces)| pieces);
        self.maps.iter().chain(listed).copied()
    }

    fn read(&self, at: DmaAddr) -> Option<u64> {
        let mut word = [0; 8];
        self.engine.device_read(at, &mut word).ok().map(|()| u64::from_le_bytes(word))
    }

    fn apply(&mut self, step: &Step) {
        let device = self.engine.device().clone();
        match step {
            Step::Map { word, words, dir } => {
                let (offset, len) = (word * 8, words * 8);
                // SAFETY: the memory lives as long as the world; the device writes what is there already.
                let at = unsafe { device.map_phys(self.phys(offset), len as usize, *dir, Attrs::empty()) };
                let piece = Piece { at: at.unwrap(), offset, len, dir: *dir };
                self.check_new(&[piece]);
                self.maps.push(piece);
            }
            Step::Unmap(index) if !self.maps.is_empty() => {
                let piece = self.maps.swap_remove(index.index(self.maps.len()));
                self.unmap(piece);
            }
            Step::List { pages, dir } => {
                let entry = |&(page, pages): &(u64, u64)| {
                    SgEntry::new(self.phys(page * PAGE), (pages * PAGE) as usize)
                };
                let mut list: Vec<_> = pages.iter().map(entry).collect();
                // SAFETY: as for a single map.
                let count = unsafe { device.map_sg(&mut list, *dir, Attrs::empty()) }.unwrap();
                let pieces = self.segments(&list, count, *dir);
                self.check_new(&pieces);
                self.lists.push((list, pieces));
            }
            Step::Unlist(index) if !self.lists.is_empty() => {
                let (list, pieces) = self.lists.swap_remove(index.index(self.lists.len()));
                // SAFETY: mapped above, ended once.
                unsafe { device.unmap_sg(&list, pieces[0].dir, Attrs::empty()) }.unwrap();
                self.check_gone(&pieces);
            }
            Step::Tick => self.machine.iommu().unwrap().tick(self.machine.platform().now()),
            Step::Unmap(_) | Step::Unlist(_) => {}
        }
    }

    fn unmap(&self, piece: Piece) {
        let (at, len) = (piece.at, piece.len as usize);
        // SAFETY: mapped as a step, ended once.
        unsafe { self.engine.device().unmap_single(at, len, piece.dir, Attrs::empty()) }.unwrap();
        self.check_gone(&[piece]);
    }

    /// The pieces of a list, element by element: segments keep the limits, and together have every byte in order.
    fn segments(&self, list: &[SgEntry], count: usize, dir: Direction) -> Vec<Piece> {
        let total: u64 = list.iter().map(|entry| entry.len as u64).sum();
        let segments = &list[..count];
        assert_eq!(segments.iter().map(|segment| segment.dma_len as u64).sum::<u64>(), total);
        let mut bytes = segments.iter().flat_map(|segment| {
            let (first, len) = (segment.dma_address.get(), segment.dma_len as u64);
            assert!(len <= MAX_SEGMENT, "{segment:?} is too long");
            assert_eq!(first & !BOUNDARY, (first + len - 1) & !BOUNDARY, "{segment:?} crosses a boundary");
            (first..first + len).step_by(PAGE as usize)
        });
        let mut pieces = Vec::new();
        for entry in list {
            let offset = entry.phys.get() - self.memory.phys().get();
            for page in (offset..offset + entry.len as u64).step_by(PAGE as usize) {
                let at = DmaAddr::new(bytes.next().expect("as many pages as there are"));
                pieces.push(Piece { at, offset: page, len: PAGE, dir });
            }
        }
        pieces
    }

    /// No address is live twice, and a new mapping leads to its own memory whatever was there before.
    fn check_new(&self, new: &[Piece]) {
        for piece in new {
            let page = |piece: &Piece| piece.at.align_down(PAGE).get()..piece.at.get() + piece.len;
            let (one, end) = (page(piece), |other: &std::ops::Range<u64>| other.end.next_multiple_of(PAGE));
            for other in self.live().map(|other| page(&other)) {
                assert!(end(&other) <= one.start || end(&one) <= other.start, "{piece:?} is in use");
            }
            self.check(piece);
        }
    }

    /// The device reaches the first and the last word as it may, and of the rest of a page nothing.
    fn check(&self, piece: &Piece) {
        for word in [0, piece.len - 8] {
            let (at, value) = (piece.at.wrapping_add(word), MARK | ((piece.offset + word) / 8));
            assert_eq!(self.read(at), piece.dir.device_reads().then_some(value), "read of {piece:?}");
            // What is there already, so that the memory stays as it is.
            let written = self.engine.device_write(at, &value.to_le_bytes());
            assert_eq!(written.is_ok(), piece.dir.device_writes(), "write to {piece:?}");
        }
        let end = piece.at.wrapping_add(piece.len);
        for outside in [piece.at.align_down(PAGE), end] {
            let is_inside =
                outside >= piece.at && outside < end || outside.is_aligned(PAGE) && outside == end;
            if !self.lazy && !is_inside && piece.dir.device_reads() {
                assert_eq!(self.read(outside), Some(0), "beside {piece:?}");
            }
        }
    }

    /// After a strict unmap the device is out.
    fn check_gone(&self, pieces: &[Piece]) {
        for piece in pieces.iter().filter(|_| !self.lazy) {
            assert_eq!(self.read(piece.at), None, "{piece:?} is gone");
            let last = piece.at.wrapping_add(piece.len - 8);
            assert!(self.engine.device_write(last, &[0; 8]).is_err(), "{piece:?} is gone");
        }
    }
}

fn run(lazy: bool, steps: &[Step]) {
    let mut world = World::new(lazy);
    for step in steps {
        world.apply(step);
        world.live().for_each(|piece| world.check(&piece));
    }
    while let Some(piece) = world.maps.pop() {
        world.unmap(piece);
    }
    let changed = (0..).zip(world.memory.iter()).find(|&(place, &word)| word != MARK | place);
    assert_eq!(changed, None, "memory that nobody wrote");
    assert_eq!(world.machine.check_free_memory(), []);
}

/// What an owner of a group does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Claim,
    Release,
    Attach(usize),
    Replace(usize),
    Detach,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        2 => Just(Act::Claim),
        1 => Just(Act::Release),
        3 => (0..2_usize).prop_map(Act::Attach),
        1 => (0..2_usize).prop_map(Act::Replace),
        2 => Just(Act::Detach),
    ];
    prop::collection::vec(act, 1..30)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn a_strict_device_reaches_what_is_mapped_as_it_is_mapped_and_nothing_else() {
    proptest!(config(24), |(steps in steps())| run(false, &steps));
}

#[test]
fn an_address_of_a_lazy_domain_leads_where_its_newest_map_says() {
    proptest!(config(24), |(steps in steps())| run(true, &steps));
}

#[test]
fn a_group_is_in_one_domain_whoever_has_it_and_a_claimed_one_is_blocked_until_it_is_attached() {
    proptest!(config(24), |(acts in acts())| {
        let machine = boot(|_| {});
        let address = SimMachine::address(Machine::ENGINE);
        let (function, device) = machine.bind(address).unwrap();
        drop(device);
        let (group, engine) = (machine.group(address).unwrap(), RawEngine::new(&*function));
        let at = DmaAddr::new(0x10_0000);
        let mut pages = [page(&machine), page(&machine)];
        let domains = [0, 1].map(|number: usize| {
            pages[number].fill(number as u8 + 1);
            let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
            // SAFETY: the page lives as long as the domain, and is only read.
            unsafe { domain.map(at, pages[number].phys(), PAGE, Prot::READ) }.1.unwrap();
            domain
        });
        let (mut claimed, mut place) = (false, None);
        for act in acts {
            let (done, expected) = match act {
                Act::Claim => (group.claim_dma_owner(Owner(1)).is_ok(), !claimed && place.is_none()),
                Act::Release => (group.release_dma_owner(Owner(1)).is_ok(), claimed),
                Act::Attach(to) => (group.attach(&domains[to]).is_ok(), place.is_none()),
                Act::Replace(to) => (group.replace(&domains[to]).is_ok(), true),
                Act::Detach => (group.detach().is_ok(), true),
            };
            prop_assert_eq!(done, expected, "{:?}", act);
            match act {
                Act::Claim => claimed |= done,
                Act::Release | Act::Detach => {
                    place = if done { None } else { place };
                    claimed &= !(done && matches!(act, Act::Release));
                }
                Act::Attach(to) | Act::Replace(to) => place = if done { Some(to) } else { place },
            }
            // In the default domain nothing is mapped there, and in the blocked one nothing at all.
            prop_assert_eq!(engine.read(at), place.map(|number| [number as u8 + 1; 8]));
            prop_assert!(!engine.write(at, [9; 8]));
            let domain = group.domain().unwrap();
            let blocked = domain.domain_type() == iommu_core::DomainType::Blocked;
            prop_assert_eq!(blocked, claimed && place.is_none());
        }
    });
}
