//! Admin commands.

use std::sync::Arc;

use super::prp;
use super::queue::{Command, Held, Ring};
use super::status::Status;
use super::{MAX_ENTRIES, MAX_TRANSFER_SHIFT, Shared};
use crate::bus::Port;
use crate::disk::BLOCK;

const DELETE_SUBMISSION: u8 = 0x00;
const CREATE_SUBMISSION: u8 = 0x01;
const GET_LOG_PAGE: u8 = 0x02;
const DELETE_COMPLETION: u8 = 0x04;
const CREATE_COMPLETION: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const ASYNC_EVENT: u8 = 0x0c;

const VOLATILE_WRITE_CACHE: u32 = 0x06;
const NUMBER_OF_QUEUES: u32 = 0x07;

impl Shared {
    /// Executes an admin command; the result is dword 0 of its completion.
    pub(super) fn admin(&self, port: &Port, command: &Command) -> Result<u32, Held> {
        if !command.is_plain() {
            return Err(Status::INVALID_FIELD.into());
        }
        match command.opcode() {
            DELETE_SUBMISSION => self.delete_submission(command),
            CREATE_SUBMISSION => self.create_submission(command),
            DELETE_COMPLETION => self.delete_completion(command),
            CREATE_COMPLETION => self.create_completion(command),
            IDENTIFY => self.identify(port, command),
            GET_LOG_PAGE => self.log_page(port, command),
            SET_FEATURES | GET_FEATURES => self.feature(command),
            // Every command has ended, or will: there is nothing to abort.
            ABORT => Ok(1),
            ASYNC_EVENT => Err(Held::Held),
            _ => Err(Status::INVALID_OPCODE.into()),
        }
    }

    /// Number, ring and flags of a queue to be created.
    fn new_queue(&self, command: &Command) -> Result<(u16, Ring), Status> {
        const CONTIGUOUS: u32 = 1 << 0;
        let (id, entries) = (command.dword(10) as u16, (command.dword(10) >> 16) + 1);
        if id == 0 || id > self.config.io_queues {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if !(2..=MAX_ENTRIES).contains(&entries) {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if command.dword(11) & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let base = command.prp().0;
        if !base.is_multiple_of(4096) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        Ok((id, Ring { base, entries }))
    }

    fn create_completion(&self, command: &Command) -> Result<u32, Held> {
        const INTERRUPTS_ENABLED: u32 = 1 << 1;
        let (id, ring) = self.new_queue(command)?;
        let vector = (command.dword(11) >> 16) as u16;
        let interrupts = command.dword(11) & INTERRUPTS_ENABLED != 0;
        if interrupts && vector > self.config.io_queues {
            return Err(Status::INVALID_VECTOR.into());
        }
        let queues = &self.queues;
        if queues.completion[usize::from(id)].lock().is_some() {
            return Err(Status::INVALID_QUEUE_ID.into());
        }
        self.doorbells[2 * usize::from(id) + 1].store(0, std::sync::atomic::Ordering::SeqCst);
        queues.create_completion(id, ring, interrupts.then_some(vector));
        Ok(0)
    }

    fn create_submission(&self, command: &Command) -> Result<u32, Held> {
        let (id, ring) = self.new_queue(command)?;
        let completion = (command.dword(11) >> 16) as u16;
        let queues = &self.queues;
        if completion == 0 || completion > self.config.io_queues {
            return Err(Status::INVALID_QUEUE_ID.into());
        }
        if queues.completion[usize::from(completion)].lock().is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID.into());
        }
        if queues.submission[usize::from(id)].lock().is_some() {
            return Err(Status::INVALID_QUEUE_ID.into());
        }
        self.doorbells[2 * usize::from(id)].store(0, std::sync::atomic::Ordering::SeqCst);
        queues.create_submission(id, ring, completion);
        Ok(0)
    }

    fn delete_submission(&self, command: &Command) -> Result<u32, Held> {
        let id = command.dword(10) as u16;
        if id == 0 || id > self.config.io_queues {
            return Err(Status::INVALID_QUEUE_ID.into());
        }
        let slot = Arc::clone(&self.queues.submission[usize::from(id)]);
        // Whoever works on the queue holds it: when this returns its commands have ended.
        let deleted = slot.lock().take();
        if deleted.is_some() { Ok(0) } else { Err(Status::INVALID_QUEUE_ID.into()) }
    }

