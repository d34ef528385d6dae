//! Random tables of the driver, read by the simulated hardware's own walker: a device reaches each mapped byte where it was
//! mapped and with the rights that were asked, and nothing else.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine;
use common::boot;
use common::engine::RawEngine;
use dma_api::DmaBuffer;
use iommu_core::{Domain, Owner, PagingFlags};
use platform::{DmaAddr, PhysAddr, Platform, Prot};
use proptest::prelude::*;

const PAGE: u64 = 4096;
/// Memory that devices may be led to, by 4 KiB. Large enough for pages of 4 MiB at any alignment.
const MEMORY_PAGES: u64 = 3 << 10;
/// Where things are mapped: the first address of all, where indices change at each level, and the last address of 48 bits.
const REGIONS: [u64; 5] = [0, 0x3ff0_0000, 0x7f_ff80_0000, 0x1234_5678_9000, (1 << 48) - REGION_PAGES * PAGE];
const REGION_PAGES: u64 = 4 << 10;

/// What happens to a range of a region: a map to a place in memory, or an unmap.
#[derive(Clone, Debug)]
enum Step {
    Map { region: usize, page: u64, pages: u64, memory: u64, prot: Prot },
    Unmap { region: usize, page: u64, pages: u64 },
}

/// So many pages of 4 KiB, from one to more than 4 MiB; powers of two and others.
fn lengths() -> impl Strategy<Value = u64> {
    prop_oneof![1..20_u64, (0..12_u32).prop_map(|bits| 1 << bits), 400..1100_u64]
}

/// A page number below `end`, as often as not a multiple of a large page.
fn places(end: u64) -> impl Strategy<Value = u64> {
    (0..end, 0..12_u32).prop_map(|(page, bits)| page >> bits << bits)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const RIGHTS: &[Prot] = &[Prot::READ, Prot::WRITE, Prot::READ.union(Prot::WRITE)];
    let range = || (0..REGIONS.len(), places(REGION_PAGES), lengths());
    let map = (range(), places(MEMORY_PAGES), prop::sample::select(RIGHTS)).prop_map(
        |((region, page, pages), memory, prot)| {
            let pages = pages.min(REGION_PAGES - page).min(MEMORY_PAGES - memory);
            Step::Map { region, page, pages, memory, prot }
        },
    );
    let unmap = range().prop_map(|(region, page, pages)| Step::Unmap { region, page, pages });
    prop::collection::vec(prop_oneof![3 => map, 1 => unmap], 1..24)
}

/// Mapped pages of 4 KiB by I/O address: where they lead in the memory, and with which rights.
type Model = BTreeMap<u64, (u64, Prot)>;

struct Bench {
    machine: SimMachine,
    engine: RawEngine,
    domain: Arc<Domain>,
    /// Each word holds its own place.
    memory: DmaBuffer<u64>,
}

impl Bench {
    fn new() -> Self {
        let machine = boot(|_| {});
        let address = SimMachine::address(Machine::ENGINE);
        let (function, device) = machine.bind(address).unwrap();
        drop(device);
        let group = machine.group(address).unwrap();
        group.claim_dma_owner(Owner(1)).unwrap();
        let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
        assert_eq!(domain.aperture(), (DmaAddr::new(0), DmaAddr::new((1 << 48) - 1)));
        group.attach(&domain).unwrap();
        let platform: Arc<dyn Platform> = machine.platform().clone();
        let mut memory = DmaBuffer::zeroed_in(&platform, (MEMORY_PAGES * PAGE / 8) as usize).unwrap();
        (0..).zip(memory.iter_mut()).for_each(|(at, word)| *word = at);
        Self { engine: RawEngine::new(&*function), machine, domain, memory }
    }

    fn phys(&self, page: u64) -> PhysAddr {
        self.memory.phys().wrapping_add(page * PAGE)
    }

    fn apply(&self, step: &Step, model: &mut Model) {
        match *step {
            Step::Map { region, page, pages, memory, prot } => {
                let iova = REGIONS[region] + page * PAGE;
                let (to, len) = (self.phys(memory), pages * PAGE);
                // SAFETY: the memory lives as long as the machine, and is only looked at while the engine is idle.
                let (mapped, _in_use) = unsafe { self.domain.map(DmaAddr::new(iova), to, len, prot) };
                let free = (0..pages).take_while(|n| !model.contains_key(&(iova + n * PAGE))).count() as u64;
                assert_eq!(mapped, free * PAGE, "a map goes up to what is there");
                model.extend((0..free).map(|n| (iova + n * PAGE, (memory + n, prot))));
            }
            Step::Unmap { region, page, pages } => {
                let iova = REGIONS[region] + page * PAGE;
                let mut gather = self.domain.gather();
                // SAFETY: nobody else uses the domain.
                let unmapped = unsafe { self.domain.unmap(DmaAddr::new(iova), pages * PAGE, &mut gather) };
                let _flushed = self.domain.sync(gather).unwrap();
                for at in (iova..iova + unmapped).step_by(PAGE as usize) {
                    assert!(model.remove(&at).is_some(), "{at:#x} was not mapped");
                }
            }
        }
    }

    /// Reads and writes a word of a page of I/O addresses.
    fn assert_page(&mut self, iova: u64, word: u64, expected: Option<(u64, Prot)>) {
        let at = DmaAddr::new(iova + 8 * word);
        let (page, prot) = expected.unwrap_or((0, Prot::empty()));
        let place = page * PAGE / 8 + word;
        let read = self.engine.read(at).map(u64::from_le_bytes);
        assert_eq!(read, prot.contains(Prot::READ).then_some(place), "read of {at}");
        let written = self.engine.write(at, (!place).to_le_bytes());
        assert_eq!(written, prot.contains(Prot::WRITE), "write to {at}");
        let found = &mut self.memory[place as usize];
        if written {
            assert_eq!(*found, !place, "a write went elsewhere");
            *found = place;
        }
        let refused = usize::from(read.is_none()) + usize::from(!written);
        assert_eq!(self.machine.take_faults().len(), refused, "each refusal is logged");
    }

    /// Visits a sample of the mapped pages, all that are at an end of something, and their neighbours.
    fn assert_agrees(&mut self, model: &Model, mut random: u64) {
        let mut visits = Vec::new();
        for &iova in model.keys() {
            let neighbours = [iova.wrapping_sub(PAGE), iova + PAGE];
            let holes: Vec<u64> = neighbours.into_iter().filter(|at| !model.contains_key(at)).collect();
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if !holes.is_empty() || random >> 56 == 0 {
                visits.push((iova, random >> 32));
                visits.extend(holes.into_iter().map(|at| (at, random >> 23)));
            }
        }
        for (iova, word) in visits {
            self.assert_page(iova, word % (PAGE / 8), model.get(&iova).copied());
        }
        let stray = (0..).zip(self.memory.iter()).find(|(place, word)| *place != **word);
        assert_eq!(stray, None, "memory was written that nobody named");
    }
}

#[test]
fn hardware_finds_what_was_mapped_and_nothing_else() {
    let config = ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps(), random: u64)| {
        let mut bench = Bench::new();
        let mut model = Model::new();
        for (number, step) in (0..).zip(&steps) {
            bench.apply(step, &mut model);
            // What the hardware has remembered must not outlive its unmap.
            if number % 8 == 7 {
                bench.assert_agrees(&model, random ^ number);
            }
        }
        bench.assert_agrees(&model, random);
    });
}
