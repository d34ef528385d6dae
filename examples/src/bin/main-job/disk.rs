//! The file that is the disk.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::progress::bar;

/// The smallest disk that has anything to read: one block.
pub(crate) const BLOCK: u64 = 512;
const SEEDED_LEN: u64 = 64 << 20;

/// Why a file cannot be the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("{0} is a directory; --disk wants a file")]
    Directory(PathBuf),
    #[error("{0} is no regular file; --disk wants one")]
    NotRegular(PathBuf),
    #[error("{0} is too small to be a disk: {1} bytes, and a block has {BLOCK}")]
    TooSmall(PathBuf, u64),
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    #[error("cannot make {0}: {1}")]
    Unwritable(PathBuf, io::Error),
}

/// The disk, as a file on the host.
#[derive(Debug)]
pub(crate) struct File {
    /// What the machine gets: the user's file, the seeded image, or a scratch copy of either.
    pub(crate) path: PathBuf,
    /// What a person calls it.
    pub(crate) name: String,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// Whether the machine may write to it.
    pub(crate) writable: bool,
    // Removed with everything in it at the end.
    _folder: Option<TempDir>,
}

impl File {
    /// The file at `path`, or a seeded image. With `write` the machine gets a copy that it may change.
    pub(crate) fn prepare(path: Option<&Path>, write: bool) -> Result<Self, DiskError> {
        match path {
            Some(path) => {
                let len = check(path)?;
                let name = path.display().to_string();
                if !write {
                    return Ok(Self { path: path.into(), name, len, writable: false, _folder: None });
                }
                let folder = folder()?;
                let copy = folder.path().join("scratch.img");
                copy_with_progress(path, &copy, len)?;
                let name = format!("a scratch copy of {name}");
                Ok(Self { path: copy, name, len, writable: true, _folder: Some(folder) })
            }
            None => {
                let folder = folder()?;
                let image = folder.path().join("seeded.img");
                seed(&image).map_err(|error| DiskError::Unwritable(image.clone(), error))?;
                let name = "a seeded image".into();
                Ok(Self { path: image, name, len: SEEDED_LEN, writable: write, _folder: Some(folder) })
            }
        }
    }

    /// The SHA-256 of the file as the host reads it.
    pub(crate) fn host_sha256(&self) -> Result<[u8; 32], DiskError> {
        let unreadable = |error| DiskError::Unreadable(self.path.clone(), error);
        let mut file = fs::File::open(&self.path).map_err(unreadable)?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        let bar = bar("hashing", self.len);
        loop {
            match file.read(&mut piece).map_err(unreadable)? {
                0 => break,
                len => hash.update(&piece[..len]),
            }
            bar.inc(piece.len() as u64);
        }
        bar.finish_and_clear();
        Ok(hash.finalize().into())
    }

    /// Compares a part of the file, as the host reads it, with what `expected` says should be there.
    pub(crate) fn host_compare(
        &self,
        len: u64,
        expected: impl Fn(u64, &mut [u8]),
    ) -> Result<bool, DiskError> {
        let unreadable = |error| DiskError::Unreadable(self.path.clone(), error);
        let file = fs::File::open(&self.path).map_err(unreadable)?;
        let mut found = vec![0; 1 << 20];
        let mut wanted = vec![0; 1 << 20];
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(1 << 20) as usize;
            file.read_exact_at(&mut found[..piece], at).map_err(unreadable)?;
            expected(at, &mut wanted[..piece]);
            if found[..piece] != wanted[..piece] {
                return Ok(false);
            }
            at += piece as u64;
        }
        Ok(true)
    }
}

fn check(path: &Path) -> Result<u64, DiskError> {
    let unreadable = |error| DiskError::Unreadable(path.into(), error);
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(DiskError::Directory(path.into()));
    }
    // Opening a pipe would wait for its writer.
    if !metadata.is_file() {
        return Err(DiskError::NotRegular(path.into()));
    }
    fs::File::open(path).map_err(unreadable)?;
    if metadata.len() < BLOCK {
        return Err(DiskError::TooSmall(path.into(), metadata.len()));
    }
    Ok(metadata.len())
}

fn copy_with_progress(from: &Path, to: &Path, len: u64) -> Result<(), DiskError> {
    let bar = bar("copying", len);
    let file = fs::File::open(from).map_err(|error| DiskError::Unreadable(from.into(), error))?;
    let mut from = io::BufReader::with_capacity(1 << 20, file);
    let copied = fs::File::create(to).and_then(|copy| io::copy(&mut from, &mut bar.wrap_write(copy)));
    copied.map_err(|error| DiskError::Unwritable(to.into(), error))?;
    bar.finish_and_clear();
    Ok(())
}

fn folder() -> Result<TempDir, DiskError> {
    tempfile::tempdir().map_err(|error| DiskError::Unwritable("a temporary folder".into(), error))
}

/// Fills a new file with numbers that look random and are the same in every run.
fn seed(path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let mut state = 0x0123_4567_89ab_cdef_u64;
    for _ in 0..SEEDED_LEN / 8 {
        file.write_all(&xorshift(&mut state).to_le_bytes())?;
    }
    file.flush()
}

/// Marsaglia's xorshift64.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// What `--write` writes: each word of 8 bytes says where it is.
pub(crate) fn pattern(at: u64, bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_mut(8).enumerate() {
        let value = (at + 8 * index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}
