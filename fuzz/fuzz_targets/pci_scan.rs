//! Whatever configuration space says, scanning it and grouping what is found ends, and every function is in one group.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use iommu_core::pci::{QUIRKS, Topology, explain, groups};
use libfuzzer_sys::fuzz_target;
use platform::pci::{ConfigSpace, PciAddress, RequesterId};

/// Bytes of input for a function.
const RECORD: usize = 24;

/// A few functions. Half of them have configuration space that repeats the input's bytes, the others one that makes sense
/// but for what it says.
struct Input<'a>(BTreeMap<u16, &'a [u8]>);

impl ConfigSpace for Input<'_> {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let Some(bytes) = self.0.get(&function.id.get()) else { return u32::MAX };
        let byte = |index: usize| u32::from(bytes[index % bytes.len()]);
        let word =
            |index: usize| byte(index) | byte(index + 1) << 8 | byte(index + 2) << 16 | byte(index + 3) << 24;
        if byte(0) & 0x40 != 0 {
            return word(usize::from(offset));
        }
        match offset {
            0x00 => 0x1483_1022,
            0x04 => 0x0010_0000,
            // Header type: a bridge or not, several functions or one.
            0x0c => (byte(0) & 0x81) << 16,
            // Buses that there may be.
            0x18 => (byte(1) & 3) << 8,
            0x34 => 0x40,
            // What it is on PCI Express, if it is.
            0x40 if byte(0) & 2 != 0 => (byte(2) & 0xf) << 20 | 0x10,
            // Access Control Services.
            0x100 if byte(0) & 4 != 0 => 0x0001_000d,
            0x104 => word(3),
            _ => 0,
        }
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        panic!("scanning wrote {value:#x} to {function} at {offset:#x}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut functions = BTreeMap::new();
    let mut extra: BTreeMap<PciAddress, Vec<RequesterId>> = BTreeMap::new();
    for record in bytes.chunks_exact(RECORD).take(64) {
        // Few addresses on few buses: more would hardly ever be reached.
        let id = u16::from_le_bytes([record[0], record[1]]) & 0x0309;
        let alias = u16::from_le_bytes([record[2], record[3]]);
        functions.insert(id, &record[4..]);
        if alias & 0x8000 != 0 {
            let address = PciAddress { segment: 0, id: RequesterId::new(id) };
            extra.entry(address).or_default().push(RequesterId::new(alias & 0x0309));
        }
    }
    let topology = Topology::scan(&Input(functions), 0, QUIRKS);
    let groups = groups(&topology, &extra);
    let mut seen = BTreeSet::new();
    for (members, reasons) in &groups {
        assert!(explain(members, reasons).iter().all(|shared| !shared.why.is_empty()));
        for member in members {
            assert!(topology.get(*member).is_some() && seen.insert(*member));
        }
        assert!(reasons.iter().all(|reason| !reason.to_string().is_empty()));
    }
    assert_eq!(seen.len(), topology.iter().count());
});
