//! Which pages a device has written, as its domain tells: by the marks that the unit sets in the table.

mod common;

use std::sync::Arc;

use backend_sim::sim_hardware::Machine;
use backend_sim::{SimMachine, sim_hardware};
use common::boot;
use common::engine::RawEngine;
use dma_api::DmaBuffer;
use iommu_core::{DirtyError, Domain, DomainError, Group, GroupError, Owner, PagingFlags};
use platform::{DmaAddr, PhysAddr, Platform, Prot};

/// 64 KiB, which is one page of 16 entries, one page of 4 KiB behind it, and one that stands alone: number 20.
const RUN: u64 = 17;
const PAGES: u64 = 21;
const PAGE: u64 = 4096;
const IOVA: u64 = 0x40_0000;
const BYTES: [u8; 8] = *b"a visit!";

struct Bench {
    _machine: SimMachine,
    engine: RawEngine,
    group: Arc<Group>,
    domain: Arc<Domain>,
    _memory: DmaBuffer<u64>,
}

fn bench() -> Bench {
    let machine = boot(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    let (function, device) = machine.bind(address).unwrap();
    drop(device);
    let group = machine.group(address).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    let domain = group.alloc_unmanaged(PagingFlags::DIRTY_TRACKING).unwrap();
    let platform: Arc<dyn Platform> = machine.platform().clone();
    let memory = DmaBuffer::zeroed_in(&platform, (64 * PAGE / 8) as usize).unwrap();
    let phys = PhysAddr::new(memory.phys().get().next_multiple_of(16 * PAGE));
    // SAFETY: the memory outlives the machine's devices, and nobody looks at it.
    unsafe {
        let both = Prot::READ | Prot::WRITE;
        domain.map(DmaAddr::new(IOVA), phys, RUN * PAGE, both).1.unwrap();
        domain.map(DmaAddr::new(IOVA + 20 * PAGE), phys, PAGE, both).1.unwrap();
    }
    group.attach(&domain).unwrap();
    Bench { engine: RawEngine::new(&*function), group, domain, _machine: machine, _memory: memory }
}

impl Bench {
    fn write(&self, page: u64) {
        assert!(self.engine.write(DmaAddr::new(IOVA + page * PAGE), BYTES));
    }

    /// Numbers of the pages of 4 KiB that are said to be written.
    fn dirty(&self, clear: bool) -> Result<Vec<u64>, DirtyError> {
        let mut pages = Vec::new();
        let mut report = |at: DmaAddr, len: u64| {
            let first = (at.get() - IOVA) / PAGE;
            pages.extend(first..first + len / PAGE);
        };
        self.domain.read_and_clear_dirty(DmaAddr::new(IOVA), PAGES * PAGE, clear, &mut report)?;
        Ok(pages)
    }
}

#[test]
fn each_round_tells_what_was_written_since_the_last() {
    let bench = bench();
    // What the unit remembers from before is noted all the same.
    bench.write(20);
    bench.domain.set_dirty_tracking(true).unwrap();
    assert_eq!(bench.dirty(true), Ok(vec![]));
    bench.write(20);
    assert_eq!(bench.dirty(false), Ok(vec![20]));
    assert_eq!(bench.dirty(true), Ok(vec![20]));
    assert_eq!(bench.dirty(true), Ok(vec![]));
    // Forgotten by the unit too, so the next write is noted again.
    bench.write(20);
    bench.write(16);
    assert_eq!(bench.dirty(true), Ok(vec![16, 20]));
    assert!(bench.engine.read(DmaAddr::new(IOVA)).is_some());
    assert_eq!(bench.dirty(true), Ok(vec![]), "reads are not writes");
}

#[test]
fn a_device_that_comes_later_is_tracked_and_off_is_off() {
    let bench = bench();
    bench.group.detach().unwrap();
    bench.domain.set_dirty_tracking(true).unwrap();
    bench.group.attach(&bench.domain).unwrap();
    bench.write(16);
    assert_eq!(bench.dirty(true), Ok(vec![16]));
    bench.domain.set_dirty_tracking(false).unwrap();
    assert_eq!(bench.dirty(true), Err(DirtyError::Off));
}

/// The marks are in one entry of several; the page is told as a whole.
#[test]
fn a_page_of_several_entries_is_written_when_one_of_them_says_so() {
    let bench = bench();
    bench.domain.set_dirty_tracking(true).unwrap();
    bench.write(5);
    let told = bench.dirty(true).unwrap();
    assert!(told.contains(&5), "{told:?}");
    bench.write(9);
    let told = bench.dirty(true).unwrap();
    assert!(told.contains(&9), "{told:?}");
    assert_eq!(bench.dirty(true), Ok(vec![]));
}

#[test]
fn a_unit_without_marks_has_no_such_domains() {
    let plain = sim_hardware::iommu::Config::default();
    let machine = boot(|config| {
        // HASup and HDSup.
        let efr = plain.efr & !(1 << 49 | 1 << 52);
        config.iommu = Some(sim_hardware::iommu::Config { efr, ..plain });
    });
    let group = machine.group(SimMachine::address(Machine::ENGINE)).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    let domain = group.alloc_unmanaged(PagingFlags::DIRTY_TRACKING);
    assert_eq!(domain.err(), Some(GroupError::from(DomainError::Unsupported)));
}