    fn delete_completion(&self, command: &Command) -> Result<u32, Held> {
        let id = command.dword(10) as u16;
        if id == 0 || id > self.config.io_queues {
            return Err(Status::INVALID_QUEUE_ID.into());
        }
        let queues = &self.queues;
        let in_use =
            |queue: &Option<super::queue::Submission>| queue.as_ref().is_some_and(|q| q.completion == id);
        // The admin queue is held by this very command, and has a completion queue of its own.
        if queues.submission.iter().skip(1).any(|slot| in_use(&slot.lock())) {
            return Err(Status::INVALID_QUEUE_DELETION.into());
        }
        let deleted = queues.completion[usize::from(id)].lock().take();
        if deleted.is_some() { Ok(0) } else { Err(Status::INVALID_QUEUE_ID.into()) }
    }

    fn feature(&self, command: &Command) -> Result<u32, Held> {
        match command.dword(10) & 0xff {
            VOLATILE_WRITE_CACHE => Ok(1),
            NUMBER_OF_QUEUES => {
                let count = u32::from(self.config.io_queues) - 1;
                if command.opcode() == SET_FEATURES {
                    let wanted = command.dword(11);
                    if wanted & 0xffff == 0xffff || wanted >> 16 == 0xffff {
                        return Err(Status::INVALID_FIELD.into());
                    }
                }
                Ok(count << 16 | count)
            }
            _ => Err(Status::INVALID_FIELD.into()),
        }
    }

    fn log_page(&self, port: &Port, command: &Command) -> Result<u32, Held> {
        // Error information, SMART, firmware slots: nothing has happened to this controller.
        if !matches!(command.dword(10) & 0xff, 1..=3) {
            return Err(Status::INVALID_FIELD.into());
        }
        let dwords = (command.dword(10) >> 16) as usize + 1;
        self.send(port, command, &vec![0; (4 * dwords).min(4096)])
    }

    fn send(&self, port: &Port, command: &Command, data: &[u8]) -> Result<u32, Held> {
        let (first, second) = command.prp();
        let pieces = prp::pieces(port, first, second, data.len())?;
        prp::to_host(port, &pieces, data)?;
        Ok(0)
    }

    fn identify(&self, port: &Port, command: &Command) -> Result<u32, Held> {
        let mut data = vec![0; 4096];
        match command.dword(10) & 0xff {
            0 if command.namespace() == 1 => self.identify_namespace(&mut data),
            0 => return Err(Status::INVALID_NAMESPACE.into()),
            1 => self.identify_controller(&mut data),
            // Active namespaces with identifiers above the one given.
            2 => {
                if command.namespace() == 0 {
                    data[0] = 1;
                }
            }
            _ => return Err(Status::INVALID_FIELD.into()),
        }
        self.send(port, command, &data)
    }

    fn identify_controller(&self, data: &mut [u8]) {
        let mut text = |at: usize, len: usize, text: &str| {
            let mut padded = text.as_bytes().to_vec();
            padded.resize(len, b' ');
            data[at..at + len].copy_from_slice(&padded);
        };
        text(4, 20, "SIM0001");
        text(24, 40, "Simulated NVMe disk");
        text(64, 8, "1.0");
        data[0..2].copy_from_slice(&0x1b36_u16.to_le_bytes());
        data[77] = MAX_TRANSFER_SHIFT;
        data[80..84].copy_from_slice(&0x0001_0400_u32.to_le_bytes());
        // Entry sizes: 64 bytes and 16 bytes, required and most.
        data[512] = 0x66;
        data[513] = 0x44;
        data[516..520].copy_from_slice(&1_u32.to_le_bytes());
        // A write cache is there.
        data[525] = 1;
    }

    fn identify_namespace(&self, data: &mut [u8]) {
        let blocks = self.namespace.blocks().to_le_bytes();
        for at in [0, 8, 16] {
            data[at..at + 8].copy_from_slice(&blocks);
        }
        // One format: blocks of 2^9 bytes, no metadata.
        data[130] = BLOCK.trailing_zeros() as u8;
        data[99] = u8::from(!self.namespace.writable);
    }
}
