//! What is put right in a table, and what another table says against it: overrides, quirks, the MADT.

mod common;

use std::time::Duration;

use amd_vi::ivrs::{
    DeviceEntry, Ivrs, Madt, MadtError, Override, OverrideError, QUIRKS, QuirkError, SpecialKind,
    overrides_for,
};
use amd_vi::{AmdVi, Config};
use common::real::RealTables;
use common::*;
use platform::pci::PciAddress;

fn special(kind: SpecialKind, handle: u8, device: PciAddress) -> Override {
    Override::Special { kind, handle, device }
}

#[test]
fn every_form_of_a_parameter() {
    let at = |segment| PciAddress::new(segment, 0, 0x14, 0);
    let io_apic = |segment| Ok(special(SpecialKind::IoApic, 10, at(segment)));
    for (text, segment) in [
        ("ivrs_ioapic=10@00:14.0", 0),
        ("ivrs_ioapic=10@0001:00:14.0", 1),
        ("ivrs_ioapic[10]=00:14.0", 0),
        ("ivrs_ioapic[10]=0001:00:14.0", 1),
    ] {
        assert_eq!(text.parse(), io_apic(segment), "{text}");
    }
    let device = PciAddress::new(0xffff, 0xff, 0x1f, 7);
    assert_eq!("ivrs_hpet=255@ffff:FF:1f.7".parse(), Ok(special(SpecialKind::Hpet, 255, device)));
    assert_eq!("ivrs_hpet[0]=00:14.0".parse(), Ok(special(SpecialKind::Hpet, 0, at(0))));
    let acpi = |hid: &[u8; 8], uid: &str, segment| {
        Ok(Override::Acpi { hid: *hid, uid: uid.into(), device: PciAddress::new(segment, 0, 0x14, 5) })
    };
    for (text, segment) in [
        ("ivrs_acpihid=AMD0020:0@00:14.5", 0),
        ("ivrs_acpihid=AMD0020:000@0002:00:14.5", 2),
        ("ivrs_acpihid[00:14.5]=AMD0020:0", 0),
        ("ivrs_acpihid[0002:00:14.5]=AMD0020:00", 2),
    ] {
        assert_eq!(text.parse(), acpi(b"AMD0020\0", "0", segment), "{text}");
    }
    // Leading zeros go, others stay; what else a UID is made of is its own affair.
    assert_eq!("ivrs_acpihid=AMDI0095:0100@00:14.5".parse(), acpi(b"AMDI0095", "100", 0));
    assert_eq!("ivrs_acpihid=AMDI0020:\\_SB.F@R:0@00:14.5".parse(), acpi(b"AMDI0020", "\\_SB.F@R:0", 0));
}

#[test]
fn what_is_no_parameter_is_refused_by_name() {
    use OverrideError::*;
    for (text, error) in [
        ("", Name),
        ("ivrs_gpio=1@00:14.0", Name),
        ("ivrs_ioapics=1@00:14.0", Name),
        ("ivrs_ioapic", Name),
        ("ivrs_ioapic=", Form),
        ("ivrs_ioapic=1:00:14.0", Form),
        ("ivrs_ioapic[1=00:14.0", Form),
        ("ivrs_ioapic=@00:14.0", Handle),
        ("ivrs_ioapic=256@00:14.0", Handle),
        ("ivrs_ioapic=+1@00:14.0", Handle),
        ("ivrs_ioapic=0x1@00:14.0", Handle),
        ("ivrs_ioapic=1@", Address),
        ("ivrs_ioapic=1@14.0", Address),
        ("ivrs_ioapic=1@00:14", Address),
        ("ivrs_ioapic=1@00:20.0", Address),
        ("ivrs_ioapic=1@00:14.8", Address),
        ("ivrs_ioapic=1@100:14.0", Address),
        ("ivrs_ioapic=1@10000:00:14.0", Address),
        ("ivrs_ioapic=1@0:0:00:14.0", Address),
        ("ivrs_ioapic=1@00:+14.0", Address),
        ("ivrs_acpihid=AMDI0020@00:14.5", AcpiDevice),
        ("ivrs_acpihid=:1@00:14.5", AcpiDevice),
        ("ivrs_acpihid=AMDI0020:@00:14.5", AcpiDevice),
        ("ivrs_acpihid=AMDI00200:1@00:14.5", AcpiDevice),
        ("ivrs_acpihid[AMDI0020:1]=00:14.5", Address),
    ] {
        assert_eq!(text.parse::<Override>(), Err(error), "{text}");
    }
}

