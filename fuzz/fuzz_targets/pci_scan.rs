//! Whatever configuration space says, scanning it and grouping what is found ends, and every function is in one group.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use iommu_core::pci::{Topology, groups};
use libfuzzer_sys::fuzz_target;
use platform::pci::{ConfigSpace, PciAddress, RequesterId};

/// Bytes of input for a function: its address, an alias, and the bytes that its configuration space repeats.
const RECORD: usize = 96;

/// A few functions with configuration space that repeats the input's bytes.
struct Input<'a>(BTreeMap<u16, &'a [u8]>);

impl ConfigSpace for Input<'_> {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let Some(bytes) = self.0.get(&function.id.get()) else { return u32::MAX };
        let word = [0, 1, 2, 3].map(|index| bytes[(usize::from(offset) + index) % bytes.len()]);
        let word = u32::from_le_bytes(word);
        // Bridges lead to buses that there may be.
        if offset == 0x18 { word & 0xffff_07ff } else { word }
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        panic!("scanning wrote {value:#x} to {function} at {offset:#x}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut functions = BTreeMap::new();
    let mut extra: BTreeMap<PciAddress, Vec<RequesterId>> = BTreeMap::new();
    for record in bytes.chunks_exact(RECORD).take(64) {
        // Buses 0 to 7: more would hardly ever be reached.
        let id = u16::from_le_bytes([record[0], record[1]]) & 0x07ff;
        let alias = u16::from_le_bytes([record[2], record[3]]);
        functions.insert(id, &record[4..]);
        if alias & 0x8000 != 0 {
            let address = PciAddress { segment: 0, id: RequesterId::new(id) };
            extra.entry(address).or_default().push(RequesterId::new(alias & 0x07ff));
        }
    }
    let topology = Topology::scan(&Input(functions), 0);
    let groups = groups(&topology, &extra);
    let mut seen = BTreeSet::new();
    for (members, reasons) in &groups {
        assert_eq!(members.len(), reasons.len() + 1);
        for member in members {
            assert!(topology.get(*member).is_some() && seen.insert(*member));
        }
        assert!(reasons.iter().all(|reason| !reason.to_string().is_empty()));
    }
    assert_eq!(seen.len(), topology.iter().count());
});
