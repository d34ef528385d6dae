//! Commands, events and device table entries bit by bit, against samples of the specification.

use amd_vi::command::Command;
use amd_vi::dte::{Dte, IntCtl, PersistentFlags, Translation, TranslationHalf};
use amd_vi::event::{Event, EventCode};
use amd_vi::invalidate::Cover;
use amd_vi::irte::{Irte, IrteFormat};
use amd_vi::registers::XtInterruptControl;
use iommu_core::{DestinationMode, IrqDelivery, IrqTarget};
use platform::pci::RequesterId;
use platform::{DmaAddr, PhysAddr};

#[track_caller]
fn is(command: Command, q0: u64, q1: u64) {
    assert_eq!(command.words(), [q0, q1], "{command:x?}");
}

#[test]
fn completion_waits() {
    is(
        // SAFETY: no unit ever sees it.
        unsafe { Command::completion_wait(PhysAddr::new(0x2345_0008), 0x1122_3344_5566_7788) },
        0x1000_0000_2345_0009,
        0x1122_3344_5566_7788,
    );
    is(Command::completion_interrupt(), 0x1000_0000_0000_0002, 0);
    assert!(!Command::completion_interrupt().is_invalidation());
}

#[test]
fn entry_and_interrupt_table_invalidations() {
    is(Command::invalidate_devtab_entry(0x00a5), 0x2000_0000_0000_00a5, 0);
    is(Command::invalidate_interrupt_table(0x00a5), 0x5000_0000_0000_00a5, 0);
    is(Command::invalidate_iommu_all(), 0x8000_0000_0000_0000, 0);
    assert!(Command::invalidate_iommu_all().is_invalidation());
}

#[test]
fn page_invalidations() {
    let range = |first: u64, len: u64, pde, q1| {
        let cover = Cover::containing(first, first + len - 1);
        is(Command::invalidate_iommu_pages(0x1234, cover, pde), 0x3000_1234_0000_0000, q1);
    };
    range(0x7f00_1234_5000, 0x1000, false, 0x0000_7f00_1234_5000);
    range(0x7f00_1234_5000, 0x1000, true, 0x0000_7f00_1234_5002);
    range(0x7f00_1234_6000, 0x2000, false, 0x0000_7f00_1234_6001);
    range(0x7f00_1234_0000, 0x1_0000, false, 0x0000_7f00_1234_7001);
    range(0x7f00_1234_0000, 0x1_0000, true, 0x0000_7f00_1234_7003);
    range(0x7f00_1220_0000, 0x20_0000, true, 0x0000_7f00_122f_f003);
    range(0x7f00_0000_0000, 0x4000_0000, true, 0x0000_7f00_1fff_f003);
    is(
        Command::invalidate_iommu_pages(0x1234, Cover::ALL, true),
        0x3000_1234_0000_0000,
        0x7fff_ffff_ffff_f003,
    );
}

#[test]
fn events() {
    let event = Event::from_words(0x2020_1234_0000_0100, 0x7f00_1234_5678);
    assert_eq!(event.code(), EventCode::IoPageFault);
    assert_eq!(event.device(), Some(RequesterId::new(0x0100)));
    assert_eq!(event.domain(), Some(0x1234));
    assert_eq!(event.pasid(), None);
    assert_eq!(event.iova(), Some(DmaAddr::new(0x7f00_1234_5678)));
    assert!(event.is_write() && !event.header.pr() && !event.header.pe() && !event.header.rz());

    let event = Event::from_words(0x2070_1234_0000_0100, 0x7f00_1234_5678);
    assert!(event.is_write() && event.header.pr() && event.header.pe());

    let event = Event::from_words(0x2090_1234_0000_0100, 0x7f00_1234_5678);
    assert!(!event.is_write() && event.header.pr() && event.header.rz() && !event.header.pe());

    let event = Event::from_words(0x1080_0000_0000_0100, 0x7f00_1234_5678);
    assert_eq!(event.code(), EventCode::IllegalDevTableEntry);
    assert!(event.header.rz() && event.domain().is_none());

    let event = Event::from_words(0x5000_0000_0000_0000, 0x2345_0010);
    assert!(event.halts_commands() && event.device().is_none());
    assert_eq!(event.structure(), Some(PhysAddr::new(0x2345_0010)));

    // GN: PASID 5_1234h instead of a domain.
    let event = Event::from_words(0x2001_1234_0005_0100, 0);
    assert_eq!((event.pasid(), event.domain()), (Some(0x5_1234), None));
    // Type 5, TR clear.
    let event = Event::from_words(0x8a00_0000_0000_0100, 0);
    assert_eq!(
        (event.code(), event.header.kind(), event.header.tr()),
        (EventCode::InvalidDeviceRequest, 5, false)
    );
}

#[test]
fn events_print_as_linux_prints_them() {
    let event = Event::from_words(0x2020_1234_0000_0100, 0x7f00_1234_5678);
    assert_eq!(
        event.to_string(),
        "AMD-Vi: Event logged [IO_PAGE_FAULT device=01:00.0 domain=0x1234 address=0x7f0012345678 flags=0x0020]"
    );
}