/// Where the special and the ACPI devices of the units are, as text.
fn devices(ivrs: &Ivrs) -> Vec<String> {
    let mut found = Vec::new();
    for unit in ivrs.units() {
        for entry in &unit.entries {
            let segment = unit.address.segment;
            match entry {
                DeviceEntry::Special { kind, handle, device, flags } => {
                    found.push(format!("{kind}[{handle}]@{segment}:{device:x}/{:x}", flags.into_bits()));
                }
                DeviceEntry::Acpi { hid, uid, device, .. } => {
                    found.push(format!("{}:{uid}@{segment}:{device:x}", String::from_utf8_lossy(hid)));
                }
                _ => {}
            }
        }
    }
    found
}

fn in_segment(segment: u8, mut block: Vec<u8>) -> Vec<u8> {
    block[16] = segment;
    block
}

#[test]
fn overrides_move_and_add_devices() {
    let first = [
        &[0x03, 0x08, 0, 0, 0x04, 0xff, 0xff, 0][..],
        &[0x48, 0, 0, 0xd7, 33, 0xa0, 0x00, 1],
        &[0x48, 0, 0, 0, 0, 0xa1, 0x00, 2],
        b"\xf0\xa5\0\0AMDI0020\0\0\0\0\0\0\0\0\x02\x01A",
        b"\xf0\xa6\0\0AMDI0020\0\0\0\0\0\0\0\0\x01\x02\x02\x01",
    ];
    let blocks = [
        ivhd(0x10, 2, BASE, &first[..3].concat()),
        ivhd(0x40, 2, BASE, &first.concat()),
        in_segment(1, ivhd(0x40, 2, BASE + 0x8_0000, &[0x03, 0x08, 0, 0, 0x04, 0xff, 0, 0])),
        in_segment(1, ivhd(0x40, 0x0102, BASE + 0x10_0000, &[0x02, 0x00, 2, 0])),
    ];
    let plain = Ivrs::parse(&ivrs(1, &blocks)).unwrap();
    let with = |parameters: &[&str]| {
        let mut ivrs = plain.clone();
        let overrides: Vec<_> = parameters.iter().map(|text| text.parse().unwrap()).collect();
        ivrs.apply(&overrides);
        let warnings: Vec<_> = ivrs.warnings.iter().map(|warning| warning.name()).collect();
        (devices(&ivrs).join(" "), warnings.join(" "))
    };
    let (io_apic, hpet) = ("IOAPIC[33]@0:a0/d7", "HPET[0]@0:a1/0");
    let (a, number) = ("AMDI0020:A@0:a5", "AMDI0020:258@0:a6");
    let is = |devices: &[&str]| (devices.join(" "), String::new());
    assert_eq!(with(&[]), is(&[io_apic, hpet, a, number]));
    // What moves keeps the flags that firmware gave it.
    assert_eq!(with(&["ivrs_ioapic=33@00:15.0"]), is(&["IOAPIC[33]@0:a8/d7", hpet, a, number]));
    assert_eq!(with(&["ivrs_hpet=0@00:15.0"]), is(&[io_apic, "HPET[0]@0:a8/0", a, number]));
    assert_eq!(with(&["ivrs_acpihid=AMDI0020:A@00:15.1"]), is(&[io_apic, hpet, "AMDI0020:A@0:a9", number]));
    assert_eq!(with(&["ivrs_acpihid=AMDI0020:0258@00:15.1"]), is(&[io_apic, hpet, a, "AMDI0020:258@0:a9"]));
    // The first of several for one thing counts.
    assert_eq!(
        with(&["ivrs_ioapic=33@00:15.0", "ivrs_ioapic=33@00:16.0"]),
        is(&["IOAPIC[33]@0:a8/d7", hpet, a, number])
    );
    // What is not there is added to the unit of its device; what moves to another segment leaves its own.
    assert_eq!(
        with(&["ivrs_ioapic=34@00:02.0", "ivrs_acpihid=AMDI0030:7@00:15.1", "ivrs_ioapic=35@1:0:2.0"]),
        is(&[io_apic, hpet, a, number, "AMDI0030:7@0:a9", "IOAPIC[34]@0:10/0", "IOAPIC[35]@1:10/0"])
    );
    // What no unit names belongs to the only one of its segment, if there is one.
    assert_eq!(
        with(&["ivrs_ioapic=34@00:00.2", "ivrs_ioapic=35@1:3:0.0", "ivrs_ioapic=36@2:0:1.0"]),
        is(&[io_apic, hpet, a, number, "IOAPIC[34]@0:2/0"])
            .with_warning("override-without-unit override-without-unit")
    );
    assert_eq!(with(&["ivrs_ioapic=33@1:0:2.0"]), is(&[hpet, a, number, "IOAPIC[33]@1:10/0"]));
    // Older blocks are corrected too: firmware may be asked for them.
    let mut ivrs = plain.clone();
    ivrs.apply(&["ivrs_ioapic=33@00:15.0".parse().unwrap()]);
    assert!(ivrs.ivhds[0].entries.iter().any(|entry| entry.devices() == (0xa8, 0xa8)));
}

