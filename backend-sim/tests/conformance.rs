//! The rules of every backend, on each machine that there is here: what holds, and what does not and why.

mod common;

use std::time::Duration;

use backend_sim::SimMachine;
use backend_sim::sim_hardware::{Machine, iommu};
use common::{IDENTITY, LAZY, boot, boot_without_iommu};
use conformance::Waiver;

fn check(machine: &SimMachine, waivers: &[Waiver]) {
    let bench = machine.engine(Machine::ENGINE).unwrap().waiving(waivers);
    let report = conformance::run(&bench);
    assert!(report.passed(), "\n{report}");
    drop(bench);
    assert_eq!(machine.check_free_memory(), []);
    let quarantined = machine.iommu().map_or(0, |iommu| iommu.statistics().quarantined);
    assert_eq!(quarantined, 0);
}

#[test]
fn strict_dma_keeps_every_rule() {
    check(&boot(|_| {}), &[]);
}

#[test]
fn strict_dma_of_an_untrusted_device_keeps_every_rule() {
    check(&boot(|config| config.untrusted = vec![SimMachine::address(Machine::ENGINE)]), &[]);
}

#[test]
fn strict_dma_keeps_every_rule_on_an_iommu_that_remembers_absence() {
    let iommu = iommu::Config { np_cache: true, ..iommu::Config::default() };
    check(&boot(|config| config.iommu = Some(iommu)), &[]);
}

#[test]
fn strict_dma_keeps_every_rule_on_an_iommu_that_forgets() {
    let iommu = iommu::Config { iotlb_capacity: Some(2), ..iommu::Config::default() };
    check(&boot(|config| config.iommu = Some(iommu)), &[]);
}

#[test]
fn lazy_dma_leaves_memory_reachable_until_the_flush() {
    // The flush does not come by itself, so that this does not depend on time.
    let machine = boot(|config| {
        config.settings = LAZY;
        config.tick = Duration::from_secs(3600);
    });
    let waived = Waiver {
        check: "just_unmapped_is_refused",
        reason: "a lazy domain invalidates when its flush queue is flushed, not when a map ends",
    };
    check(&machine, &[waived]);
}

/// What nothing refuses where nothing translates. What was bounced and is the device's no more is a slot of the pool, so
/// that memory just unmapped is safe even here, and so is what the device may only read.
const UNTRANSLATED: [Waiver; 2] = [
    Waiver { check: "unmapped_is_refused", reason: "every physical address below the mask is the device's" },
    Waiver { check: "from_device_refuses_reads", reason: "without a page table there are no permissions" },
];

#[test]
fn identity_confines_nothing() {
    check(&boot(|config| config.settings = IDENTITY), &UNTRANSLATED);
}

#[test]
fn without_an_iommu_nothing_is_confined() {
    check(&boot_without_iommu(), &UNTRANSLATED);
}
