//! Block requests (VIRTIO 1.2, section 5.2.6).

use std::io;

use super::Shared;
use super::queue::{Chain, NeedsReset, Segment};
use crate::bus::{BusError, Port};
use crate::disk::{BLOCK, Disk};

const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: u64 = 16;
/// What is moved at once.
const CHUNK: usize = 64 << 10;

/// A request's last byte, where it is not 0.
#[derive(Clone, Copy)]
enum Failure {
    IoError = 1,
    Unsupported = 2,
}

impl From<BusError> for Failure {
    fn from(_: BusError) -> Self {
        Self::IoError
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::IoError
    }
}

/// What a device with this disk offers.
pub(super) fn features(disk: &Disk) -> u64 {
    if disk.writable { FLUSH } else { FLUSH | READ_ONLY }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len).sum()
}

/// Calls `body` with the address of each chunk of `segments` from byte `from` up to `to`, and its length.
fn chunks<E>(
    segments: &[Segment],
    from: u64,
    to: u64,
    mut body: impl FnMut(u64, usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut start = 0;
    for segment in segments {
        let end = start + segment.len;
        let mut at = from.max(start);
        while at < to.min(end) {
            let len = (to.min(end) - at).min(CHUNK as u64);
            body(segment.address.wrapping_add(at - start), len as usize)?;
            at += len;
        }
        start = end;
    }
    Ok(())
}

impl Shared {
    /// Executes a request and writes its status; how many bytes from the start of its writable part were written.
    pub(super) fn execute(&self, port: &Port, chain: &Chain) -> Result<u32, NeedsReset> {
        // Without a header or a byte for the status there is no request.
        let writable = total(&chain.writable);
        if total(&chain.readable) < HEADER || writable == 0 {
            return Err(NeedsReset);
        }
        let data = writable - 1;
        let mut written = 0;
        let outcome = self.transfer(port, chain, data, &mut written);
        let status = outcome.map_or_else(|failure| failure as u8, |()| 0);
        chunks(&chain.writable, data, writable, |address, _| port.write(address, &[status]))
            .map_err(|_| NeedsReset)?;
        if written == data {
            written += 1;
        }
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Moves the data; `data` bytes can be written.
    fn transfer(&self, port: &Port, chain: &Chain, data: u64, written: &mut u64) -> Result<(), Failure> {
        const IN: u32 = 0;
        const OUT: u32 = 1;
        const FLUSH: u32 = 4;
        const GET_ID: u32 = 8;
        const ID: [u8; 20] = *b"simulated-virtio-blk";
        let mut header = [0; HEADER as usize];
        let mut filled = 0;
        chunks(&chain.readable, 0, HEADER, |address, len| {
            let part = &mut header[filled..filled + len];
            filled += len;
            port.read(address, part)
        })?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            IN => {
                let mut at = self.place(sector, data)?;
                let mut buffer = vec![0; CHUNK.min(data as usize)];
                chunks(&chain.writable, 0, data, |address, len| {
                    self.disk.read(at, &mut buffer[..len])?;
                    port.write(address, &buffer[..len])?;
                    at += len as u64;
                    *written += len as u64;
                    Ok(())
                })
            }
            OUT => {
                let end = total(&chain.readable);
                let mut at = self.place(sector, end - HEADER)?;
                if !self.disk.writable {
                    return Err(Failure::IoError);
                }
                let mut buffer = vec![0; CHUNK.min((end - HEADER) as usize)];
                chunks(&chain.readable, HEADER, end, |address, len| {
                    port.read(address, &mut buffer[..len])?;
                    self.disk.write(at, &buffer[..len])?;
                    at += len as u64;
                    Ok(())
                })
            }
            FLUSH => Ok(self.disk.flush()?),
            GET_ID => chunks(&chain.writable, 0, data.min(ID.len() as u64), |address, len| {
                let from = *written as usize;
                port.write(address, &ID[from..from + len])?;
                *written += len as u64;
                Ok(())
            }),
            _ => Err(Failure::Unsupported),
        }
    }

    /// Where a range of whole sectors begins on the disk, in bytes.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let end = sector.checked_add(len / BLOCK).ok_or(Failure::IoError)?;
        if !len.is_multiple_of(BLOCK) || end > self.disk.blocks() {
            return Err(Failure::IoError);
        }
        Ok(sector * BLOCK)
    }
}
