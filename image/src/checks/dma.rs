//! A device that does as it is told, and what it reaches.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use dma_api::DmaBuffer;
use iommu_core::{DomainType, FaultKind, Owner};
use platform::DmaAddr;
use platform::pci::PciAddress;
use platform::time::poll_until;
use qemu_devices::{EDU_BUFFER, Edu, EduBench};

use super::{EDU, Expected, UNTRUSTED_EDU, ensure, failed};
use crate::kernel::Machine;

const PATTERN: [u8; EDU_BUFFER] = [0xa5; EDU_BUFFER];

/// What everything else rests on: with a wrong option QEMU passes DMA by its IOMMU, and all would be green.
pub(super) fn canary(machine: &Machine, _: &Expected) -> Result<(), String> {
    let platform = machine.shared_platform();
    let mut page = DmaBuffer::<u8>::zeroed_in(&platform, EDU_BUFFER).map_err(failed("no page"))?;
    page.copy_from_slice(&PATTERN);
    let at = DmaAddr::new(page.phys().get());
    let group = machine.group(EDU).ok_or("edu has no group")?;
    let edu = Edu::new(machine.function(EDU)).map_err(failed("edu"))?;
    // Blocked: edu's buffer, which holds zeros, goes nowhere.
    let owner = Owner(1);
    group.claim_dma_owner(owner).map_err(failed("claiming"))?;
    edu.write(&*platform, at, 0, EDU_BUFFER).map_err(failed("edu"))?;
    ensure(page[..] == PATTERN[..], "a blocked device wrote to memory")?;
    group.release_dma_owner(owner).map_err(failed("releasing"))?;
    // Not blocked: the same command, to the same place.
    // SAFETY: the device does as this check says.
    unsafe { group.set_type_trusted(DomainType::Identity) }.map_err(failed("an identity domain"))?;
    edu.write(&*platform, at, 0, EDU_BUFFER).map_err(failed("edu"))?;
    ensure(page.iter().all(|&byte| byte == 0), "an unblocked device wrote nothing")?;
    group.set_type(DomainType::Dma).map_err(failed("a DMA domain"))?;
    // What it was refused is no later check's.
    machine.events();
    machine.take_faults();
    Ok(())
}

fn rules(machine: &Machine, address: PciAddress) -> Result<(), String> {
    let (function, device) = machine.bind(address).map_err(failed("binding"))?;
    let edu = Edu::new(function).map_err(failed("edu"))?;
    let bench = EduBench::new(edu, device).map_err(failed("edu"))?;
    let report = conformance::run(&bench);
    // They provoke faults.
    machine.events();
    machine.take_faults();
    ensure(report.passed(), format!("\n{report}"))
}

pub(super) fn trusted(machine: &Machine, _: &Expected) -> Result<(), String> {
    rules(machine, EDU)
}

pub(super) fn untrusted(machine: &Machine, _: &Expected) -> Result<(), String> {
    rules(machine, UNTRUSTED_EDU)
}

/// One refused write of four bytes: an event, an interrupt, and a fault that names the device.
pub(super) fn faults(machine: &Machine, expected: &Expected) -> Result<(), String> {
    const NOWHERE: DmaAddr = DmaAddr::new(0x6000_0000_0000);
    let platform = machine.shared_platform();
    // Bound, so that it is its driver's domain that refuses.
    let (function, _device) = machine.bind(EDU).map_err(failed("binding"))?;
    let edu = Edu::new(function).map_err(failed("edu"))?;
    edu.write(&*platform, NOWHERE, 0, 4).map_err(failed("edu"))?;
    let came = poll_until(&*platform, Duration::from_millis(100), || machine.events()).is_ok();
    let faults = machine.take_faults();
    ensure(came == expected.logs_events, format!("an interrupt of the IOMMU: {came}"))?;
    let named = faults.iter().all(|fault| fault.kind == FaultKind::Page && fault.requester == EDU);
    ensure(
        named && faults.len() == usize::from(came),
        format!("{} faults: {:?}", faults.len(), faults.first()),
    )
}
