//! What firmware writes: the IVRS byte by byte, and the capability block that it points to; and memory's ranges.

mod common;

use common::{IOMMU, config_read};
use platform::pci::RequesterId;
use sim_hardware::firmware::{IvrsConfig, ivrs};
use sim_hardware::ram::{NotRam, Ram, RamError};
use sim_hardware::{Machine, MachineConfig};

#[test]
fn the_table_byte_by_byte() {
    let table = ivrs(&IvrsConfig {
        base: 0x1_2345_4000,
        efr: 0x8877_6655_4433_2211,
        efr2: 0xff00_ee00_dd00_cc00,
        capability: 0x40,
        iotlb_sup: false,
        devices: (RequesterId::from_parts(0, 1, 0), RequesterId::from_parts(255, 31, 7)),
        io_apic: (9, RequesterId::from_parts(0, 20, 0)),
        hpet: (3, RequesterId::from_parts(0, 20, 0)),
    });
    let mut expected = Vec::new();
    expected.extend(b"IVRS");
    expected.extend([0x94, 0, 0, 0, 2]);
    expected.push(table[9]);
    expected.extend(b"SIMHW MACHINE1\x01\0\0\0SIM \x01\0\0\0");
    // IVinfo of most real machines, and eight reserved bytes.
    expected.extend([0x41, 0x30, 0x20, 0x00, 0, 0, 0, 0, 0, 0, 0, 0]);
    let devices = [
        [0x03, 0x08, 0x00, 0x00],
        [0x04, 0xff, 0xff, 0x00],
        // IO-APIC 9 as 00:14.0, flags LINT1, LINT0, NMI, ExtInt, INIT.
        [0x48, 0x00, 0x00, 0xc7],
        [0x09, 0xa0, 0x00, 0x01],
        // HPET 3 under the same name.
        [0x48, 0x00, 0x00, 0x00],
        [0x03, 0xa0, 0x00, 0x02],
        [0x00, 0x00, 0x00, 0x00],
    ];
    // Type, flags, length, 00:00.2, capability, base, segment, info, features.
    expected.extend([0x10, 0x20, 0x34, 0, 2, 0, 0x40, 0, 0, 0x40, 0x45, 0x23, 1, 0, 0, 0]);
    expected.extend([0; 8]);
    expected.extend(devices.concat());
    // And with the images of both feature registers.
    expected.extend([0x11, 0x20, 0x44, 0, 2, 0, 0x40, 0, 0, 0x40, 0x45, 0x23, 1, 0, 0, 0]);
    expected.extend([0; 8]);
    expected.extend([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    expected.extend([0x00, 0xcc, 0x00, 0xdd, 0x00, 0xee, 0x00, 0xff]);
    expected.extend(devices.concat());
    expected[4] = expected.len() as u8;
    assert_eq!(table, expected);
    assert_eq!(table.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)), 0, "the checksum");
}

#[test]
fn the_capability_block_agrees() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(disk.path(), [0; 512]).unwrap();
    let machine = Machine::new(MachineConfig::new(disk.path())).unwrap();
    let table = machine.ivrs();
    // The first IVHD: capability at +6, base at +8.
    let at = u16::from_le_bytes(table[54..56].try_into().unwrap());
    assert_eq!(table[49], 1 << 5 | 1 << 4, "Coherent, IotlbSup");
    let base = u64::from_le_bytes(table[56..64].try_into().unwrap());
    let dword = |offset| config_read(&machine.pci, IOMMU, at + offset);
    // Capability 0Fh of type 3; EFRSup and IotlbSup, no NpCache.
    assert_eq!((dword(0) & 0xff, dword(0) >> 16 & 7, dword(0) >> 24 & 0xf), (0x0f, 3, 0b1001));
    assert_eq!(u64::from(dword(4) & !0x3fff) | u64::from(dword(8)) << 32, base);
    assert_eq!(dword(4) & 1, 1, "enabled, and so locked");
    let registers = machine.registers_at(base).expect("registers there");
    assert!(machine.registers_at(base + 0x4000).is_none());
    // The features of the second IVHD are the registers': XTSup, IASup, GASup, HATS for six levels, MsiCapMmioSup, HASup, HDSup; and 2048
    // entries in an interrupt table.
    let second = &table[100..];
    let image = |at: usize| u64::from_le_bytes(second[at..at + 8].try_into().unwrap());
    assert_eq!(
        (second[0], image(24), image(32)),
        (0x11, 1 << 2 | 3 << 6 | 2 << 10 | 1 << 46 | 1 << 49 | 1 << 52, 1 << 8)
    );
    assert_eq!((registers.read64(0x30), registers.read64(0x1a0)), (image(24), image(32)));
    // A function of the class IOMMU, on bus 0.
    assert_eq!(config_read(&machine.pci, IOMMU, 0x08) >> 8, 0x08_0600);
}

#[test]
fn memory_is_where_it_was_put() {
    let ram = Ram::new(&[(1 << 32, 8192), (0x1000, 0x2000)]).unwrap();
    assert_eq!(ram.ranges(), [(0x1000, 0x2000), (1 << 32, 8192)]);
    let mut bytes = [1; 16];
    ram.read(0x2ff0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 16], "zeros at first");
    ram.write(0x1_0000_0ffd, b"across a page").unwrap();
    ram.read(0x1_0000_0ffd, &mut bytes[..13]).unwrap();
    assert_eq!(&bytes[..13], b"across a page");
    ram.write64(0x1008, 0x8877_6655_4433_2211).unwrap();
    ram.read(0x100a, &mut bytes[..4]).unwrap();
    assert_eq!(bytes[..4], [0x33, 0x44, 0x55, 0x66], "little endian");
    // Before, behind, between, over the edge, around the end of all addresses.
    for (at, len) in [(0xfff, 1), (0x3000, 1), (0x2ff8, 9), (0x1_0000_2000, 1), (u64::MAX, 2)] {
        let mut bytes = vec![0; len];
        assert_eq!(ram.read(at, &mut bytes), Err(NotRam(at)), "{at:#x}");
        assert_eq!(ram.write(at, &bytes), Err(NotRam(at)), "{at:#x}");
    }
    assert_eq!((ram.read64(0x1004), ram.write64(0x3000, 0)), (Err(NotRam(0x1004)), Err(NotRam(0x3000))));
}

#[test]
fn ranges_that_make_no_memory_are_refused() {
    for ranges in [
        &[(0x1000, 0)][..],
        &[(0x1800, 0x1000)],
        &[(0x1000, 0x1800)],
        &[(0x1000, 0x2000), (0x2000, 0x1000)],
        &[(u64::MAX - 0xfff, 0x2000)],
    ] {
        assert!(matches!(Ram::new(ranges), Err(RamError::BadRange { .. })), "{ranges:x?}");
    }
}