trait WithWarning {
    fn with_warning(self, name: &str) -> Self;
}

impl WithWarning for (String, String) {
    fn with_warning(self, name: &str) -> Self {
        (self.0, name.into())
    }
}

#[test]
fn devices_that_acpi_knows_are_found() {
    let entries = [
        &b"\xf0\xa5\0\0AMDI0020\0\0\0\0\0\0\0\0\x02\x01A"[..],
        b"\xf0\xa6\0\0AMDI0020\0\0\0\0\0\0\0\0\x01\x01\x07",
        b"\xf0\xa7\0\0PNPD004\0\0\0\0\0\0\0\0\0\x00\x00",
        b"\xf0\xa8\0\0MSFT0201\0\0\0\0\0\0\0\0\x01\x01\x01",
    ];
    let ivrs = Ivrs::parse(&ivrs(1, &[in_segment(3, ivhd(0x40, 2, BASE, &entries.concat()))])).unwrap();
    let find = |hid, uid| ivrs.acpi_device(hid, uid).map(|device| (device.segment, device.id.get()));
    assert_eq!(find("AMDI0020", "A"), Some((3, 0xa5)));
    assert_eq!(find("AMDI0020", "7"), Some((3, 0xa6)));
    // An entry without a UID is for all, and the only one with a HID is for all of that HID.
    assert_eq!(find("PNPD004", "anything"), Some((3, 0xa7)));
    assert_eq!(find("MSFT0201", "2"), Some((3, 0xa8)));
    assert_eq!(find("AMDI0020", "B"), None);
    assert_eq!((find("AMDI002", "A"), find("", "A")), (None, None));
}

#[test]
fn a_driver_corrects_the_table_before_it_uses_it() {
    let machine = Machine::new();
    let unit = FakeUnit::new(FEATURES);
    let hardware = hardware(&unit, false);
    // Interrupts of IO-APICs pass while nobody has attached them; those of other devices do not.
    let passes = |unit: &FakeUnit, device| unit.entry(device)[2] >> 60 & 3;
    let table = ivrs(0, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    let overrides = vec!["ivrs_ioapic=33@00:14.1".parse().unwrap()];
    let config = Config { overrides, command_timeout: Duration::from_secs(5), ..config() };
    let driver = AmdVi::init(machine, &table, &hardware, config).unwrap();
    assert_eq!(devices(driver.ivrs()), ["IOAPIC[33]@0:a1/0"]);
    assert_eq!((passes(&unit, 0xa1), passes(&unit, 0xa2)), (1, 0));
}

#[test]
fn quirks_are_for_the_machines_that_they_name() {
    let names = |vendor, product| {
        let overrides = overrides_for(QUIRKS, vendor, product).unwrap();
        let one = |correction: &Override| match correction {
            Override::Special { kind, handle, device } => format!("{kind}[{handle}]@{}", device.id),
            Override::Acpi { .. } => panic!("none of the known machines has such a quirk"),
        };
        overrides.iter().map(one).collect::<Vec<_>>()
    };
    let both = ["IOAPIC[4]@00:14.0", "IOAPIC[5]@00:00.2"];
    assert_eq!(names("Dell Inc.", "Inspiron 7375"), both);
    assert_eq!(names("Dell Inc.", "Latitude 5495"), both[..1]);
    assert_eq!(names("Acer", "Aspire A315-41"), both[..1]);
    assert_eq!(names("LENOVO", "81FB"), ["IOAPIC[32]@00:14.0"]);
    assert!(names("LENOVO", "Inspiron 7375").is_empty() && names("", "").is_empty());
    // Firmware says more than the name now and then.
    assert_eq!(names("Acer Inc.", "Aspire A315-41 V1.0"), both[..1]);

    // A kernel's own table, with every mistake by its line.
    let more = "# mine\n\nme\tmachine\tivrs_hpet=0@00:14.1\n";
    assert_eq!(overrides_for(more, "me", "machine").unwrap().len(), 1);
    for bad in ["me\tmachine", "me\tmachine\t\t", "me machine ivrs_hpet=0@00:14.1"] {
        assert_eq!(overrides_for(bad, "me", "machine"), Err(QuirkError::Columns { line: 1 }), "{bad}");
    }
    assert_eq!(
        overrides_for(&format!("{more}you\tmachine\tivrs_hpet=x@00:14.1"), "me", "machine"),
        Err(QuirkError::Parameter { line: 4, error: OverrideError::Handle })
    );
}

fn madt(structures: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 44];
    table[..4].copy_from_slice(b"APIC");
    table.extend_from_slice(structures);
    let length = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&length);
    table
}

