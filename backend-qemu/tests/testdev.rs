//! A second device that does DMA, and another kind of it: `iommu-testdev` writes at once and says how that went. Alone, and beside
//! edu, each in its own domain.

mod common;

use std::io::Write as _;
use std::sync::Arc;

use backend_qemu::{Config, Defect, Emulator, Program, Testdev};
use common::{PAGE, RW, Rig, map, unmap, with_edu};
use iommu_core::{Domain, FaultKind, Group, PagingFlags};
use platform::pci::PciAddress;
use platform::{DmaAddr, Frames, PhysAddr, Prot};

const TESTDEV: PciAddress = PciAddress::new(0, 0, 6, 0);
const AT: DmaAddr = DmaAddr::new(0x7000_0000_0000);
const WORDS: u64 = (Testdev::WORD as u64) << 32 | Testdev::WORD as u64;

/// A machine with both. `None` where there is no QEMU, or one without the device: that is said.
fn both() -> Option<(Rig, Testdev, Arc<Group>)> {
    if let Ok(program) = Program::find(Emulator::X86_64)
        && program.version() < Config::TESTDEV_FROM
    {
        let _ = writeln!(std::io::stderr(), "not run: QEMU {} has no iommu-testdev", program.version());
        return None;
    }
    let rig = Rig::start(with_edu().testdev(TESTDEV.id.device()))?;
    let group = rig.machine.group(TESTDEV).unwrap();
    let device = Testdev::new(rig.machine.function(TESTDEV).unwrap()).unwrap();
    Some((rig, device, group))
}

fn attached(group: &Group) -> Arc<Domain> {
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    group.attach(&domain).unwrap();
    domain
}

#[test]
fn it_writes_where_it_may_and_nowhere_else() {
    let Some((rig, device, group)) = both() else { return };
    let domain = attached(&group);
    let write = |at: DmaAddr, phys: PhysAddr, len| device.write(at, phys, len).unwrap();
    let frame = rig.frame();
    // By its physical address, and before it is mapped.
    assert!(!write(DmaAddr::new(frame.get()), frame, 4));
    assert!(!write(AT, frame, 4));
    assert_eq!(rig.word(frame), 0);
    map(&domain, AT, frame, PAGE as u64, RW);
    assert!(write(AT, frame, 8));
    assert_eq!(rig.word(frame), WORDS);
    // To the end of the page and not beyond.
    let end = PAGE as u64 - 8;
    assert!(write(AT.wrapping_add(end), frame.wrapping_add(end), 8));
    assert_eq!(rig.word(frame.wrapping_add(end)), WORDS);
    assert!(!write(AT.wrapping_add(PAGE as u64), frame, 4));
    unmap(&domain, AT, PAGE as u64);
    rig.put(frame, &[0; 8]);
    assert!(!write(AT, frame, 8));
    map(&domain, AT, frame, PAGE as u64, Prot::READ);
    assert!(!write(AT, frame, 8));
    assert_eq!(rig.word(frame), 0);
    rig.machine.health().unwrap();
}

#[test]
fn each_refusal_is_a_fault_of_the_device() {
    let Some((rig, device, group)) = both() else { return };
    let _domain = attached(&group);
    assert_eq!(rig.machine.take_faults(), []);
    let frame = rig.frame();
    for count in 1..4 {
        assert_eq!(device.write(AT, frame, 4), Ok(false));
        let faults = rig.machine.take_faults();
        assert!(!rig.machine.version().has(Defect::NoEventLog));
        assert_eq!(faults.len(), 1, "refusal {count}");
        assert_eq!((faults[0].kind, faults[0].requester), (FaultKind::Page, TESTDEV));
    }
}

/// The same address means something else to each, and what one loses the other keeps.
#[test]
fn two_devices_in_two_domains_are_kept_apart() {
    const OLD: u64 = 0x0123_4567_89ab_cdef;
    let Some((rig, device, group)) = both() else { return };
    let (theirs, edus) = (attached(&group), rig.attached());
    let [one, other] = [rig.frame(), rig.frame()];
    map(&theirs, AT, one, PAGE as u64, RW);
    map(&edus, AT, other, PAGE as u64, RW);
    rig.write(AT, OLD);
    assert_eq!(device.write(AT, one, 8), Ok(true));
    assert_eq!((rig.word(one), rig.word(other)), (WORDS, OLD));
    unmap(&theirs, AT, PAGE as u64);
    assert_eq!(device.write(AT, one, 8), Ok(false));
    assert_eq!(rig.read(AT), Some(OLD));
    // Into edu's domain: what it has there.
    group.replace(&edus).unwrap();
    assert_eq!(device.write(AT, other, 8), Ok(true));
    assert_eq!(rig.word(other), WORDS);
    group.detach().unwrap();
    assert_eq!(device.write(AT, other, 8), Ok(false));
    assert_eq!(rig.read(AT), Some(WORDS), "edu stays where it is");
}

/// 2,000 pages in the order in which the allocator has them backwards, each written and looked at.
#[test]
fn every_one_of_many_pages_is_in_its_place() {
    const PAGES: u64 = 2_000;
    let Some((rig, device, group)) = both() else { return };
    let domain = attached(&group);
    let frames: Vec<PhysAddr> = (0..PAGES).map(|_| rig.frame()).collect();
    let at = |index: u64| AT.wrapping_add(index * 37 * PAGE as u64);
    for (index, &frame) in frames.iter().rev().enumerate() {
        map(&domain, at(index as u64), frame, PAGE as u64, Prot::WRITE);
    }
    for (index, &frame) in frames.iter().rev().enumerate() {
        assert_eq!(device.write(at(index as u64), frame, 4), Ok(true), "page {index}");
    }
    let window = rig.machine.platform().window();
    let written = |frame: &&PhysAddr| {
        // SAFETY: frames of this test are never given back; devices access whole words.
        unsafe { window.word(**frame) }.load(std::sync::atomic::Ordering::Acquire) == u64::from(Testdev::WORD)
    };
    assert_eq!(frames.iter().filter(written).count(), frames.len());
}
