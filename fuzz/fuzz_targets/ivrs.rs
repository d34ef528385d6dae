//! Whatever the bytes of an IVRS table, parsing it ends and says something that can be used.

#![no_main]

use amd_vi::ivrs::Ivrs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    look_at(bytes);
    // Few inputs have a right header by chance; the blocks behind it are what is interesting.
    let mut table = bytes.to_vec();
    if table.len() >= 48 {
        let length = (table.len() as u32).to_le_bytes();
        table[..4].copy_from_slice(b"IVRS");
        table[4..8].copy_from_slice(&length);
        table[9] = 0;
        table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        look_at(&table);
    }
});

/// Uses everything that a driver takes from a table.
fn look_at(bytes: &[u8]) {
    let ivrs = match Ivrs::parse(bytes) {
        Ok(ivrs) => ivrs,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let units = ivrs.units();
    assert!(units.len() <= ivrs.ivhds.len());
    for unit in units {
        let highest = unit.highest_device();
        for entry in &unit.entries {
            let (first, last) = entry.devices();
            assert!(first <= last && last <= highest, "{entry:?}");
        }
    }
    for ivmd in &ivrs.ivmds {
        assert!(ivmd.last().is_none_or(|last| last >= ivmd.start));
        let _ = (ivmd.unity(), ivmd.applies_to(ivmd.segment, 0));
    }
    for warning in &ivrs.warnings {
        assert!(warning.to_string().starts_with(warning.name()));
    }
}
