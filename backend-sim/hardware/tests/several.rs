//! Machines with more than one IOMMU and more than one segment.

mod common;

use std::sync::Arc;

use common::*;
use platform::Mmio;
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use sim_hardware::bus::BusError;
use sim_hardware::interrupts::InterruptController;
use sim_hardware::iommu::{AmdIommu, Config, Units};
use sim_hardware::pci::{Acs, Builder, IommuFunction};
use sim_hardware::ram::Ram;

const SECOND: RequesterId = RequesterId::from_parts(0x40, 0, 2);
const FAR: RequesterId = RequesterId::from_parts(0x40, 1, 0);

#[test]
fn each_requester_passes_the_unit_that_it_is_behind() {
    let ram = Ram::new(&[(0, 16 << 20)]).unwrap();
    let interrupts = InterruptController::new();
    let units = [(); 2].map(|()| AmdIommu::new(Config::default(), Arc::clone(&ram), interrupts.clone() as _));
    let mut behind = Units::new();
    behind.add(RequesterId::new(0), RequesterId::from_parts(0xff, 31, 7), &units[0]);
    behind.add(FAR, FAR, &units[1]);
    let probes: [Arc<Probe>; 2] = Default::default();
    let mut builder = Builder::new().segment(3);
    for (id, capability, unit) in [(IOMMU, 0x40, &units[0]), (SECOND, 0x80, &units[1])] {
        let msi = Arc::clone(unit);
        let function = IommuFunction { id, capability, base: 0xfd00_0000, np_cache: false, iotlb_sup: true };
        let changed = move |address, data, on| msi.set_msi(address, data, on);
        builder = builder.iommu(function, Box::new(changed));
    }
    for (id, probe) in [A, FAR].into_iter().zip(&probes) {
        builder = builder.endpoint(id, Arc::clone(probe) as _, false, Acs::Absent);
    }
    let pci = builder.build(Arc::clone(&ram), Some(Arc::new(behind)), interrupts.clone() as _);
    let write = |id, offset, value| pci.write32(PciAddress { segment: 3, id }, offset, value);
    for id in [A, FAR] {
        write(id, 0x04, 0x6);
    }
    // A capability is where firmware put it, and no other segment answers.
    for (id, capability) in [(IOMMU, 0x40), (SECOND, 0x80)] {
        let read = |segment, offset| pci.read32(PciAddress { segment, id }, offset);
        assert_eq!(read(3, capability) & 0x7_00ff, 0x3_000f);
        assert_eq!((read(3, capability + 4), read(0, capability)), (0xfd00_0001, u32::MAX));
        // The list holds it, the express capability and MSI.
        let mut kinds = Vec::new();
        let mut at = read(3, 0x34);
        while at != 0 {
            kinds.push(read(3, at as u16) & 0xff);
            at = read(3, at as u16) >> 8 & 0xff;
        }
        kinds.sort_unstable();
        assert_eq!(kinds, [0x05, 0x0f, 0x10]);
    }
    // Each unit has a device table in which the one device passes and the other is blocked, and a log.
    let vectors = [(); 2].map(|()| interrupts.allocate().unwrap());
    for (index, (unit, own)) in units.iter().zip([A, FAR]).enumerate() {
        let base = 0x10_0000 * (2 * index as u64 + 1);
        let table = |device: RequesterId| base + 32 * u64::from(device.get());
        ram.write64(table(A), 1).unwrap();
        ram.write64(table(FAR), 1).unwrap();
        ram.write64(table(own), 1 | 1 << 1 | 1 << 61).unwrap();
        unit.write64(0x00, base | 0x1ff);
        unit.write64(EVENT_BASE, (0x60_0000 + 0x1000 * index as u64) | (8 << 56));
        let (address, data) = vectors[index].message();
        let id = [IOMMU, SECOND][index];
        write(id, 0xa4, address as u32);
        write(id, 0xac, data);
        write(id, 0xa0, 1 << 16);
        unit.write64(CONTROL, ON | EVENT_INT_EN);
    }
    for (index, probe) in probes.iter().enumerate() {
        ram.write64(0x70_0000, 7 + index as u64).unwrap();
        assert_eq!(probe.read(0x70_0000), Ok(7 + index as u64));
        // Its own unit refuses a write, logs it and interrupts; the other hears nothing.
        assert_eq!(probe.write(0x70_0000, 1), Err(BusError::TargetAbort));
        assert_eq!(units.each_ref().map(|unit| unit.read64(EVENT_TAIL)), [16, 16 * index as u64]);
        assert!(vectors[index].wait(std::time::Duration::from_secs(5)));
    }
    assert_eq!(interrupts.spurious(), 0);
    pci.shutdown();
    units.iter().for_each(|unit| unit.shutdown());
}
