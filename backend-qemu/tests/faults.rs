//! What is refused is reported, where QEMU reports anything.

mod common;

use backend_qemu::Defect;
use common::{EDU, PAGE, RW, Rig, map, with_edu};
use iommu_core::{Fault, FaultFlags, FaultKind};
use platform::{DmaAddr, Prot};

const AT: DmaAddr = DmaAddr::new(0x6000_0000_0000);

/// What QEMU says of a refused request of four bytes at `address`: as far as it says anything.
fn expected(rig: &Rig, address: DmaAddr, flags: FaultFlags) -> Vec<Fault> {
    let version = rig.machine.version();
    if version.has(Defect::NoEventLog) {
        return Vec::new();
    }
    assert!(version.has(Defect::EventDomainZero), "write down what a version says that knows the domain");
    let (flags, pasid) = match version.has(Defect::EventFlags) {
        // A read looks like one that carried a PASID.
        true => (FaultFlags::INTERRUPT, (!flags.contains(FaultFlags::WRITE)).then_some(0)),
        false => (flags, None),
    };
    let address = if version.has(Defect::EventAddressZero) { DmaAddr::new(0) } else { address };
    vec![Fault { kind: FaultKind::Page, requester: EDU, pasid, address, domain: 0, flags }]
}

#[test]
fn each_refused_request_is_reported() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domain = rig.attached();
    rig.load(&[0x55; 8]);
    assert_eq!(rig.machine.take_faults(), []);
    rig.store(AT, 0, 4);
    assert_eq!(
        rig.machine.take_faults(),
        expected(&rig, AT, FaultFlags::WRITE),
        "a write that nothing is mapped for"
    );
    rig.fetch(AT, 0, 4);
    assert_eq!(
        rig.machine.take_faults(),
        expected(&rig, AT, FaultFlags::empty()),
        "a read that nothing is mapped for"
    );
    let (read_only, write_only) = (AT, AT.wrapping_add(PAGE as u64));
    map(&domain, read_only, rig.frame(), PAGE as u64, Prot::READ);
    map(&domain, write_only, rig.frame(), PAGE as u64, Prot::WRITE);
    rig.store(read_only, 0, 4);
    assert_eq!(
        rig.machine.take_faults(),
        expected(&rig, read_only, FaultFlags::WRITE),
        "a write to what may be read"
    );
    rig.fetch(write_only, 0, 4);
    assert_eq!(
        rig.machine.take_faults(),
        expected(&rig, write_only, FaultFlags::empty()),
        "a read of what may be written"
    );
    // What is allowed is no fault.
    rig.fetch(read_only, 0, 4);
    rig.store(write_only, 0, 4);
    assert_eq!(rig.machine.take_faults(), []);
}

/// A page of refused words is more than the log has room for; what comes after it is reported all the same.
#[test]
fn the_log_works_after_it_was_full() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domain = rig.attached();
    for _ in 0..4 {
        rig.fetch(AT, 0, PAGE);
        let faults = rig.machine.take_faults();
        assert_eq!(faults.is_empty(), rig.machine.version().has(Defect::NoEventLog));
        rig.store(AT, 0, 4);
        assert_eq!(rig.machine.take_faults(), expected(&rig, AT, FaultFlags::WRITE));
    }
    // And the device works.
    map(&domain, AT, rig.frame(), PAGE as u64, RW);
    rig.write(AT, 42);
    assert_eq!(rig.read(AT), Some(42));
}
