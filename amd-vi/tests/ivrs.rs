//! IVRS tables: those of real machines against what another parser says of them, hand-built ones for each rule, and damaged
//! ones.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use amd_vi::dte::PersistentFlags;
use amd_vi::ivrs::{DeviceEntry, IvmdScope, Ivrs, IvrsError, SpecialKind, Uid};
use common::real::RealTables;
use common::*;
use platform::pci::{PciAddress, RequesterId};
use platform::{PhysAddr, Prot};
use proptest::prelude::*;

fn counts(map: &std::collections::BTreeMap<u8, usize>) -> String {
    map.iter().map(|(kind, count)| format!("{kind:#x}x{count}")).collect::<Vec<_>>().join(" ")
}

/// Words in any order.
fn sorted(words: &str) -> Vec<&str> {
    let mut words: Vec<_> = words.split_whitespace().collect();
    words.sort_unstable();
    words
}

/// The special devices, hardware identifiers and aliases of the blocks that count, as the manifest writes them.
fn describe(ivrs: &Ivrs) -> (String, String, String) {
    let (mut special, mut hids, mut aliases) = (Vec::new(), Vec::new(), Vec::new());
    for entry in ivrs.units().iter().flat_map(|unit| &unit.entries) {
        match entry {
            DeviceEntry::Special { kind, handle, device, flags } => {
                let name = if *kind == SpecialKind::IoApic { "IOAPIC" } else { "HPET" };
                let device = RequesterId::new(*device);
                special.push(format!("{name}[{handle}]@{device} fl={:#x}", flags.into_bits()));
            }
            DeviceEntry::Acpi { hid, uid, .. } => {
                let mut text = String::from_utf8_lossy(hid).trim_end_matches('\0').to_string();
                match uid {
                    Uid::None => text.push_str("[]"),
                    // As bytes there, two in the one table that has a number.
                    Uid::Integer(number) => {
                        let [low, high, ..] = number.to_le_bytes();
                        write!(text, "[{low:02x}{high:02x}]").unwrap();
                    }
                    Uid::String(name) => write!(text, "[{}]", String::from_utf8_lossy(name)).unwrap(),
                }
                hids.push(text);
            }
            DeviceEntry::Alias { first, last, alias, .. } => {
                let kind = if first == last { 0x42 } else { 0x43 };
                aliases.push(format!("{kind:#x} 0x{first:04x}->0x{alias:04x}"));
            }
            _ => {}
        }
    }
    (special.join("; "), hids.join("; "), aliases.join("; "))
}

/// The memory blocks as the manifest writes them.
fn memory(ivrs: &Ivrs) -> String {
    let blocks = ivrs.ivmds.iter().map(|ivmd| {
        let (device, auxiliary) = match ivmd.scope {
            IvmdScope::All => (0, 0),
            IvmdScope::Device(device) => (device, 0),
            IvmdScope::Range(first, last) => (first, last),
        };
        format!(
            "{:#x} fl={:#x} dev=0x{device:04x} aux={auxiliary:#x} {:#x}+{:#x}",
            ivmd.kind, ivmd.flags, ivmd.start, ivmd.len
        )
    });
    blocks.collect::<Vec<_>>().join("; ")
}

#[test]
fn tables_of_real_machines_say_what_the_manifest_says() {
    let tables = RealTables::open();
    for table in tables.iter() {
        let (file, field) = (table.file(), |name| table.field(name));
        let ivrs = Ivrs::parse(&table.ivrs).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(ivrs.revision.to_string(), field("rev"), "{file}");
        assert_eq!(
            String::from_utf8_lossy(&ivrs.oem_id).trim_matches(['\0', ' ']),
            field("oem").trim(),
            "{file}"
        );
        assert_eq!(format!("{:#x}", ivrs.info.bits()), field("ivinfo"), "{file}");
        assert_eq!(ivrs.units().len().to_string(), field("iommus"), "{file}");
        assert_eq!(sorted(&counts(&ivrs.blocks)), sorted(field("blocks")), "{file}");
        assert_eq!(sorted(&counts(&ivrs.entries)), sorted(field("entries")), "{file}");
        let (special, hids, aliases) = describe(&ivrs);
        // The manifest lists special devices in an order of its own, each once.
        let set = |text: &str| text.split("; ").map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(set(&special), set(field("special")), "{file}");
        assert_eq!(hids, field("hids"), "{file}");
        assert_eq!(set(&aliases), set(field("alias")), "{file}");
        assert_eq!(memory(&ivrs), field("ivmd"), "{file}");
    }
    tables.report("checked");
}

