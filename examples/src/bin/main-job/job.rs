//! What the program does, in order.

use std::sync::{Arc, Mutex};

use backend::{Backend, BackendError, Disk, DomainType};
use dma_api::Device;
use nvme_driver::{Controller, NvmeError};
use platform::pci::Function;
use platform::trace;
use sha2::{Digest, Sha256};

use crate::chain::{Chain, chains};
use crate::disk::{DiskError, File, pattern};
use crate::options::{Domain, Options};
use crate::progress::bar;
use crate::report::{DiskReport, Report};
use crate::rogue::{self, RogueError};
use crate::transfer::{Move, Mover, Stretch, Tally};

/// The length of most requests, in bytes.
const CHUNK: usize = 128 << 10;
/// The length of small requests, whose speed is reported beside.
const SMALL_CHUNK: usize = 4 << 10;
/// How much of the disk is read in small requests at most.
const SMALL_TOTAL: u64 = 64 << 20;
/// How much is read before it is hashed: hashing is not the driver's time.
const WINDOW: u64 = 32 << 20;
/// How much `--write` writes at most.
const WRITE_TOTAL: u64 = 256 << 20;

/// Why the job could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error("{0}")]
    Disk(#[from] DiskError),
    #[error("{0}")]
    Backend(#[from] BackendError),
    #[error("the driver failed: {0}")]
    Nvme(#[from] NvmeError),
    #[error("{0}")]
    Rogue(#[from] RogueError),
}

/// Does the job and says how it went.
pub(crate) fn run(options: &Options) -> Result<Report, JobError> {
    let (file, disk) = match options.device {
        Some(address) => (None, Disk::Controller(address)),
        None => {
            let file = File::prepare(options.disk.as_deref(), options.write)?;
            let disk = Disk::File { path: file.path.clone(), writable: file.writable };
            (Some(file), disk)
        }
    };
    let host_sha256 = file.as_ref().map(File::host_sha256).transpose()?;
    let machine = backend::open(
        options.backend.as_deref(),
        &backend::Options { disk, queues: options.queues, domain_type: options.domain.map(domain_type) },
    )?;
    let (function, device) = bind_disk(&*machine)?;
    let device = Arc::new(device);

    let (controller, mut events) =
        trace::record(|| Controller::new(function, Arc::clone(&device), options.queues));
    let controller = controller?;
    let mut mover = Mover::new(&controller)?;
    let (first, more) = trace::record(|| mover.read_one(0, controller.namespace().block_size));
    first?;
    events.extend(more);

    let on_controller = controller.namespace().blocks * controller.namespace().block_size as u64;
    let len = file.as_ref().map_or(on_controller, |file| file.len);
    let (read, sha256) = read_disk(&controller, &mut mover, len)?;
    let small = read_small(&controller, &mut mover, len)?;
    let writable = file.as_ref().filter(|file| file.writable);
    let written = writable.map(|file| write_disk(&controller, &mut mover, file)).transpose()?;
    drop(mover);
    let info = controller.info().clone();
    let namespace = controller.namespace();
    let queues = controller.queues();
    drop(controller);
    drop(device);

    let rogue = match rogue::show(&*machine) {
        Err(RogueError::Backend(BackendError::NoRogue(_))) => None,
        shown => Some(shown?),
    };
    Ok(Report {
        backend: machine.name(),
        machine: machine.description(),
        disk: DiskReport {
            name: file.map_or_else(|| machine.disk().to_string(), |file| file.name.clone()),
            len,
            model: info.model,
            blocks: namespace.blocks,
            block_size: namespace.block_size,
            queues,
        },
        host_sha256,
        sha256,
        read,
        small,
        written,
        rogue,
        statistics: machine.statistics(),
        free_memory_changed: machine.check_free_memory(),
        trace: first_chains(&events, options.trace),
    })
}

fn domain_type(domain: Domain) -> DomainType {
    match domain {
        Domain::Dma => DomainType::Dma,
        Domain::DmaFq => DomainType::DmaFq,
        Domain::Identity => DomainType::Identity,
    }
}

/// Where the hardware confines the disk it is bound safely; elsewhere this program says that it trusts it.
fn bind_disk(machine: &dyn Backend) -> Result<(Arc<dyn Function>, Device), BackendError> {
    machine.bind(machine.disk()).or_else(|_| {
        // SAFETY: the NVMe driver gives the controller only addresses of memory that it has mapped, and takes memory back
        // only when the controller is done with it; the controllers here do what they are told.
        unsafe { machine.trust(machine.disk()) }
    })
}

fn first_chains(events: &[trace::Event], count: Option<usize>) -> Vec<Chain> {
    chains(events).into_iter().take(count.unwrap_or(0)).collect()
}

/// Reads the whole disk and hashes `disk_len` bytes of it: all that a file has, whose last block may be padded.
fn read_disk(
    controller: &Controller,
    mover: &mut Mover<'_>,
    disk_len: u64,
) -> Result<(Tally, [u8; 32]), JobError> {
    let namespace = controller.namespace();
    let chunk = CHUNK.min(controller.max_transfer());
    let total = namespace.blocks * namespace.block_size as u64;
    let mut tally = Tally::default();
    let mut hash = Sha256::new();
    let bar = bar("reading", total);
    let mut start = 0;
    while start < total {
        let len = WINDOW.min(total - start);
        let kept = Mutex::new(Vec::new());
        tally.add(mover.run(Stretch { start, len, chunk }, &Move::Keep(&kept))?);
        let mut kept = kept.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.sort_unstable_by_key(|&(at, _)| at);
        for (at, buffer) in &kept {
            let in_file = disk_len.saturating_sub(*at).min(buffer.len() as u64) as usize;
            hash.update(&buffer[..in_file]);
        }
        mover.recycle(kept.into_iter().map(|(_, buffer)| buffer));
        start += len;
        bar.set_position(start);
    }
    bar.finish_and_clear();
    Ok((tally, hash.finalize().into()))
}

fn read_small(controller: &Controller, mover: &mut Mover<'_>, len: u64) -> Result<Tally, JobError> {
    let block_size = controller.namespace().block_size as u64;
    let whole_blocks = len / block_size * block_size;
    let chunk = SMALL_CHUNK.max(block_size as usize);
    Ok(mover.run(Stretch { start: 0, len: whole_blocks.min(SMALL_TOTAL), chunk }, &Move::Read)?)
}

/// What came of `--write`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) tally: Tally,
    /// The driver read back what it wrote.
    pub(crate) read_back: bool,
    /// The file has it, as the host reads it.
    pub(crate) on_host: bool,
}

fn write_disk(controller: &Controller, mover: &mut Mover<'_>, file: &File) -> Result<Written, JobError> {
    let block_size = controller.namespace().block_size as u64;
    let len = (file.len / block_size * block_size).min(WRITE_TOTAL);
    let stretch = Stretch { start: 0, len, chunk: CHUNK.min(controller.max_transfer()) };
    let bar = bar("writing", len);
    let written = |at: u64, bytes: &mut [u8]| {
        pattern(at, bytes);
        bar.inc(bytes.len() as u64);
    };
    let tally = mover.run(stretch, &Move::Write(&written))?;
    bar.finish_and_clear();
    mover.flush()?;
    let mut read_back = true;
    let mut start = 0;
    while start < len {
        let kept = Mutex::new(Vec::new());
        let window = Stretch { start, len: WINDOW.min(len - start), chunk: stretch.chunk };
        mover.run(window, &Move::Keep(&kept))?;
        let kept = kept.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut wanted = vec![0; stretch.chunk];
        for (at, buffer) in &kept {
            pattern(*at, &mut wanted[..buffer.len()]);
            read_back &= buffer[..] == wanted[..buffer.len()];
        }
        mover.recycle(kept.into_iter().map(|(_, buffer)| buffer));
        start += window.len;
    }
    Ok(Written { tally, read_back, on_host: file.host_compare(len, pattern)? })
}
