//! Lazy invalidation on QEMU's IOMMU: not unless it is asked for by name; then the device reaches what was unmapped until the queue
//! is drained, and not a moment longer.

mod common;

use std::time::Duration;

use backend_qemu::{EduBench, QemuMachine};
use common::{EDU, PAGE, STRICT, pattern, start, with_edu};
use conformance::{Bench, Waiver};
use dma_api::{Bidirectional, DmaBuffer, Streaming};
use iommu_core::{DomainType, Settings};
use platform::{Clock, DmaAddr};

/// So that nothing but the test drains a queue.
const NEVER: Duration = Duration::from_secs(3600);

/// QEMU's IOMMU says that it remembers what was not there (NpCache), as what a hypervisor emulates does: then DMA is strict,
/// whatever the settings ask for.
#[test]
fn an_emulated_iommu_is_not_used_lazily_unless_somebody_asks_for_it_by_name() {
    let settings = Settings { lazy: true, ..STRICT };
    let Some(machine) = start(with_edu().settings(settings)) else { return };
    let group = machine.group(EDU).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::Dma));
    group.set_type(DomainType::DmaFq).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::DmaFq));
    group.set_type(None).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::Dma));
}

fn lazy() -> Option<(QemuMachine, EduBench)> {
    let machine = start(with_edu().tick(NEVER))?;
    machine.group(EDU).unwrap().set_type(DomainType::DmaFq).unwrap();
    let bench = machine.edu(EDU).unwrap();
    Some((machine, bench))
}

fn write(bench: &EduBench, at: DmaAddr, seed: u8) {
    bench.device_write(at, &pattern(seed, PAGE)).unwrap();
}

fn mapped(bench: &EduBench) -> Streaming<'_, DmaBuffer<u8>, Bidirectional> {
    Streaming::map(bench.device(), DmaBuffer::zeroed(bench.device(), PAGE).unwrap()).unwrap()
}

/// A page that the device has written, so that the IOMMU remembers it, and which is then unmapped.
fn unmapped(bench: &EduBench) -> (DmaAddr, DmaBuffer<u8>) {
    let mapped = mapped(bench);
    let at = mapped.dma_address();
    write(bench, at, 2);
    (at, mapped.unmap().unwrap())
}

#[test]
fn what_is_unmapped_lazily_is_refused_after_the_queue_was_drained() {
    let Some((machine, bench)) = lazy() else { return };
    let (at, page) = unmapped(&bench);
    assert!(page[..] == pattern(2, PAGE)[..]);
    write(&bench, at, 3);
    assert!(page[..] == pattern(3, PAGE)[..], "nothing is stale: then no test of draining can fail");
    let iommu = machine.iommu().unwrap();
    let flushes = machine.group(EDU).unwrap().domain().unwrap().full_flushes();
    iommu.tick(machine.platform().now());
    assert_eq!(machine.group(EDU).unwrap().domain().unwrap().full_flushes(), flushes + 1);
    write(&bench, at, 4);
    assert!(page[..] == pattern(3, PAGE)[..], "the device wrote after the queue was drained");
    machine.health().unwrap();
}

/// The device goes on; a page that is unmapped and one that stays are told apart.
#[test]
fn draining_the_queue_leaves_what_is_mapped() {
    let Some((machine, bench)) = lazy() else { return };
    let kept = mapped(&bench);
    let (at, page) = unmapped(&bench);
    machine.iommu().unwrap().tick(machine.platform().now());
    write(&bench, at, 5);
    write(&bench, kept.dma_address(), 6);
    assert!(page[..] == pattern(2, PAGE)[..]);
    assert!(kept.unmap().unwrap()[..] == pattern(6, PAGE)[..]);
}

/// What lazy invalidation cannot keep, and nothing else.
#[test]
fn lazy_dma_keeps_every_rule_but_one() {
    let Some(machine) = start(with_edu().tick(NEVER)) else { return };
    machine.group(EDU).unwrap().set_type(DomainType::DmaFq).unwrap();
    let waiver = Waiver {
        check: "just_unmapped_is_refused",
        reason: "unmapped memory is reachable until the queue is drained",
    };
    let bench = machine.edu(EDU).unwrap().waiving(&[waiver]);
    let report = conformance::run(&bench);
    assert!(report.passed(), "\n{report}");
    drop(bench);
    let statistics = machine.iommu().unwrap().statistics();
    assert_eq!((statistics.quarantined, statistics.maps), (0, statistics.unmaps));
}
