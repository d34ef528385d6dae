//! What a PVH loader says: where RAM and the ACPI tables are, and the command line.

use core::ffi::CStr;
use core::ops::Range;

const MAGIC: u32 = 0x336e_c578;

/// The loader's words.
#[derive(Debug)]
pub(crate) struct StartInfo {
    /// Where the RSDP is.
    pub(crate) rsdp: u64,
    /// What it was told to hand on.
    pub(crate) command_line: &'static str,
    memory: u64,
    count: u32,
}

impl StartInfo {
    /// Reads `hvm_start_info`.
    ///
    /// # Safety
    /// It is at that address, with what it points to, and nobody writes there.
    pub(crate) unsafe fn read(at: u64) -> Self {
        let info = core::ptr::with_exposed_provenance::<u8>(at as usize);
        // SAFETY: fields of the structure, at their offsets.
        unsafe {
            assert_eq!(info.cast::<u32>().read(), MAGIC, "not started by a PVH loader");
            let command_line = info.add(24).cast::<u64>().read();
            let command_line = match command_line {
                0 => c"",
                at => CStr::from_ptr(core::ptr::with_exposed_provenance(at as usize)),
            };
            Self {
                rsdp: info.add(32).cast::<u64>().read(),
                command_line: command_line.to_str().unwrap_or_default(),
                memory: info.add(40).cast::<u64>().read(),
                count: info.add(48).cast::<u32>().read(),
            }
        }
    }

    /// The stretch of RAM that an address is in, empty when that is none.
    pub(crate) fn ram_at(&self, address: u64) -> Range<u64> {
        const ENTRY: u64 = 24;
        const RAM: u32 = 1;
        let entries = (0..u64::from(self.count)).map(|index| {
            let entry = core::ptr::with_exposed_provenance::<u8>((self.memory + ENTRY * index) as usize);
            // SAFETY: the loader's table has so many entries: address, length and type.
            unsafe {
                let (start, len) = (entry.cast::<u64>().read(), entry.add(8).cast::<u64>().read());
                (start..start + len, entry.add(16).cast::<u32>().read())
            }
        });
        let mut ram = entries.filter(|(_, kind)| *kind == RAM).map(|(range, _)| range);
        ram.find(|range| range.contains(&address)).unwrap_or(0..0)
    }
}
