//! The machine's ACPI tables: QEMU hands out their text and a script by which firmware puts it together.

use std::collections::BTreeMap;

use crate::fw_cfg::{File, FwCfg, FwCfgError};

const SCRIPT: &str = "etc/table-loader";
const RSDP: &str = "etc/acpi/rsdp";
/// Where the first file goes, as far as pointers in the tables know. Nothing is put there: who wants a table is given it.
const FIRST: u32 = 0x0800_0000;

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// QEMU's files cannot be read.
    #[error("{0}")]
    FwCfg(#[from] FwCfgError),
    /// The script asks for what is not there.
    #[error("the table loader's script asks for what is not there, in its entry {0}")]
    Script(usize),
    /// The tables do not hang together.
    #[error("no ACPI table {0:?}")]
    NoTable(String),
}

/// The tables, loaded. Only a PC has them here.
#[derive(Debug, Default)]
pub struct AcpiTables {
    files: BTreeMap<String, Loaded>,
}

#[derive(Debug)]
struct Loaded {
    base: u32,
    bytes: Vec<u8>,
}

impl AcpiTables {
    /// Reads the files and does what the script says.
    pub(crate) fn load(fw_cfg: &FwCfg<'_>) -> Result<Self, AcpiError> {
        let mut files: Vec<File> = fw_cfg.files("etc/acpi/")?;
        let script = fw_cfg.files(SCRIPT)?.into_iter().next().map(|(_, bytes)| bytes).unwrap_or_default();
        let mut next = FIRST;
        let mut tables = Self { files: BTreeMap::new() };
        files.sort();
        for (name, bytes) in files {
            let base = next;
            next += (bytes.len() as u32).next_multiple_of(4096);
            tables.files.insert(name, Loaded { base, bytes });
        }
        for (index, entry) in script.chunks_exact(128).enumerate() {
            tables.execute(entry).ok_or(AcpiError::Script(index))?;
        }
        Ok(tables)
    }

    /// Does what one entry of the script says; `None` when it makes no sense.
    fn execute(&mut self, entry: &[u8]) -> Option<()> {
        const NAME: usize = 56;
        const ALLOCATE: u32 = 1;
        const ADD_POINTER: u32 = 2;
        const ADD_CHECKSUM: u32 = 3;
        let name = |at: usize| {
            let name = entry.get(at..at + NAME)?.split(|&byte| byte == 0).next()?;
            std::str::from_utf8(name).ok()
        };
        match le32(entry, 0)? {
            // Every file has its place already.
            ALLOCATE => self.files.get(name(4)?).map(drop),
            ADD_POINTER => {
                let base = u64::from(self.files.get(name(4 + NAME)?)?.base);
                let offset = le32(entry, 4 + 2 * NAME)? as usize;
                let size = usize::from(*entry.get(8 + 2 * NAME)?);
                let file = self.files.get_mut(name(4)?)?;
                let pointer = file.bytes.get_mut(offset..offset.checked_add(size)?)?;
                let mut value = [0; 8];
                value.get_mut(..size)?.copy_from_slice(pointer);
                let value = u64::from_le_bytes(value).wrapping_add(base).to_le_bytes();
                pointer.copy_from_slice(&value[..size]);
                Some(())
            }
            ADD_CHECKSUM => {
                let [offset, start, len] =
                    [0, 4, 8].map(|at| le32(entry, 4 + NAME + at).map(|it| it as usize));
                let (offset, start, len) = (offset?, start?, len?);
                let file = self.files.get_mut(name(4)?)?;
                let summed = file.bytes.get(start..start.checked_add(len)?)?;
                let sum = summed.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
                let checksum = file.bytes.get_mut(offset)?;
                *checksum = checksum.wrapping_sub(sum);
                Some(())
            }
            // What is written back to QEMU (WRITE_POINTER) is for devices that are not here; unknown entries are skipped, as
            // firmware does.
            _ => Some(()),
        }
    }

    /// The table with this signature, found as an operating system finds it: from the RSDP over the RSDT or XSDT.
    ///
    /// # Errors
    /// [`AcpiError::NoTable`].
    pub fn table(&self, signature: &[u8; 4]) -> Result<&[u8], AcpiError> {
        let found = self.root().and_then(|(root, width)| {
            let pointers = root.get(36..)?.chunks_exact(width);
            pointers.filter_map(|pointer| self.at(le(pointer))).find(|table| table.starts_with(signature))
        });
        found.ok_or_else(|| AcpiError::NoTable(String::from_utf8_lossy(signature).into_owned()))
    }

    /// The table of tables, and how long its pointers are.
    fn root(&self) -> Option<(&[u8], usize)> {
        let rsdp = &self.files.get(RSDP)?.bytes;
        let revision = *rsdp.get(15)?;
        match rsdp.get(24..32).map(le) {
            Some(xsdt) if revision >= 2 && xsdt != 0 => Some((self.at(xsdt)?, 8)),
            _ => Some((self.at(u64::from(le32(rsdp, 16)?))?, 4)),
        }
    }

    /// The table at an address, as long as it says that it is.
    fn at(&self, address: u64) -> Option<&[u8]> {
        self.files.values().find_map(|file| {
            let offset = usize::try_from(address.checked_sub(file.base.into())?).ok()?;
            let len = le32(&file.bytes, offset.checked_add(4)?)? as usize;
            file.bytes.get(offset..offset.checked_add(len)?)
        })
    }
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?).map(|four| le(four) as u32)
}
