//! The rules of every backend, on QEMU's hardware: what holds, and what does not and why.

mod common;

use backend_qemu::{Config, QemuMachine};
use common::{EDU, IDENTITY, start, with_edu};
use conformance::modes::{Mode, QEMU, QEMU_IDENTITY};

fn check(config: Config, mode: Mode) {
    let Some(machine) = start(config) else { return };
    let bench = machine.edu(EDU).unwrap().waiving(mode.waivers);
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
    check(with_edu(), QEMU);
}

#[test]
fn strict_dma_of_an_untrusted_device_keeps_every_rule() {
    check(with_edu().untrusted(vec![EDU]), QEMU);
}

#[test]
fn identity_confines_nothing() {
    check(with_edu().settings(IDENTITY), QEMU_IDENTITY);
}

#[test]
fn without_an_iommu_nothing_is_confined() {
    check(with_edu().without_iommu(), QEMU_IDENTITY);
}
