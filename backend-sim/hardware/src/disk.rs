//! A disk: a file on the host, in blocks of 512 bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 512;

/// The file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host does not open it.
    #[error("the disk cannot be opened: {0}")]
    Io(#[from] io::Error),
    /// There is not a byte in it.
    #[error("the disk is empty")]
    Empty,
}

/// The file.
pub(crate) struct Disk {
    file: File,
    len: u64,
    pub(crate) writable: bool,
}

impl Disk {
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self, DiskError> {
        let file = OpenOptions::new().read(true).write(writable).open(path)?;
        let len = file.metadata()?.len();
        if len == 0 { Err(DiskError::Empty) } else { Ok(Self { file, len, writable }) }
    }

    /// How many blocks there are, the last one perhaps not full.
    pub(crate) fn blocks(&self) -> u64 {
        self.len.div_ceil(BLOCK)
    }

    /// Reads; behind the file's end are zeros.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let in_file = self.len.saturating_sub(at).min(into.len() as u64) as usize;
        let (data, rest) = into.split_at_mut(in_file);
        self.file.read_exact_at(data, at)?;
        rest.fill(0);
        Ok(())
    }

    /// Writes; what is behind the file's end is dropped.
    pub(crate) fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let in_file = self.len.saturating_sub(at).min(from.len() as u64) as usize;
        self.file.write_all_at(&from[..in_file], at)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.writable { self.file.sync_data() } else { Ok(()) }
    }
}
