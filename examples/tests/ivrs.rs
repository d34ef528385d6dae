//! The decoder of IVRS tables as a stranger runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ivrs");
const CANNOT_BE_USED: i32 = 2;

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{arguments:?}");
    text(&output.stdout).into()
}

/// Runs, expects that the table cannot be used, and returns the one line that says why.
fn fails(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(CANNOT_BE_USED), ""), "{said}");
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    said.into()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeds(&[arguments, &["--json"]].concat())).unwrap()
}

/// A table with everything in it: one unit in blocks 10h and 40h, memory, a block that nobody knows.
fn table() -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"IVRS");
    table[8] = 2;
    table[10..16].copy_from_slice(b"ME    ");
    table[36..40].copy_from_slice(&0x0020_3043_u32.to_le_bytes());
    let header = |kind: u8, entries: &[u8]| {
        let mut block = vec![kind, 0x30, 0, 0, 0x02, 0x00, 0x40, 0x00];
        block.extend_from_slice(&0xfeb8_0000_u64.to_le_bytes());
        // Segment 1, message 3, no attributes.
        block.extend_from_slice(&[1, 0, 3, 0, 0, 0, 0, 0]);
        if kind != 0x10 {
            block.extend_from_slice(&0x48_u64.to_le_bytes());
            block.extend_from_slice(&0x100_u64.to_le_bytes());
        }
        block.extend_from_slice(entries);
        let length = (block.len() as u16).to_le_bytes();
        block[2..4].copy_from_slice(&length);
        block
    };
    let old = [0x02, 0x08, 0, 0, 0, 0, 0, 0];
    let new = [
        &[0x03, 0x08, 0, 0, 0x04, 0xfe, 0xff, 0][..],
        &[0x43, 0x00, 0xff, 0x40, 0, 0xa5, 0x00, 0, 0x04, 0xff, 0xff, 0],
        &[0x48, 0, 0, 0xd7, 33, 0xa0, 0, 1],
        &[0x48, 0, 0, 0, 0, 0xa0, 0, 2],
        b"\xf0\xa6\0\0AMDI0020MSFT0201\x02\x03\\_S",
        b"\xf0\xa7\0\0PNPD0040\0\0\0\0\0\0\0\0\x01\x02\0\x01",
        b"\xf0\xa8\0\0PNPD0041\0\0\0\0\0\0\0\0\0\0",
        &[0x46, 0x30, 0, 0, 0, 0, 0, 0x80],
    ]
    .concat();
    table.extend(header(0x10, &old));
    table.extend(header(0x40, &new));
    let memory = |kind: u8, flags: u8, last: u16| {
        let mut block = vec![kind, flags, 32, 0, 0x60, 0];
        block.extend_from_slice(&last.to_le_bytes());
        block.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        block.extend_from_slice(&0x7d90_0000_u64.to_le_bytes());
        block.extend_from_slice(&0x10_0000_u64.to_le_bytes());
        block
    };
    table.extend(memory(0x20, 0x03, 0));
    table.extend(memory(0x21, 0x07, 0));
    table.extend(memory(0x22, 0x08, 0x61));
    table.extend([0x51, 0, 8, 0, 1, 2, 3, 4]);
    let length = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&length);
    seal(&mut table);
    table
}

fn seal(table: &mut [u8]) {
    table[9] = 0;
    table[9] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
}

/// A MADT with these IO-APICs.
fn madt(ids: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 44];
    table[..4].copy_from_slice(b"APIC");
    ids.iter().for_each(|id| table.extend([1, 12, *id, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    let length = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&length);
    table
}

/// Files in a folder of their own.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn add(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().into()
    }
}