#[test]
fn a_madt_says_which_io_apics_there_are() {
    const LOCAL: [u8; 8] = [0, 8, 1, 1, 1, 0, 0, 0];
    let io_apic = |id| [1, 12, id, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
    let structures = [&LOCAL[..], &io_apic(33), &[0xff, 2], &io_apic(34)].concat();
    assert_eq!(Madt::parse(&madt(&structures)), Ok(Madt { io_apics: vec![33, 34] }));
    assert_eq!(Madt::parse(&[]), Err(MadtError::Truncated { have: 0, need: 44 }));
    assert_eq!(Madt::parse(&madt(&LOCAL)[..50]), Err(MadtError::Truncated { have: 50, need: 52 }));
    assert_eq!(Madt::parse(b"IVRS0000"), Err(MadtError::Signature));
    for bad in [&[0, 0][..], &[0, 1], &[1, 12, 0], &[1, 2], &[1]] {
        assert_eq!(Madt::parse(&madt(bad)), Err(MadtError::Structure { at: 44 }), "{bad:?}");
    }
}

#[test]
fn io_apics_that_the_tables_do_not_agree_on_are_warned_of() {
    let io_apic = |handle, device| [0x48, 0, 0, 0, handle, device, 0, 1];
    let check = |entries: &[[u8; 8]], madt: Option<&[u8]>| {
        let ivrs = Ivrs::parse(&ivrs(0, &[ivhd(0x10, 2, BASE, &entries.concat())])).unwrap();
        let madt = madt.map(|ids| Madt { io_apics: ids.to_vec() });
        let warnings = ivrs.check_io_apics(madt.as_ref());
        warnings.iter().map(|warning| warning.to_string()).collect::<Vec<_>>()
    };
    let (south, other) = (io_apic(33, 0xa0), io_apic(34, 0x01));
    assert!(check(&[south, other], Some(&[34, 33])).is_empty());
    assert!(check(&[south, other], None).is_empty());
    let starts = |found: Vec<String>, expected: &[&str]| {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        found.iter().zip(expected).for_each(|(text, start)| assert!(text.starts_with(start), "{text}"));
    };
    starts(check(&[south], Some(&[33, 34])), &["ioapic-not-listed: IOAPIC[34]"]);
    starts(check(&[south, other], Some(&[33])), &["ioapic-unknown: IOAPIC[34] at 00:00.1"]);
    starts(check(&[other], None), &["no-southbridge-ioapic:"]);
}

#[test]
fn real_machines_whose_tables_do_not_agree_are_warned_of() {
    let tables = RealTables::open();
    for table in tables.iter() {
        let file = table.file();
        let madt = Madt::parse(&table.madt).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(format!("{:?}", madt.io_apics), table.field("madt_ioapic_ids"), "{file}");
        // What the manifest says of both tables, as warnings.
        let listed: Vec<(u8, &str)> = table
            .field("special")
            .split("; ")
            .filter_map(|text| text.strip_prefix("IOAPIC["))
            .map(|text| text.split_once("]@").unwrap())
            .map(|(id, rest)| (id.parse().unwrap(), rest.split(' ').next().unwrap()))
            .collect();
        let mut expected: Vec<&str> = Vec::new();
        let unlisted = madt.io_apics.iter().filter(|id| !listed.iter().any(|(of, _)| of == *id));
        expected.extend(unlisted.map(|_| "ioapic-not-listed"));
        let unknown = listed.iter().filter(|(id, _)| !madt.io_apics.contains(id));
        expected.extend(unknown.map(|_| "ioapic-unknown"));
        expected.extend((!listed.iter().any(|(_, at)| *at == "00:14.0")).then_some("no-southbridge-ioapic"));
        let mut ivrs = Ivrs::parse(&table.ivrs).unwrap();
        let names = |ivrs: &Ivrs| {
            ivrs.check_io_apics(Some(&madt)).iter().map(|warning| warning.name()).collect::<Vec<_>>()
        };
        assert_eq!(names(&ivrs), expected, "{file}");
        if file.contains("Acer_Aspire_A315_41") {
            // Linux knows the southbridge's I/O APIC of this machine and not the other, and so do we.
            let unlisted =
                |ivrs: &Ivrs| names(ivrs).iter().filter(|name| **name == "ioapic-not-listed").count();
            assert_eq!(unlisted(&ivrs), 2);
            ivrs.apply(&overrides_for(QUIRKS, "Acer", "Aspire A315-41").unwrap());
            assert_eq!(unlisted(&ivrs), 1);
        }
    }
    tables.report("compared with their MADT");
}