fn one(kind: u8, entries: &[u8]) -> Ivrs {
    Ivrs::parse(&ivrs(1, &[ivhd(kind, 2, BASE, entries)])).unwrap()
}

fn names(ivrs: &Ivrs) -> Vec<&'static str> {
    ivrs.warnings.iter().map(|warning| warning.name()).collect()
}

const fn flags(bits: u8) -> PersistentFlags {
    PersistentFlags::from_bits(bits)
}

#[test]
fn headers_of_blocks() {
    let mut block = ivhd(0x11, 0x0002, BASE, &[]);
    block[16] = 3;
    block[18] = 0x05;
    block[24..32].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
    let ivrs = Ivrs::parse(&ivrs(1, &[block.clone()])).unwrap();
    let unit = ivrs.units()[0];
    assert_eq!(unit.address, PciAddress { segment: 3, id: RequesterId::new(2) });
    assert_eq!((unit.mmio_base, unit.capability_offset, unit.msi_number()), (PhysAddr::new(BASE), 0x40, 5));
    assert_eq!(unit.efr.map(|efr| efr.into_bits()), Some(0x1122_3344_5566_7788));
    // Without EFRSup the images mean nothing.
    let ivrs = Ivrs::parse(&common::ivrs(0, &[block])).unwrap();
    assert_eq!(ivrs.units()[0].efr, None);
}

#[test]
fn every_kind_of_entry() {
    let ivrs = one(
        0x40,
        &[
            &[0x00, 0, 0, 0][..],
            &[0x01, 0, 0, 0x10],
            &[0x02, 0x08, 0x00, 0x01],
            &[0x03, 0x10, 0x00, 0x02, 0x04, 0x1f, 0x00, 0xff],
            &[0x42, 0x20, 0x00, 0x04, 0, 0x21, 0x00, 0],
            &[0x43, 0x00, 0x02, 0x40, 0, 0xa5, 0x00, 0, 0x04, 0xff, 0x02, 0],
            &[0x46, 0x30, 0x00, 0x80, 0, 0, 0, 0x80],
            &[0x47, 0x40, 0x00, 0, 1, 0, 0, 0, 0x04, 0x4f, 0x00, 0],
            &[0x48, 0, 0, 0xd7, 33, 0xa0, 0x00, 1],
            &[0x48, 0, 0, 0, 0, 0xa1, 0x00, 2],
            &[0x40, 0, 0, 0, 0, 0, 0, 0],
            b"\xf0\xa5\x00\x00AMDI0020CID-----\x02\x03UID",
            b"\xf0\xa6\x00\x00MSFT0201\0\0\0\0\0\0\0\0\x01\x02\x00\x01",
            b"\xf0\xa7\x00\x00PNPD0040\0\0\0\0\0\0\0\0\x00\x00",
        ]
        .concat(),
    );
    assert_eq!(names(&ivrs), <[&str; 0]>::default());
    let acpi = |device, hid: &[u8; 8], cid: &[u8; 8], uid| DeviceEntry::Acpi {
        device,
        flags: flags(0),
        hid: *hid,
        cid: *cid,
        uid,
    };
    let devices =
        |first, last, bits, extended| DeviceEntry::Devices { first, last, flags: flags(bits), extended };
    let special =
        |kind, handle, device, bits| DeviceEntry::Special { kind, handle, device, flags: flags(bits) };
    assert_eq!(
        ivrs.units()[0].entries,
        [
            DeviceEntry::All { flags: flags(0x10) },
            devices(0x08, 0x08, 1, None),
            // The start's flags count, not the end's.
            devices(0x10, 0x1f, 2, None),
            DeviceEntry::Alias { first: 0x20, last: 0x20, alias: 0x21, flags: flags(4) },
            DeviceEntry::Alias { first: 0x200, last: 0x2ff, alias: 0xa5, flags: flags(0x40) },
            devices(0x30, 0x30, 0x80, Some(1 << 31)),
            devices(0x40, 0x4f, 0, Some(1)),
            special(SpecialKind::IoApic, 33, 0xa0, 0xd7),
            special(SpecialKind::Hpet, 0, 0xa1, 0),
            acpi(0xa5, b"AMDI0020", b"CID-----", Uid::String(b"UID".to_vec())),
            acpi(0xa6, b"MSFT0201", &[0; 8], Uid::Integer(0x100)),
            acpi(0xa7, b"PNPD0040", &[0; 8], Uid::None),
        ]
    );
    assert_eq!(
        counts(&ivrs.entries),
        "0x0x2 0x1x1 0x2x1 0x3x1 0x4x3 0x42x1 0x43x1 0x46x1 0x47x1 0x48x2 0xf0x3"
    );
}

