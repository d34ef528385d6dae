//! The ACPI tables: from the RSDP over the RSDT or XSDT to the one that is wanted.

use alloc::vec::Vec;

/// Every table that the root table names.
#[derive(Debug)]
pub(crate) struct AcpiTables(Vec<&'static [u8]>);

const HEADER: usize = 36;

impl AcpiTables {
    /// Reads the root table.
    ///
    /// # Safety
    /// The RSDP is at that physical address, what it and its tables point to is memory below 4 GiB, and nobody writes there.
    pub(crate) unsafe fn new(rsdp: u64) -> Self {
        const RSDP: usize = 36;
        // SAFETY: the caller's promise; older ones are shorter, and followed by something.
        let rsdp = unsafe { memory(rsdp, RSDP) };
        let (root, width) =
            if rsdp[15] >= 2 { (number(&rsdp[24..32]), 8) } else { (number(&rsdp[16..20]), 4) };
        // SAFETY: as above.
        let root = unsafe { table(root) };
        // SAFETY: as above.
        Self(root[HEADER..].chunks_exact(width).map(|pointer| unsafe { table(number(pointer)) }).collect())
    }

    /// The table with this signature.
    pub(crate) fn find(&self, signature: &[u8; 4]) -> Option<&'static [u8]> {
        self.0.iter().copied().find(|table| table.starts_with(signature))
    }

    /// Eight bytes of a table, as a number.
    pub(crate) fn field(table: &[u8], at: usize) -> Option<u64> {
        table.get(at..at + 8).map(number)
    }
}

/// # Safety
/// As [`AcpiTables::new`].
unsafe fn memory(at: u64, len: usize) -> &'static [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(at as usize), len) }
}

/// # Safety
/// As [`AcpiTables::new`].
unsafe fn table(at: u64) -> &'static [u8] {
    // SAFETY: the caller's promise.
    let header = unsafe { memory(at, HEADER) };
    // SAFETY: as above.
    unsafe { memory(at, (number(&header[4..8]) as usize).max(HEADER)) }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
