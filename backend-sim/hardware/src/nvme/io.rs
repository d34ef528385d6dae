//! I/O commands.

use std::sync::atomic::Ordering;

use super::prp;
use super::queue::{Command, Held};
use super::status::Status;
use super::{MAX_TRANSFER_SHIFT, Shared};
use crate::bus::Port;
use crate::disk::BLOCK;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;

impl Shared {
    /// Executes an I/O command. `buffer` is the worker's own, kept for the next.
    pub(super) fn io(&self, port: &Port, command: &Command, buffer: &mut Vec<u8>) -> Result<(), Held> {
        let opcode = command.opcode();
        if !matches!(opcode, FLUSH | WRITE | READ) {
            return Err(Status::INVALID_OPCODE.into());
        }
        if !command.is_plain() {
            return Err(Status::INVALID_FIELD.into());
        }
        let all_namespaces = opcode == FLUSH && command.namespace() == u32::MAX;
        if command.namespace() != 1 && !all_namespaces {
            return Err(Status::INVALID_NAMESPACE.into());
        }
        if opcode == FLUSH {
            return self.namespace.flush().map_err(|_| Status::INTERNAL_ERROR.into());
        }
        let block = u64::from(command.dword(10)) | u64::from(command.dword(11)) << 32;
        let blocks = u64::from(command.dword(12) & 0xffff) + 1;
        if block.checked_add(blocks).is_none_or(|end| end > self.namespace.blocks()) {
            return Err(Status::LBA_OUT_OF_RANGE.into());
        }
        let len = (blocks * BLOCK) as usize;
        if len > 4096 << MAX_TRANSFER_SHIFT {
            return Err(Status::INVALID_FIELD.into());
        }
        let (first, second) = command.prp();
        let pieces = prp::pieces(port, first, second, len)?;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let data = &mut buffer[..len];
        if opcode == READ {
            self.namespace.read(block * BLOCK, data).map_err(|_| Status::INTERNAL_ERROR)?;
            prp::to_host(port, &pieces, data)?;
            self.reads.fetch_add(1, Ordering::Relaxed);
        } else {
            if !self.namespace.writable {
                return Err(Status::WRITE_PROTECTED.into());
            }
            prp::from_host(port, &pieces, data)?;
            self.namespace.write(block * BLOCK, data).map_err(|_| Status::INTERNAL_ERROR)?;
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(())
    }
}