#[test]
fn mistakes_are_passed_over_by_name() {
    assert_eq!(names(&one(0x10, &[0x04, 8, 0, 0])), ["range-without-start"]);
    assert_eq!(names(&one(0x10, &[0x03, 8, 0, 0])), ["range-without-end"]);
    assert_eq!(names(&one(0x10, &[0x03, 8, 0, 0, 0x03, 9, 0, 0, 0x04, 10, 0, 0])), ["range-without-end"]);
    assert_eq!(names(&one(0x10, &[0x03, 8, 0, 0, 0x04, 7, 0, 0])), ["range-backwards"]);
    assert_eq!(names(&one(0x10, &[0x05, 8, 0, 0, 0x02, 8, 0, 0])), ["unknown-entry"]);
    assert_eq!(names(&one(0x10, &[0x48, 0, 0, 0, 0, 8, 0, 3])), ["unknown-special"]);
    assert_eq!(names(&one(0x10, &[0x42, 8, 0, 0])), ["truncated-entry"]);
    assert_eq!(names(&one(0x40, &[0xf0, 8, 0, 0])), ["truncated-entry"]);
    let acpi = |hid: &[u8; 8], uid: &[u8]| [b"\xf0\xa5\0\0", &hid[..], &[0; 8], uid].concat();
    assert_eq!(names(&one(0x11, &acpi(b"AMDI0020", &[0, 0]))), ["acpi-in-old-block"]);
    assert_eq!(names(&one(0x40, &acpi(&[0; 8], &[0, 0]))), ["no-hid"]);
    for uid in [&[0, 1, 7][..], &[1, 0], &[2, 0], &[3, 0], &[1, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]] {
        let ivrs = one(0x40, &acpi(b"AMDI0020", uid));
        assert_eq!((names(&ivrs), ivrs.units()[0].entries.len()), (vec!["bad-uid"], 1), "{uid:?}");
    }
    let special = |handle, device| [0x48, 0, 0, 0, handle, device, 0, 1];
    assert_eq!(names(&one(0x10, &[special(7, 8), special(7, 9)].concat())), ["duplicate-special"]);
    assert!(names(&one(0x10, &[special(7, 8), special(7, 8), special(8, 9)].concat())).is_empty());
    let bases =
        Ivrs::parse(&ivrs(0, &[ivhd(0x10, 2, BASE + 0x4000, &[]), ivhd(0x11, 2, BASE, &[])])).unwrap();
    assert_eq!((names(&bases), bases.units()[0].mmio_base.get()), (vec!["base-differs"], BASE));
    let unknown =
        Ivrs::parse(&ivrs(0, &[vec![0x51, 0, 8, 0, 1, 2, 3, 4], ivhd(0x10, 2, BASE, &[])])).unwrap();
    assert_eq!((names(&unknown), unknown.units().len()), (vec!["unknown-block"], 1));
    let memory = |block| names(&Ivrs::parse(&ivrs(0, &[block])).unwrap());
    assert_eq!(memory(ivmd(0x20, 1, 0, 0, 0x1000, 0)), ["bad-memory"]);
    assert_eq!(memory(ivmd(0x20, 1, 0, 0, u64::MAX, 2)), ["bad-memory"]);
    assert_eq!(memory(ivmd(0x20, 8, 0, 0, 0x1000, 0x1000)), ["exclusion-as-unity"]);
}

