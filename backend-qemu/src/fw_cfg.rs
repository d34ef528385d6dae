//! What QEMU has for firmware: files, read through the DMA interface of its `fw_cfg` device.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dma_api::{DmaBuffer, DmaError};
use platform::time::poll_until;
use platform::{Platform, TimedOut};

use crate::qtest::Qtest;

/// The upper and the lower half of the address of a request, big-endian; the lower one starts it.
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;
/// The selector of the list of files.
const DIRECTORY: u16 = 0x19;
const ENTRY: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Every request goes to QEMU by a system call, which orders what is before it and after it.
const ORDER: Ordering = Ordering::Relaxed;

/// Why a file of QEMU's could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FwCfgError {
    /// No memory to read it into.
    #[error("no memory to read into: {0}")]
    Memory(#[from] DmaError),
    /// QEMU refused.
    #[error("QEMU refuses to hand out its firmware files")]
    Refused,
    /// QEMU took too long.
    #[error("{0}")]
    TimedOut(#[from] TimedOut),
}

/// The device.
pub(crate) struct FwCfg<'a> {
    pub(crate) qtest: &'a Qtest,
    pub(crate) platform: &'a Arc<dyn Platform>,
}

/// A file's name and contents.
pub(crate) type File = (String, Vec<u8>);

impl FwCfg<'_> {
    /// Every file under `folder`.
    pub(crate) fn files(&self, folder: &str) -> Result<Vec<File>, FwCfgError> {
        let head = self.read(DIRECTORY, 4)?;
        let count = be32(&head, 0) as usize;
        let directory = self.read(DIRECTORY, 4 + count.min(4096) * ENTRY)?;
        let mut files = Vec::new();
        for entry in directory[4..].chunks_exact(ENTRY) {
            let key = u16::from_be_bytes([entry[4], entry[5]]);
            let name: Vec<u8> = entry[8..].iter().copied().take_while(|&byte| byte != 0).collect();
            let name = String::from_utf8_lossy(&name).into_owned();
            if name.starts_with(folder) {
                files.push((name, self.read(key, be32(entry, 0) as usize)?));
            }
        }
        Ok(files)
    }

    /// The first `len` bytes behind a selector.
    fn read(&self, key: u16, len: usize) -> Result<Vec<u8>, FwCfgError> {
        const READ: u32 = 1 << 1;
        const SELECT: u32 = 1 << 3;
        const ERROR: u32 = 1;
        if len == 0 {
            return Ok(Vec::new());
        }
        let data = DmaBuffer::<u8>::zeroed_in(self.platform, len)?;
        let request = DmaBuffer::<u8>::zeroed_in(self.platform, 16)?;
        // SAFETY: the buffer is RAM as long as it lives, and reached by words alone while QEMU has it.
        let words = unsafe { self.platform.window().words(request.phys(), 2) };
        let control = (u32::from(key) << 16) | READ | SELECT;
        words[0].store((u64::from(control) << 32 | len as u64).to_be(), ORDER);
        words[1].store(data.phys().get().to_be(), ORDER);
        let at = request.phys().get();
        self.qtest.out32(DMA_HIGH, ((at >> 32) as u32).swap_bytes());
        self.qtest.out32(DMA_LOW, (at as u32).swap_bytes());
        let mut left = 0;
        poll_until(&**self.platform, TIMEOUT, || {
            left = (u64::from_be(words[0].load(ORDER)) >> 32) as u32;
            left & !ERROR == 0
        })?;
        if left & ERROR != 0 { Err(FwCfgError::Refused) } else { Ok(data.to_vec()) }
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}