#[test]
fn the_object_has_everything() {
    let files = Files::new();
    let path = files.add("IVRS", &table());
    let devices = |first, last, flags| json!({ "first": first, "last": last, "flags": flags });
    let expected = json!({
        "units": [{
            "address": "0001:00:00.2",
            "type": "0x40",
            "flags": "0x30",
            "capability": "0x40",
            "base": "0xfeb80000",
            "info": "0x3",
            "features": "0x0",
            "efr": "0x48",
            "efr2": "0x100",
            "devices": [devices("00:01.0", "ff:1f.6", "0x0"), devices("00:06.0", "00:06.0", "0x0")],
        }],
        "blocks": { "0x10": 1, "0x20": 1, "0x21": 1, "0x22": 1, "0x40": 1, "0x51": 1 },
        "entries": { "0x0": 1, "0x2": 1, "0x3": 1, "0x4": 2, "0x43": 1, "0x46": 1, "0x48": 2, "0xf0": 3 },
        "special": [
            { "kind": "IOAPIC", "handle": 33, "segment": 1, "device": "00:14.0", "flags": "0xd7" },
            { "kind": "HPET", "handle": 0, "segment": 1, "device": "00:14.0", "flags": "0x0" },
        ],
        "hids": [
            { "hid": "AMDI0020", "cid": "MSFT0201", "uid": "\\_S", "segment": 1, "device": "00:14.6", "flags": "0x0" },
            { "hid": "PNPD0040", "cid": "", "uid": 256, "segment": 1, "device": "00:14.7", "flags": "0x0" },
            { "hid": "PNPD0041", "cid": "", "uid": null, "segment": 1, "device": "00:15.0", "flags": "0x0" },
        ],
        "aliases": [
            { "segment": 1, "first": "ff:00.0", "last": "ff:1f.7", "alias": "00:14.5", "flags": "0x40" },
        ],
        "ivmds": [
            { "type": "0x20", "flags": "0x3", "segment": 1, "devices": null, "start": "0x7d900000", "length": "0x100000" },
            { "type": "0x21", "flags": "0x7", "segment": 1, "devices": ["00:0c.0", "00:0c.0"], "start": "0x7d900000", "length": "0x100000" },
            { "type": "0x22", "flags": "0x8", "segment": 1, "devices": ["00:0c.0", "00:0c.1"], "start": "0x7d900000", "length": "0x100000" },
        ],
        "warnings": [
            "exclusion-as-unity: excluded memory at 0x7d900000, 0x100000 bytes, is mapped directly instead",
            "unknown-block: block of type 0x51 at offset 0x16b skipped",
        ],
    });
    let mut found = json(&[&path]);
    // Where the unknown block is depends on how long all before it is; the name is what matters.
    let at = table().len() - 8;
    assert_eq!(found["warnings"][1], format!("unknown-block: block of type 0x51 at offset {at:#x} skipped"));
    found["warnings"][1] = expected["warnings"][1].clone();
    assert_eq!(found, expected, "{found:#}");
}

#[test]
fn a_person_sees_everything_too() {
    let files = Files::new();
    let printed = succeeds(&[&files.add("IVRS", &table())]);
    for line in [
        "IVRS revision 2, OEM ME, IVinfo 0x203043: physical addresses of 48 bits, virtual of 64, images of the feature \
         registers are valid, protected before the system starts",
        "blocks   0x10×1 0x20×1 0x21×1 0x22×1 0x40×1 0x51×1",
        "entries  0x0×1 0x2×1 0x3×1 0x4×2 0x43×1 0x46×1 0x48×2 0xf0×3",
        "IOMMU 0001:00:00.2, registers at 0xfeb80000, capability at 0x40, MSI number 3 (block of type 0x40, one of 2)",
        "  flags     0x30: IOTLB_SUP COHERENT",
        "  features  0x0000000000000048: NX IA host tables of 4 levels",
        "  features2 0x0000000000000100",
        "  devices   00:01.0–ff:1f.6",
        "  devices   00:06.0, no ATS",
        "  alias     ff:00.0–ff:1f.7 use the name 00:14.5, passes LINT0",
        "  special   IOAPIC[33] at 00:14.0, passes INIT ExtInt NMI LINT0 LINT1 SysMgt 1",
        "  special   HPET[0] at 00:14.0",
        "  ACPI      AMDI0020 (MSFT0201):\\\\_S at 00:14.6",
        "  ACPI      PNPD0040:256 at 00:14.7",
        "  ACPI      PNPD0041 at 00:15.0",
        "memory 0x7d900000, 0x100000 bytes, for all devices of segment 1: mapped directly for reading",
        "memory 0x7d900000, 0x100000 bytes, for 00:0c.0 of segment 1: mapped directly for reading and writing",
        "memory 0x7d900000, 0x100000 bytes, for 00:0c.0–00:0c.1 of segment 1: excluded, mapped directly for reading and \
         writing",
        "2 warnings",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n is not in\n{printed}");
    }
}

