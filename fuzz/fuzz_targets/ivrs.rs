//! Whatever the bytes of an IVRS table and of a MADT, and whatever a user asks for, parsing ends and says something that can be
//! used.
//!
//! The input is the table; a first separator in it ends the table, a second one the MADT behind that, and the rest is text:
//! parameters, one a line, and a quirk table.

#![no_main]

use amd_vi::ivrs::{Ivrs, Madt, Override, overrides_for};
use libfuzzer_sys::fuzz_target;

const SEPARATOR: [u8; 4] = *b"\xff\xfe\xff\xfe";

fuzz_target!(|bytes: &[u8]| {
    let (ivrs, rest) = cut(bytes);
    let (madt, text) = cut(rest);
    let text = String::from_utf8_lossy(text);
    let overrides: Vec<Override> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let _ = overrides_for(&text, "me", "machine");
    look_at(ivrs, madt, &overrides);
    // Few inputs have a right header by chance; the blocks behind it are what is interesting.
    look_at(&sealed(ivrs, b"IVRS", 48), &sealed(madt, b"APIC", 44), &overrides);
});

/// What is before the first separator, and what is behind it.
fn cut(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.windows(4).position(|window| window == SEPARATOR) {
        Some(at) => (&bytes[..at], &bytes[at + 4..]),
        None => (bytes, &[]),
    }
}

/// The same with a header that is right, if it is long enough for one.
fn sealed(bytes: &[u8], signature: &[u8; 4], least: usize) -> Vec<u8> {
    let mut table = bytes.to_vec();
    if table.len() >= least {
        let length = (table.len() as u32).to_le_bytes();
        table[..4].copy_from_slice(signature);
        table[4..8].copy_from_slice(&length);
        table[9] = 0;
        table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    }
    table
}

/// Uses everything that a driver takes from the tables.
fn look_at(ivrs: &[u8], madt: &[u8], overrides: &[Override]) {
    let mut ivrs = match Ivrs::parse(ivrs) {
        Ok(ivrs) => ivrs,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    ivrs.apply(overrides);
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
    let madt = Madt::parse(madt).ok();
    for warning in ivrs.warnings.iter().chain(&ivrs.check_io_apics(madt.as_ref())) {
        assert!(warning.to_string().starts_with(warning.name()));
    }
    let _ = ivrs.acpi_device("AMDI0020", "1");
}
