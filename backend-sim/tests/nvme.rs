//! The NVMe driver on the machine: what it reads and writes is what the file on the host has, byte for byte, in every mode,
//! and it leaves nothing behind.

mod common;

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use backend_sim::sim_hardware::Machine;
use backend_sim::{Config, SimMachine};
use common::{IDENTITY, LAZY, STRICT};
use dma_api::{Device, DmaBuffer, DmaDebug};
use nvme_driver::{Controller, IoQueue, NvmeError};
use platform::pci::Function;
use platform::{Clock, PhysAddr};
use tempfile::NamedTempFile;

const BLOCK: usize = 512;
const DEPTH: u32 = 32;
const QUEUES: u16 = 4;
const LEN: usize = 4 << 20;
/// From one block over a part of a page and two pages to lists of many.
const SIZES: [usize; 7] = [BLOCK, 4096, 3 * BLOCK, 128 << 10, 8192, 64 << 10, 12288];
const SOON: Duration = Duration::from_secs(30);

/// Bytes that depend on their place, with no period that a page or a block could hide.
fn bytes_at(seed: u64, at: u64, into: &mut [u8]) {
    for (index, byte) in into.iter_mut().enumerate() {
        let place = at + index as u64;
        *byte = ((place ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
}

fn expected(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes_at(seed, 0, &mut bytes);
    bytes
}

fn disk(len: usize) -> NamedTempFile {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().write_all_at(&expected(1, len), 0).unwrap();
    disk
}

fn on_host(disk: &NamedTempFile) -> Vec<u8> {
    std::fs::read(disk.path()).unwrap()
}

fn boot(disk: &NamedTempFile, change: impl FnOnce(Config) -> Config) -> SimMachine {
    let config = Config { disk_writable: true, queues: QUEUES, settings: STRICT, ..Config::new(disk.path()) };
    SimMachine::boot(change(config)).unwrap()
}

fn bind(machine: &SimMachine) -> (Arc<dyn Function>, Arc<Device>) {
    // SAFETY: the simulated controller does as it is told, and memory of the machine is no memory of the process.
    let (function, device) = unsafe { machine.trust(SimMachine::address(Machine::NVME)) }.unwrap();
    (function, Arc::new(device))
}

fn controller(machine: &SimMachine) -> Controller {
    let (function, device) = bind(machine);
    Controller::new(function, device, QUEUES).unwrap()
}

/// Waits for one command and hands its buffer out.
fn finish(queue: &mut IoQueue<'_>) -> Result<Option<DmaBuffer<u8>>, NvmeError> {
    let done = queue.wait(SOON)?;
    done.result.map(|()| done.buffer)
}

fn buffer(controller: &Controller, len: usize) -> DmaBuffer<u8> {
    DmaBuffer::zeroed(controller.device(), len).unwrap()
}

fn read(controller: &Controller, queue: &mut IoQueue<'_>, block: u64, len: usize) -> Vec<u8> {
    queue.read(block, buffer(controller, len)).unwrap();
    finish(queue).unwrap().unwrap().to_vec()
}

/// Moves the whole disk in pieces of all sizes, each queue on a thread of its own and as deep as it is: every piece goes
/// through `send` on its way out, and through `check` when it is back.
fn move_everything(
    controller: &Controller,
    send: &(dyn Fn(&mut IoQueue<'_>, u64, DmaBuffer<u8>) -> u16 + Sync),
    check: &(dyn Fn(u64, &[u8]) + Sync),
) {
    let len = controller.namespace().blocks * BLOCK as u64;
    let share = (len / u64::from(QUEUES)).next_multiple_of(BLOCK as u64);
    std::thread::scope(|scope| {
        for id in 1..=controller.queues() {
            scope.spawn(move || {
                let mut queue = controller.io_queue(id, DEPTH).unwrap();
                let mut places = HashMap::new();
                let mut at = share * u64::from(id - 1);
                let end = (at + share).min(len);
                let mut sizes = SIZES.iter().cycle();
                while at < end || queue.outstanding() > 0 {
                    while at < end && queue.outstanding() < queue.depth() {
                        let size = sizes.next().map_or(BLOCK, |&size| size.min((end - at) as usize));
                        let tag = send(&mut queue, at, buffer(controller, size));
                        assert_eq!(places.insert(tag, at), None, "a tag of two commands");
                        at += size as u64;
                    }
                    let done = queue.wait(SOON).unwrap();
                    done.result.unwrap();
                    check(places.remove(&done.tag).unwrap(), &done.buffer.unwrap());
                }
            });
        }
    });
}

/// Reads the whole disk, writes it anew, flushes, reads it again; compares with the file each time.
fn read_and_write_everything(controller: &Controller, disk: &NamedTempFile) {
    let reads = |queue: &mut IoQueue<'_>, at, buffer| queue.read(at / BLOCK as u64, buffer).unwrap();
    let is = |seed| {
        move |at: u64, found: &[u8]| {
            let mut wanted = vec![0; found.len()];
            bytes_at(seed, at, &mut wanted);
            assert!(found == wanted, "{} bytes at {at} are wrong", found.len());
        }
    };
    move_everything(controller, &reads, &is(1));
    let writes = |queue: &mut IoQueue<'_>, at, mut buffer: DmaBuffer<u8>| {
        bytes_at(2, at, &mut buffer);
        queue.write(at / BLOCK as u64, buffer).unwrap()
    };
    // A buffer that was only read by the device comes back as it was.
    move_everything(controller, &writes, &is(2));
    let mut queue = controller.io_queue(1, DEPTH).unwrap();
    queue.flush().unwrap();
    assert!(finish(&mut queue).unwrap().is_none());
    drop(queue);
    assert!(on_host(disk) == expected(2, LEN));
    move_everything(controller, &reads, &is(2));
}

/// Nothing is mapped any more, nothing was given up, and no device wrote where it may not.
fn nothing_is_left(machine: &SimMachine) {
    if let Some(iommu) = machine.iommu() {
        // What a flush queue holds counts as mapped.
        iommu.tick(machine.platform().now());
        let statistics = iommu.statistics();
        assert_eq!(statistics.maps, statistics.unmaps);
        assert_eq!((statistics.quarantined, statistics.faults), (0, 0));
    }
    assert_eq!(machine.bounce().statistics().used, 0);
    assert_eq!(machine.check_free_memory(), []);
    assert_eq!(machine.take_faults(), []);
}

/// How many mappings were made, and how many of them were bounced.
fn exercise(change: impl FnOnce(Config) -> Config) -> (u64, u64) {
    let disk = disk(LEN);
    let machine = boot(&disk, change);
    read_and_write_everything(&controller(&machine), &disk);
    nothing_is_left(&machine);
    let maps = machine.iommu().map_or(0, |iommu| iommu.statistics().maps);
    (maps, machine.bounce().statistics().maps)
}

/// The commands that [`read_and_write_everything`] moves data with.
fn transfers() -> u64 {
    let share = LEN / usize::from(QUEUES);
    let mut pieces = 0;
    let mut at = 0;
    for size in SIZES.iter().cycle() {
        if at >= share {
            break;
        }
        at += size;
        pieces += 1;
    }
    3 * u64::from(QUEUES) * pieces
}

#[test]
fn strict() {
    let (maps, bounced) = exercise(|config| config);
    assert!(maps >= transfers(), "{maps} maps for {} transfers", transfers());
    assert_eq!(bounced, 0);
}

#[test]
fn lazy() {
    let (maps, bounced) = exercise(|config| Config { settings: LAZY, ..config });
    assert!(maps >= transfers());
    assert_eq!(bounced, 0);
}

#[test]
fn identity() {
    let (maps, bounced) = exercise(|config| Config { settings: IDENTITY, ..config });
    assert!(maps >= transfers());
    // The driver says that the controller has 64 address bits: nothing needs to be bounced.
    assert_eq!(bounced, 0);
}

#[test]
fn an_untrusted_controller_gets_copies_of_what_is_no_whole_page() {
    let (_, bounced) =
        exercise(|config| Config { untrusted: vec![SimMachine::address(Machine::NVME)], ..config });
    assert!(bounced > 0 && bounced < transfers());
}

#[test]
fn without_an_iommu_data_above_4_gib_is_bounced() {
    let disk = disk(LEN);
    let machine = boot(&disk, Config::without_iommu);
    let controller = controller(&machine);
    // Memory is handed out from the top, so all data is beyond what the bus lets these devices reach.
    assert!(buffer(&controller, 4096).phys() >= PhysAddr::new(4 << 30));
    let before = machine.bounce().statistics().maps;
    read_and_write_everything(&controller, &disk);
    assert_eq!(machine.bounce().statistics().maps - before, transfers());
    drop(controller);
    nothing_is_left(&machine);
}

/// Everything that the driver asks of the DMA API is as it should be, and nothing stays mapped when it goes.
fn runs_clean(change: impl FnOnce(Config) -> Config) {
    let disk = disk(LEN);
    let machine = boot(&disk, change);
    let debug = Arc::new(DmaDebug::new());
    // SAFETY: as in `bind`.
    let (function, device) = unsafe { machine.trust(SimMachine::address(Machine::NVME)) }.unwrap();
    let controller = Controller::new(function, Arc::new(device.checked(&debug)), QUEUES).unwrap();
    assert_ne!(debug.dump(), [], "the driver's memory goes through the checks");
    read_and_write_everything(&controller, &disk);
    drop(controller);
    assert_eq!(debug.take_reports(), []);
    assert_eq!(debug.dump(), []);
    nothing_is_left(&machine);
}

#[test]
fn the_driver_makes_no_mistake_strict() {
    runs_clean(|config| config);
}

#[test]
fn the_driver_makes_no_mistake_lazy() {
    runs_clean(|config| Config { settings: LAZY, ..config });
}

#[test]
fn the_driver_makes_no_mistake_untranslated() {
    runs_clean(|config| Config { settings: IDENTITY, ..config });
}

#[test]
fn the_driver_makes_no_mistake_untrusted() {
    runs_clean(|config| Config { untrusted: vec![SimMachine::address(Machine::NVME)], ..config });
}

#[test]
fn the_driver_makes_no_mistake_without_an_iommu() {
    runs_clean(Config::without_iommu);
}

#[test]
fn identify_says_what_the_controller_is() {
    let disk = disk(10 * BLOCK + 1);
    let machine = boot(&disk, |config| config);
    let controller = controller(&machine);
    let info = controller.info();
    assert_eq!(info.model, "Simulated NVMe disk");
    assert_eq!(info.version, (1, 4, 0));
    assert_eq!(info.namespaces, 1);
    // MDTS: 2^8 pages.
    assert_eq!(info.max_transfer, Some(1 << 20));
    assert_eq!(controller.max_transfer(), 1 << 20);
    let namespace = controller.namespace();
    assert_eq!((namespace.id, namespace.blocks, namespace.block_size), (1, 11, BLOCK));
    // The last block is padded with zeros, and what is written there stays within the file.
    let mut queue = controller.io_queue(1, 1).unwrap();
    let last = read(&controller, &mut queue, 10, BLOCK);
    assert_eq!(last[0], expected(1, 10 * BLOCK + 1)[10 * BLOCK]);
    assert!(last[1..].iter().all(|&byte| byte == 0));
    let mut whole = buffer(&controller, BLOCK);
    whole.fill(7);
    queue.write(10, whole).unwrap();
    finish(&mut queue).unwrap();
    let file = on_host(&disk);
    assert_eq!((file.len(), file[10 * BLOCK]), (10 * BLOCK + 1, 7));
}

#[test]
fn the_longest_command_takes_a_list_of_many_pages() {
    let disk = disk(LEN);
    let machine = boot(&disk, |config| config);
    let controller = controller(&machine);
    let mut queue = controller.io_queue(2, DEPTH).unwrap();
    let longest = controller.max_transfer();
    let found = read(&controller, &mut queue, 3, longest);
    assert!(found == expected(1, LEN)[3 * BLOCK..][..longest]);
}

#[test]
fn what_is_no_range_of_the_disk_is_refused_and_the_buffer_comes_back() {
    let disk = disk(LEN);
    let machine = boot(&disk, |config| config);
    let controller = controller(&machine);
    let mut queue = controller.io_queue(1, 4).unwrap();
    let blocks = controller.namespace().blocks;
    let too_long = controller.max_transfer() + BLOCK;
    let refused = [
        (blocks, BLOCK),
        (blocks - 1, 2 * BLOCK),
        (u64::MAX, BLOCK),
        (0, BLOCK + 1),
        (0, BLOCK - 1),
        (0, too_long),
    ];
    for (block, bytes) in refused {
        let rejected = queue.read(block, buffer(&controller, bytes)).unwrap_err();
        assert_eq!(rejected.error, NvmeError::BadRange { block, bytes });
        assert_eq!(rejected.buffer.unwrap().len(), bytes);
    }
    assert_eq!(queue.outstanding(), 0);
    assert!(read(&controller, &mut queue, blocks - 1, BLOCK) == expected(1, LEN)[LEN - BLOCK..]);
}

#[test]
fn a_full_queue_says_so_and_the_buffer_comes_back() {
    let disk = disk(LEN);
    let machine = boot(&disk, |config| config);
    let controller = controller(&machine);
    let mut queue = controller.io_queue(1, 2).unwrap();
    assert_eq!(queue.depth(), 2);
    for block in 0..2 {
        queue.read(block, buffer(&controller, BLOCK)).unwrap();
    }
    let rejected = queue.read(2, buffer(&controller, BLOCK)).unwrap_err();
    assert_eq!(rejected.error, NvmeError::QueueFull);
    assert!(rejected.buffer.is_some());
    assert_eq!(queue.flush(), Err(NvmeError::QueueFull));
    finish(&mut queue).unwrap();
    queue.flush().unwrap();
    finish(&mut queue).unwrap();
    finish(&mut queue).unwrap();
    assert_eq!(queue.outstanding(), 0);
}

#[test]
fn a_command_that_fails_says_why_and_the_queue_goes_on() {
    let disk = disk(LEN);
    let machine = boot(&disk, |config| Config { disk_writable: false, ..config });
    let controller = controller(&machine);
    let mut queue = controller.io_queue(1, 4).unwrap();
    queue.write(0, buffer(&controller, BLOCK)).unwrap();
    let done = queue.wait(SOON).unwrap();
    let Err(NvmeError::Command(status)) = done.result else { panic!("{:?}", done.result) };
    // NVM Express 1.4, figure 127: Namespace is Write Protected.
    assert_eq!((status.code_type(), status.code()), (0, 0x20));
    assert_eq!(done.buffer.unwrap().len(), BLOCK);
    assert!(read(&controller, &mut queue, 0, BLOCK) == expected(1, BLOCK));
    assert!(on_host(&disk) == expected(1, LEN));
}

#[test]
fn there_are_as_many_queues_as_driver_and_controller_agree_on() {
    let disk = disk(LEN);
    for (offered, asked, granted) in [(4, 2, 2), (2, 8, 2), (1, 1, 1), (8, 8, 8)] {
        let machine = boot(&disk, |config| Config { queues: offered, ..config });
        let (function, device) = bind(&machine);
        let controller = Controller::new(function, device, asked).unwrap();
        assert_eq!(controller.queues(), granted);
        for id in [0, granted + 1] {
            assert!(matches!(controller.io_queue(id, DEPTH), Err(NvmeError::Unsupported(_))));
        }
        let mut queues: Vec<_> = (1..=granted).map(|id| controller.io_queue(id, DEPTH).unwrap()).collect();
        for queue in &mut queues {
            assert!(read(&controller, queue, 5, BLOCK) == expected(1, LEN)[5 * BLOCK..][..BLOCK]);
        }
    }
}

#[test]
fn a_queue_cannot_be_had_twice_and_the_first_goes_on() {
    let disk = disk(LEN);
    let machine = boot(&disk, |config| config);
    let controller = controller(&machine);
    let mut queue = controller.io_queue(1, DEPTH).unwrap();
    assert_eq!(controller.io_queue(1, DEPTH).unwrap_err(), NvmeError::QueueTaken(1));
    queue.read(0, buffer(&controller, BLOCK)).unwrap();
    assert!(queue.wait(Duration::from_secs(2)).unwrap().result.is_ok());
    drop(queue);
    // A number whose queue is gone may be used again.
    let mut queue = controller.io_queue(1, DEPTH).unwrap();
    read(&controller, &mut queue, 0, BLOCK);
}

#[test]
fn a_queue_dropped_with_commands_outstanding_leaves_nothing() {
    let disk = disk(LEN);
    let machine = boot(&disk, |config| config);
    for _ in 0..8 {
        let controller = controller(&machine);
        let mut queue = controller.io_queue(1, DEPTH).unwrap();
        for block in 0..u64::from(DEPTH) {
            queue.read(block, buffer(&controller, 64 << 10)).unwrap();
        }
        queue.submit();
        drop(queue);
        let mut queue = controller.io_queue(1, DEPTH).unwrap();
        assert!(read(&controller, &mut queue, 9, BLOCK) == expected(1, LEN)[9 * BLOCK..][..BLOCK]);
    }
    nothing_is_left(&machine);
}

#[test]
fn the_controller_can_be_brought_up_again() {
    let disk = disk(LEN);
    let machine = boot(&disk, |config| config);
    for _ in 0..3 {
        let controller = controller(&machine);
        let mut queue = controller.io_queue(3, DEPTH).unwrap();
        assert!(read(&controller, &mut queue, 0, 4096) == expected(1, 4096));
    }
    nothing_is_left(&machine);
}