#[test]
fn the_last_block_of_the_highest_type_counts_for_each_unit() {
    let blocks = [
        ivhd(0x11, 2, BASE, &[0x02, 1, 0, 0]),
        ivhd(0x10, 2, BASE, &[0x02, 2, 0, 0]),
        ivhd(0x11, 2, BASE, &[0x02, 3, 0, 0]),
        ivhd(0x10, 0x0102, BASE, &[0x02, 4, 0, 0]),
    ];
    let table = Ivrs::parse(&ivrs(0, &blocks)).unwrap();
    let found: Vec<_> = table.units().iter().map(|unit| (unit.kind, unit.entries[0].devices().0)).collect();
    assert_eq!(found, [(0x11, 3), (0x10, 4)]);
}

#[test]
fn memory_blocks() {
    let blocks = [
        ivmd(0x20, 0x03, 0, 0, 0x1000, 0x2000),
        ivmd(0x21, 0x05, 7, 0, 0x3000, 0x1000),
        ivmd(0x22, 0x08, 8, 10, 0x5000, 0x1000),
        ivmd(0x21, 0x06, 7, 0, 0x3000, 0x1000),
    ];
    let table = Ivrs::parse(&ivrs(0, &blocks)).unwrap();
    let unity: Vec<_> = table.ivmds.iter().map(|ivmd| ivmd.unity()).collect();
    assert_eq!(unity, [Some(Prot::READ), Some(Prot::WRITE), Some(Prot::READ | Prot::WRITE), None]);
    let applies: Vec<_> =
        (6..12).map(|device| table.ivmds.iter().filter(|m| m.applies_to(0, device)).count()).collect();
    assert_eq!(applies, [1, 3, 2, 2, 2, 1]);
    assert_eq!((table.ivmds[0].last(), table.ivmds[0].applies_to(1, 7)), (Some(0x2fff), false));
}

#[test]
fn tables_that_make_no_sense_are_refused_by_name() {
    let good = ivrs(0, &[ivhd(0x10, 2, BASE, &[])]);
    assert_eq!(Ivrs::parse(&[]).unwrap_err(), IvrsError::Truncated { have: 0, need: 48 });
    assert_eq!(Ivrs::parse(&good[..60]).unwrap_err(), IvrsError::Truncated { have: 60, need: good.len() });
    let mut bad = good.clone();
    bad[50] ^= 1;
    assert!(matches!(Ivrs::parse(&bad).unwrap_err(), IvrsError::Checksum(_)));
    // Somebody who only looks may see what is in it.
    let mut other = good.clone();
    other[9] ^= 1;
    assert_eq!(names(&Ivrs::decode(&other).unwrap()), ["bad-checksum"]);
    assert!(matches!(Ivrs::parse(&other).unwrap_err(), IvrsError::Checksum(_)));
    bad[0] = b'J';
    assert_eq!(Ivrs::parse(&bad).unwrap_err(), IvrsError::Signature);
    for length in [0u16, 3, 4, 23, 25, 0xffff] {
        let mut bad = good.clone();
        bad[50..52].copy_from_slice(&length.to_le_bytes());
        seal(&mut bad);
        let error = Ivrs::parse(&bad).unwrap_err();
        assert!(matches!(error, IvrsError::BlockLength { .. }), "length {length}: {error:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_answer(mut table in proptest::collection::vec(any::<u8>(), 0..400), whole in any::<bool>()) {
        if whole && table.len() >= 48 {
            let length = table.len() as u32;
            table[..4].copy_from_slice(b"IVRS");
            table[4..8].copy_from_slice(&length.to_le_bytes());
            // A block that reaches to the end, so that its entries are looked at.
            if table.len() >= 100 {
                table[48] = [0x10, 0x11, 0x40][usize::from(table[48] % 3)];
                table[50..52].copy_from_slice(&((length - 48) as u16).to_le_bytes());
            }
            seal(&mut table);
        }
        if let Ok(ivrs) = Ivrs::parse(&table) {
            for unit in ivrs.units() {
                unit.highest_device();
            }
        }
    }
}
