//! The rules of every backend, on each machine that there is here: what holds, and what does not and why.

mod common;

use std::time::Duration;

use backend_sim::SimMachine;
use backend_sim::sim_hardware::{Machine, iommu};
use common::{IDENTITY, LAZY, boot, boot_without_iommu};
use conformance::modes::{Mode, SIM, SIM_LAZY, SWIOTLB};

fn check(machine: &SimMachine, mode: Mode) {
    let bench = machine.engine(Machine::ENGINE).unwrap().waiving(mode.waivers);
    let report = conformance::run(&bench);
    assert!(report.passed(), "\n{report}");
    drop(bench);
    assert_eq!(machine.check_free_memory(), []);
    let quarantined = machine.iommu().map_or(0, |iommu| iommu.statistics().quarantined);
    assert_eq!(quarantined, 0);
}

#[test]
fn strict_dma_keeps_every_rule() {
    check(&boot(|_| {}), SIM);
}

#[test]
fn strict_dma_of_an_untrusted_device_keeps_every_rule() {
    check(&boot(|config| config.untrusted = vec![SimMachine::address(Machine::ENGINE)]), SIM);
}

#[test]
fn strict_dma_keeps_every_rule_on_an_iommu_that_remembers_absence() {
    let iommu = iommu::Config { np_cache: true, ..iommu::Config::default() };
    check(&boot(|config| config.iommu = Some(iommu)), SIM);
}

#[test]
fn strict_dma_keeps_every_rule_on_an_iommu_that_forgets() {
    let iommu = iommu::Config { iotlb_capacity: Some(2), ..iommu::Config::default() };
    check(&boot(|config| config.iommu = Some(iommu)), SIM);
}

#[test]
fn lazy_dma_leaves_memory_reachable_until_the_flush() {
    // The flush does not come by itself, so that this does not depend on time.
    let machine = boot(|config| {
        config.settings = LAZY;
        config.tick = Duration::from_secs(3600);
    });
    check(&machine, SIM_LAZY);
}

#[test]
fn identity_confines_nothing() {
    check(&boot(|config| config.settings = IDENTITY), SWIOTLB);
}

#[test]
fn without_an_iommu_nothing_is_confined() {
    check(&boot_without_iommu(), SWIOTLB);
}