#[test]
fn entries() {
    let root = PhysAddr::new(0x2345_6000);
    let paging = Translation::Paging { domain: 0x1234, root, level: 4, dirty: false };
    let entry = Dte::new(paging, IntCtl::Forward, PersistentFlags::new());
    assert_eq!(entry.to_words(), [0x6000_0000_2345_6803, 0x1234, 1 | 1 << 60, 0]);
    assert_eq!(Dte::from_words(entry.to_words()), entry);

    // HAD = 3, bits 8:7.
    let tracking = Translation::Paging { domain: 0x1234, root, level: 4, dirty: true };
    let entry = Dte::new(tracking, IntCtl::Forward, PersistentFlags::new());
    assert_eq!(entry.to_words()[0], 0x6000_0000_2345_6983);

    let blocked = Dte::new(Translation::Blocked, IntCtl::Abort, PersistentFlags::new());
    assert_eq!(blocked.to_words(), [1, 0, 1, 0]);

    let identity = Dte::new(Translation::Identity { domain: 7 }, IntCtl::Forward, PersistentFlags::new());
    assert_eq!(identity.to_words(), [0x6000_0000_0000_0003, 7, 1 | 1 << 60, 0]);
}

#[test]
fn entries_keep_what_firmware_asked_for() {
    // INIT, EInt, NMI, SysMgt 1, LINT0, LINT1. With SysMgt 1 writes are allowed even when blocked (erratum 63).
    let flags = PersistentFlags::from_bits(0xd7);
    let blocked = Dte::new(Translation::Blocked, IntCtl::Abort, flags);
    assert_eq!(blocked.to_words(), [1 | 1 << 62, 1 << 40, 1 | 7 << 56 | 3 << 62, 0]);
}

#[test]
fn interrupt_entries() {
    let fixed = IrqTarget::fixed(0x41, 3);
    assert_eq!(Irte::Remapped(fixed).to_32().into_bits(), 0x0041_0301);
    let wide = IrqTarget::fixed(0x41, 0x0501_0203);
    assert_eq!(Irte::Remapped(wide).to_128().into_bits(), 0x0500_0000_0000_0041_0000_0000_0102_0301);
    let logical =
        IrqTarget { mode: DestinationMode::Logical, delivery: IrqDelivery::LowestPriority, ..fixed };
    assert_eq!(Irte::Remapped(logical).to_32().into_bits(), 0x0041_0345);
    assert_eq!(Irte::Remapped(logical).to_128().into_bits(), 0x41_0000_0000_0000_0345);
    for entry in [(Irte::Free, 0), (Irte::Masked, 2)] {
        assert_eq!((entry.0.to_32().into_bits(), entry.0.to_128().into_bits()), (entry.1, entry.1.into()));
    }
    assert_eq!((IrteFormat::Bits32.size(), IrteFormat::Bits128.size()), (4, 16));
}

#[test]
fn entries_that_remap_interrupts() {
    // INIT, EInt and NMI pass; 512 entries at 3456_0000h.
    let entry = Dte::new(Translation::Blocked, IntCtl::Abort, PersistentFlags::from_bits(7));
    let interrupt = entry.interrupt.remapped(PhysAddr::new(0x3456_0000), 9);
    assert_eq!(Dte { interrupt, ..entry }.to_words(), [1, 0, 0x2700_0000_3456_0013, 0]);
    let highest = entry.interrupt.remapped(PhysAddr::new(u64::MAX), 11).into_bits() as u64;
    assert_eq!(highest, 0x270f_ffff_ffff_ffd7);
}

#[test]
fn the_units_own_x2apic_interrupts() {
    let target = IrqTarget {
        vector: 0x41,
        destination: 0x0501_0203,
        mode: DestinationMode::Logical,
        delivery: IrqDelivery::LowestPriority,
    };
    assert_eq!(XtInterruptControl::to(target).into_bits(), 0x0500_0141_0102_0304);
    assert_eq!(XtInterruptControl::to(IrqTarget::fixed(0xff, 0)).into_bits(), 0x00ff_0000_0000);
}

#[test]
fn no_reserved_bit_is_ever_set() {
    let root = PhysAddr::new(u64::MAX);
    let everything = Translation::Paging { domain: 0xffff, root, level: 6, dirty: true };
    let words = Dte::new(everything, IntCtl::Remap, PersistentFlags::from_bits(0xff)).to_words();
    assert_eq!(words[0] & 0x8000_0000_0000_007c, 0);
    assert_eq!(words[2] & 0x0030_0000_0000_0000, 0);
    assert_eq!(words[3] & 0x003f_0000_0000_7fff, 0);
    assert_eq!(TranslationHalf::from_bits(words[0].into()).mode(), 6);
}

/// Code in bits 63:60 of the first word, flags in 59:48, PASID or domain in 47:32 with its upper bits in 19:16, device in 15:0.
#[test]
fn each_event_prints_the_fields_that_linux_prints() {
    let print =
        |code: u64| Event::from_words(code << 60 | 0x20 << 48 | 0x1234 << 32 | 0x0100, 0x5000).to_string();
    for (code, line) in [
        (1, "ILLEGAL_DEV_TABLE_ENTRY device=01:00.0 pasid=0x01234 address=0x5000 flags=0x0020"),
        (2, "IO_PAGE_FAULT device=01:00.0 domain=0x1234 address=0x5000 flags=0x0020"),
        (3, "DEV_TAB_HARDWARE_ERROR device=01:00.0 address=0x5000 flags=0x0020"),
        (4, "PAGE_TAB_HARDWARE_ERROR device=01:00.0 pasid=0x1234 address=0x5000 flags=0x0020"),
        (5, "ILLEGAL_COMMAND_ERROR address=0x5000"),
        (6, "COMMAND_HARDWARE_ERROR address=0x5000 flags=0x0020"),
        (7, "IOTLB_INV_TIMEOUT device=01:00.0 address=0x5000"),
        (8, "INVALID_DEVICE_REQUEST device=01:00.0 pasid=0x01234 address=0x5000 flags=0x0020"),
    ] {
        assert_eq!(print(code), format!("AMD-Vi: Event logged [{line}]"));
    }
}