#[test]
fn io_apics_are_compared_and_corrected() {
    let files = Files::new();
    let (ivrs, own) = (files.add("IVRS", &table()), files.add("APIC", &madt(&[33])));
    let other = files.add("OTHER", &madt(&[4]));
    let warnings = |arguments: &[&str]| {
        let value = json(&[&[ivrs.as_str()], arguments].concat());
        let names = value["warnings"].as_array().unwrap().iter().skip(2);
        names
            .map(|warning| warning.as_str().unwrap().split(": ").next().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(warnings(&["--madt", &own]), [""; 0]);
    assert_eq!(warnings(&["--madt", &other]), ["ioapic-not-listed", "ioapic-unknown"]);
    assert_eq!(warnings(&["--madt", &other, "--override", "ivrs_ioapic=4@1:0:15.0"]), ["ioapic-unknown"]);
    assert_eq!(warnings(&["--override", "ivrs_ioapic=33@1:0:15.0"]), ["no-southbridge-ioapic"]);
    assert_eq!(warnings(&["--override", "ivrs_ioapic=34@2:0:15.0"]), ["override-without-unit"]);
    let value = json(&[
        &ivrs,
        "--override",
        "ivrs_hpet=0@1:0:15.1",
        "--override",
        "ivrs_acpihid=PNPD0041:7@1:0:16.0",
    ]);
    assert_eq!(
        (&value["special"][1]["device"], &value["hids"][2]["device"]),
        (&json!("00:15.1"), &json!("00:16.0"))
    );
}

#[test]
fn what_is_no_table_is_refused_by_name() {
    let files = Files::new();
    let good = table();
    let bad = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        files.add(name, &bytes)
    };
    let nothing = files.0.path().join("nothing");
    assert!(fails(&[nothing.to_str().unwrap()]).contains("No such file"));
    assert!(fails(&[files.0.path().to_str().unwrap()]).contains("directory"));
    assert!(fails(&[&files.add("empty", b"")]).contains("has 0 bytes"));
    assert!(fails(&[&files.add("dsdt", b"DSDT and more")]).contains("signature"));
    assert!(fails(&[&bad("short", &|bytes| bytes.truncate(60))]).contains("60 bytes"));
    assert!(fails(&[&bad("block", &|bytes| bytes[50] = 2)]).contains("impossible length"));
    let path = files.add("IVRS", &good);
    assert!(fails(&[&path, "--madt", &path]).contains("no MADT"));
    // A wrong checksum only is said.
    let sum = bad("sum", &|bytes| bytes[9] ^= 1);
    assert!(json(&[&sum])["warnings"][0].as_str().unwrap().starts_with("bad-checksum: "));
    // An endless file ends.
    assert!(fails(&["/dev/zero"]).contains("signature"));
    let output = run(&[&path, "--override", "ivrs_ioapic=4@00:15"]);
    assert_eq!(output.status.code(), Some(CANNOT_BE_USED));
    assert!(text(&output.stderr).contains("[SEGMENT:]BUS:DEVICE.FUNCTION"), "{}", text(&output.stderr));
}

#[test]
fn without_a_file_it_is_this_machines_own_table() {
    let output = run(&[]);
    if !Path::new("/sys/firmware/acpi/tables/IVRS").exists() {
        assert_eq!(output.status.code(), Some(CANNOT_BE_USED));
        assert!(text(&output.stderr).contains("no IVRS table"), "{}", text(&output.stderr));
    } else if output.status.success() {
        assert!(text(&output.stdout).starts_with("IVRS revision"));
    } else {
        assert!(text(&output.stderr).contains("cannot read"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_reader_may_leave_and_a_stranger_gets_help() {
    let files = Files::new();
    let path = files.add("IVRS", &table());
    let mut child =
        Command::new(PROGRAM).arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let help = succeeds(&["--help"]);
    for word in ["FILE", "--madt", "--override", "--json", "/sys/firmware/acpi/tables"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

/// The folder of tables of real machines, which not every clone has.
fn real_tables() -> PathBuf {
    std::env::var_os("REAL_DATA")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real")))
        .join("ivrs")
}

#[test]
fn objects_of_real_tables_say_what_the_manifest_says() {
    const KNOWN: usize = 63;
    let folder = real_tables();
    let manifest = fs::read_to_string(folder.join("manifest.tsv")).unwrap_or_default();
    let mut lines = manifest.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let names = lines.next().unwrap_or_default();
    let mut checked = 0;
    for fields in lines {
        let field = |name: &str| fields[names.iter().position(|other| *other == name).unwrap()];
        let path = folder.join(field("file"));
        if !path.exists() {
            continue;
        }
        let value = json(&[path.to_str().unwrap()]);
        let list = |name: &str| value[name].as_array().unwrap();
        let counts = |name: &str| {
            let map = value[name].as_object().unwrap();
            let mut counts: Vec<_> = map.iter().map(|(kind, count)| format!("{kind}x{count}")).collect();
            counts.sort();
            counts
        };
        let sorted = |name: &str| {
            let mut words: Vec<_> = field(name).split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        let items = |name: &str| field(name).split("; ").filter(|item| !item.is_empty()).count();
        assert_eq!(list("units").len().to_string(), field("iommus"), "{path:?}");
        assert_eq!((counts("blocks"), counts("entries")), (sorted("blocks"), sorted("entries")), "{path:?}");
        assert_eq!(list("hids").len(), items("hids"), "{path:?}");
        assert_eq!(list("aliases").len(), items("alias"), "{path:?}");
        assert_eq!(list("ivmds").len(), items("ivmd"), "{path:?}");
        let mut special: Vec<_> = list("special")
            .iter()
            .map(|it| {
                let word = |name: &str| it[name].as_str().unwrap();
                format!("{}[{}]@{} fl={}", word("kind"), it["handle"], word("device"), word("flags"))
            })
            .collect();
        special.sort();
        let mut expected: Vec<_> = field("special").split("; ").map(str::to_owned).collect();
        expected.sort();
        assert_eq!(special, expected, "{path:?}");
        checked += 1;
    }
    println!(
        "{checked} real tables checked, {} not found in {}",
        KNOWN.saturating_sub(checked),
        folder.display()
    );
}
