//! On every backend of this build, with every domain type that it has, the NVMe driver runs under `Checked` and nothing is
//! reported: no rule of the DMA API broken, nothing left mapped.

mod common;

use std::sync::Arc;
use std::time::Duration;

use backend::{Backend, BackendError, DomainType, Options};
use dma_api::{Device, DmaBuffer, DmaDebug};
use nvme_driver::Controller;
use tempfile::NamedTempFile;

const BLOCK: usize = 512;
const BLOCKS: u64 = 2048;
/// One block, a page that begins within one, and two that take a list of pages.
const TRANSFERS: [usize; 4] = [BLOCK, 4096, 64 << 10, 12800];
const SOON: Duration = Duration::from_secs(30);

fn pattern(seed: u8, buffer: &mut [u8]) {
    let bytes = (0..).map(|index: usize| (index >> 9) as u8 ^ index as u8 ^ seed);
    buffer.iter_mut().zip(bytes).for_each(|(byte, value)| *byte = value);
}

/// Writes and reads back on two queues, each with several commands outstanding.
fn use_the_disk(device: Device, machine: &dyn Backend, function: Arc<dyn platform::pci::Function>) {
    let controller = Controller::new(function, Arc::new(device), 2).unwrap();
    let mut queues = [1, 2].map(|id| controller.io_queue(id, 8).unwrap());
    for (seed, queue) in (1..).zip(&mut queues) {
        let place = |index: usize| u64::from(seed) * 512 + index as u64 * 128;
        for (index, &len) in TRANSFERS.iter().enumerate() {
            let mut buffer = DmaBuffer::zeroed(controller.device(), len).unwrap();
            pattern(seed, &mut buffer);
            queue.write(place(index), buffer).unwrap();
        }
        TRANSFERS.iter().for_each(|_| queue.wait(SOON).unwrap().result.unwrap());
        queue.flush().unwrap();
        queue.wait(SOON).unwrap().result.unwrap();
        for (index, &len) in TRANSFERS.iter().enumerate() {
            let buffer = DmaBuffer::zeroed_in(machine.platform(), len).unwrap();
            queue.read(place(index), buffer).unwrap();
        }
        for _ in TRANSFERS {
            let done = queue.wait(SOON).unwrap();
            done.result.unwrap();
            let buffer = done.buffer.unwrap();
            let mut wanted = vec![0; buffer.len()];
            pattern(seed, &mut wanted);
            assert!(buffer[..] == wanted, "{}: {} bytes are wrong", machine.name(), buffer.len());
        }
    }
}

/// Runs the driver on a machine that this name and domain type open, if they do.
fn runs_clean(name: &str, domain_type: Option<DomainType>) -> bool {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(BLOCKS * BLOCK as u64).unwrap();
    let options = Options { disk: common::file(&disk, true), queues: 2, domain_type };
    let machine = match backend::open(Some(name), &options) {
        Ok(machine) => machine,
        Err(BackendError::DomainType(_) | BackendError::NoDomains(_)) => return false,
        Err(error) => panic!("{name}: {error}"),
    };
    let debug = Arc::new(DmaDebug::new());
    // SAFETY: the disk of a test's machine does as it is told.
    let (function, device) = unsafe { machine.trust(machine.disk()) }.unwrap();
    use_the_disk(device.checked(&debug), &*machine, function);
    let reports: Vec<String> = debug.take_reports().iter().map(ToString::to_string).collect();
    assert_eq!((reports, debug.lost()), (Vec::new(), 0), "{name}, {domain_type:?}");
    assert_eq!(debug.dump(), [], "{name}, {domain_type:?}");
    assert_eq!(machine.check_free_memory(), Vec::<String>::new());
    true
}

#[test]
fn the_nvme_driver_makes_no_mistake_on_any_backend() {
    for name in common::names() {
        assert!(runs_clean(name, None), "{name} does not open");
        for domain_type in [DomainType::Dma, DomainType::DmaFq, DomainType::Identity] {
            let possible = common::has_domain_type(name, domain_type);
            assert_eq!(runs_clean(name, Some(domain_type)), possible, "{name}, {domain_type:?}");
        }
    }
}
