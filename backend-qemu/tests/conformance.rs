//! The rules of every backend, on QEMU's hardware: what holds, and what does not and why.

mod common;

use backend_qemu::{Config, QemuMachine};
use common::{EDU, IDENTITY, start, with_edu};
use conformance::Waiver;

fn check(config: Config, waivers: &[Waiver]) {
    let Some(machine) = start(config) else { return };
    let bench = machine.edu(EDU).unwrap().waiving(waivers);
    let report = conformance::run(&bench);
    machine.health().unwrap();
    assert!(report.passed(), "\n{report}");
    drop(bench);
    nothing_is_left(&machine);
}

fn nothing_is_left(machine: &QemuMachine) {
    assert_eq!(machine.check_free_memory(), []);
    let statistics = machine.iommu().map(|iommu| iommu.statistics()).unwrap_or_default();
    assert_eq!(statistics.quarantined, 0);
    assert_eq!(statistics.maps, statistics.unmaps);
}

#[test]
fn strict_dma_keeps_every_rule() {
    check(with_edu(), &[]);
}

#[test]
fn strict_dma_of_an_untrusted_device_keeps_every_rule() {
    check(with_edu().untrusted(vec![EDU]), &[]);
}

/// What nothing refuses where nothing translates, and nothing need be bounced.
const UNTRANSLATED: [Waiver; 4] = [
    Waiver { check: "unmapped_is_refused", reason: "every physical address is the device's" },
    Waiver { check: "just_unmapped_is_refused", reason: "every physical address is the device's" },
    Waiver { check: "to_device_refuses_writes", reason: "without a page table there are no permissions" },
    Waiver { check: "from_device_refuses_reads", reason: "without a page table there are no permissions" },
];

#[test]
fn identity_confines_nothing() {
    check(with_edu().settings(IDENTITY), &UNTRANSLATED);
}

#[test]
fn without_an_iommu_nothing_is_confined() {
    check(with_edu().without_iommu(), &UNTRANSLATED);
}
