//! The block driver of the crate `virtio-drivers`, on the machine's virtio block device: what it reads and writes is what the
//! file on the host has, in every mode; `Checked` finds it clean, and finds what a `Hal` forgets; the IOMMU keeps the device to
//! what was shared.

mod common;

use std::io::Write;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend_sim::sim_hardware::{Machine, virtio};
use backend_sim::{Config, SimMachine};
use common::{LAZY, boot};
use dma_api::virtio::virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use dma_api::virtio::virtio_drivers::transport::InterruptStatus;
use dma_api::virtio::virtio_drivers::{BufferDirection, Error, Hal, PhysAddr};
use dma_api::virtio::{HalSlot, VirtioPci, virtio_hal};
use dma_api::{Device, Direction, DmaBuffer, DmaDebug, MappingKind, Mistake};
use iommu_core::{FaultFlags, FaultKind};
use platform::Clock;
use platform::pci::Function;
use tempfile::NamedTempFile;

const SECTORS: usize = 1024;

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A disk with a pattern, and the machine that has it.
fn machine(writable: bool, change: impl FnOnce(&mut Config)) -> (SimMachine, NamedTempFile) {
    let mut disk = NamedTempFile::new().unwrap();
    disk.write_all(&pattern(1, SECTORS * SECTOR_SIZE)).unwrap();
    let device = virtio::Config { disk: disk.path().into(), writable };
    let machine = boot(|config| {
        config.virtio_blk = Some(device);
        change(config);
    });
    (machine, disk)
}

fn bind(machine: &SimMachine) -> (Arc<dyn Function>, Device) {
    // SAFETY: the simulated device does as it is told, and memory of the machine is no memory of the process.
    unsafe { machine.trust(SimMachine::address(Machine::VIRTIO_BLK)) }.unwrap()
}

/// The driver over a checked device, which goes into the slot.
fn driver<H: Hal>(machine: &SimMachine, slot: &HalSlot, debug: &Arc<DmaDebug>) -> VirtIOBlk<H, VirtioPci> {
    let (function, device) = bind(machine);
    let device = Arc::new(device.checked(debug));
    let transport = VirtioPci::new(function, &device).unwrap();
    slot.set(device).unwrap();
    VirtIOBlk::new(transport).unwrap()
}

/// Reads, writes, reads back and flushes, with buffers of the process and of the machine.
fn exercise<H: Hal>(machine: &SimMachine, disk: &mut VirtIOBlk<H, VirtioPci>) {
    assert_eq!((disk.capacity(), disk.readonly()), (SECTORS as u64, false));
    let mut id = [0; 20];
    assert_eq!(disk.device_id(&mut id), Ok(20));
    assert_eq!(&id, b"simulated-virtio-blk");
    // Without a vector the device says in its ISR status what it would interrupt for, once.
    let start = Instant::now();
    while disk.ack_interrupt() != InterruptStatus::QUEUE_INTERRUPT {
        assert!(start.elapsed() < Duration::from_secs(10), "no interrupt for a request that is done");
        std::thread::yield_now();
    }
    assert!(disk.ack_interrupt().is_empty());

    let (old, new) = (pattern(1, SECTORS * SECTOR_SIZE), pattern(2, SECTORS * SECTOR_SIZE));
    for sectors in [1, 8, 67] {
        let len = sectors * SECTOR_SIZE;
        let mut on_heap = vec![0; len];
        let mut in_ram = DmaBuffer::<u8>::zeroed_in(&(machine.platform().clone() as _), len).unwrap();
        for (place, buffer) in [(100, &mut on_heap[..]), (300, &mut in_ram[..])] {
            disk.read_blocks(place, buffer).unwrap();
            assert!(buffer == &old[place * SECTOR_SIZE..][..len], "{sectors} sectors at {place}");
            buffer.copy_from_slice(&new[..len]);
            disk.write_blocks(place + 100, buffer).unwrap();
            buffer.fill(0);
            disk.read_blocks(place + 100, buffer).unwrap();
            assert!(buffer == &new[..len], "{sectors} sectors at {place}, written");
        }
    }
    disk.flush().unwrap();
    assert_eq!(disk.read_blocks(SECTORS, &mut [0; SECTOR_SIZE]), Err(Error::IoError), "beyond the end");
}

/// What [`exercise`] leaves in the file.
fn exercised() -> Vec<u8> {
    let mut file = pattern(1, SECTORS * SECTOR_SIZE);
    let new = pattern(2, 67 * SECTOR_SIZE);
    for place in [200, 400] {
        file[place * SECTOR_SIZE..][..new.len()].copy_from_slice(&new);
    }
    file
}

/// The driver makes no mistake, nothing stays mapped when it goes, and then the device can be bound again.
fn runs_clean<H: Hal>(slot: &HalSlot, change: impl FnOnce(&mut Config)) -> SimMachine {
    let (machine, file) = machine(true, change);
    let debug = Arc::new(DmaDebug::new());
    for _ in 0..2 {
        let mut disk = driver::<H>(&machine, slot, &debug);
        // The queue's descriptors and available ring, and its used ring.
        assert_eq!(debug.dump().len(), 2, "the driver's memory goes through the checks");
        assert!(slot.take().is_none(), "the driver needs it");
        exercise(&machine, &mut disk);
        drop(disk);
        drop(slot.take().expect("no driver is left"));
        assert_eq!((debug.take_reports(), debug.dump()), (vec![], vec![]));
        assert!(std::fs::read(file.path()).unwrap() == exercised());
        std::fs::write(file.path(), pattern(1, SECTORS * SECTOR_SIZE)).unwrap();
    }
    if let Some(iommu) = machine.iommu() {
        iommu.tick(machine.platform().now());
        let statistics = iommu.statistics();
        assert_eq!(statistics.maps, statistics.unmaps);
        assert_eq!(statistics.quarantined, 0);
    }
    assert_eq!(machine.bounce().statistics().used, 0);
    assert_eq!(machine.take_faults(), []);
    assert_eq!(machine.check_free_memory(), []);
    machine
}

#[test]
fn the_driver_runs_clean_behind_a_strict_iommu() {
    virtio_hal! { struct Strict; }
    let machine = runs_clean::<Strict>(Strict::slot(), |_| {});
    // In each of the two runs, mapped where it is: the queue, in two parts, and nine buffers in the machine's memory. All
    // else is the process's, and was copied.
    let (maps, bounced) = (machine.iommu().unwrap().statistics().maps, machine.bounce().statistics().maps);
    assert_eq!(maps - bounced, 2 * (2 + 9));
}

#[test]
fn the_driver_runs_clean_in_lazy_mode() {
    virtio_hal! { struct Lazy; }
    runs_clean::<Lazy>(Lazy::slot(), |config| config.settings = LAZY);
}

#[test]
fn the_driver_runs_clean_with_an_untrusted_device() {
    virtio_hal! { struct Untrusted; }
    let untrusted = vec![SimMachine::address(Machine::VIRTIO_BLK)];
    runs_clean::<Untrusted>(Untrusted::slot(), |config| config.untrusted = untrusted);
}

#[test]
fn the_driver_runs_clean_without_an_iommu() {
    virtio_hal! { struct Alone; }
    runs_clean::<Alone>(Alone::slot(), |config| *config = config.clone().without_iommu());
}

#[test]
fn a_disk_that_may_not_be_written_says_so() {
    virtio_hal! { struct ReadOnly; }
    let (machine, file) = machine(false, |_| {});
    let mut disk = driver::<ReadOnly>(&machine, ReadOnly::slot(), &Arc::default());
    assert!(disk.readonly());
    assert_eq!(disk.write_blocks(0, &[7; SECTOR_SIZE]), Err(Error::IoError));
    assert_eq!(disk.flush(), Ok(()));
    assert!(std::fs::read(file.path()).unwrap() == pattern(1, SECTORS * SECTOR_SIZE));
}

/// Implements `Hal` by a type of `virtio_hal!`, but for what a test gets wrong.
macro_rules! wrong_hal {
    ($name:ident over $right:ident;
        share($buffer:ident, $direction:ident) $share:block
        unshare($paddr:ident, $buffer_2:ident, $direction_2:ident) $unshare:block
    ) => {
        struct $name;

        // SAFETY: whatever it gets wrong, the buffers of these tests are bounced: the device never reaches them.
        unsafe impl Hal for $name {
            fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
                $right::dma_alloc(pages, direction)
            }

            unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
                // SAFETY: the caller's promise, handed on.
                unsafe { $right::dma_dealloc(paddr, vaddr, pages) }
            }

            unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
                // SAFETY: the caller's promise, handed on.
                unsafe { $right::mmio_phys_to_virt(paddr, size) }
            }

            #[track_caller]
            unsafe fn share($buffer: NonNull<[u8]>, $direction: BufferDirection) -> PhysAddr $share

            unsafe fn unshare($paddr: PhysAddr, $buffer_2: NonNull<[u8]>, $direction_2: BufferDirection) $unshare
        }
    };
}

#[test]
fn a_forgotten_unshare_is_reported() {
    virtio_hal! { struct Right; }
    wrong_hal! { Forgetful over Right;
        share(buffer, direction) {
            // SAFETY: the caller's promise, handed on.
            unsafe { Right::share(buffer, direction) }
        }
        unshare(paddr, buffer, direction) {
            // A request's header is 16 bytes; nothing is lost but the mapping.
            if buffer.len() != 16 {
                // SAFETY: the caller's promise, handed on.
                unsafe { Right::unshare(paddr, buffer, direction) }
            }
        }
    }
    let (machine, _file) = machine(true, |_| {});
    let debug = Arc::new(DmaDebug::new());
    let mut disk = driver::<Forgetful>(&machine, Right::slot(), &debug);
    for sector in 0..3 {
        let mut data = [0; SECTOR_SIZE];
        disk.read_blocks(sector, &mut data).unwrap();
        assert_eq!(data[..], pattern(1, 3 * SECTOR_SIZE)[sector * SECTOR_SIZE..][..SECTOR_SIZE]);
    }
    drop(disk);
    assert_eq!(debug.take_reports(), [], "it may come yet");
    assert_eq!(debug.dump().len(), 3);
    drop(Right::slot().take().expect("no driver is left"));
    let reports = debug.take_reports();
    let [report] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(&*report.device, "0000:06:00.0");
    let Mistake::Leaked { count, bytes, first } = report.mistake else { panic!("{report}") };
    assert_eq!((count, bytes), (3, 3 * 16));
    assert_eq!((first.kind, first.len, first.dir), (MappingKind::Foreign, 16, Direction::ToDevice));
    // The line that shared it, in the queue of the driver's crate.
    assert!(first.made_at.file().contains("virtio-drivers"), "{report}");
    assert_eq!(machine.bounce().statistics().used, 3 * 2, "a page of the pool for each");
}

/// Reads a sector by `H`, whose device may not write where it is told to: the driver's error, and the faults' flags.
fn refused<H: Hal>(slot: &HalSlot) -> FaultFlags {
    let (machine, _file) = machine(true, |_| {});
    let mut disk = driver::<H>(&machine, slot, &Arc::default());
    assert_eq!(machine.take_faults(), []);
    let mut data = [0x5a; SECTOR_SIZE];
    assert_eq!(disk.read_blocks(0, &mut data), Err(Error::IoError));
    assert_eq!(data, [0x5a; SECTOR_SIZE], "nothing arrived");
    let faults = machine.take_faults();
    let [fault] = faults[..] else { panic!("{faults:?}") };
    assert_eq!((fault.kind, fault.requester), (FaultKind::Page, SimMachine::address(Machine::VIRTIO_BLK)));
    assert_eq!(machine.check_free_memory(), []);
    // The device goes on.
    disk.flush().unwrap();
    fault.flags
}

#[test]
fn what_is_not_shared_is_out_of_reach() {
    virtio_hal! { struct Right; }
    /// Far above what the domain hands out.
    const ELSEWHERE: PhysAddr = 1 << 40;
    wrong_hal! { Astray over Right;
        share(buffer, direction) {
            // SAFETY: the caller's promise, handed on.
            let paddr = unsafe { Right::share(buffer, direction) };
            if buffer.len() == SECTOR_SIZE { paddr | ELSEWHERE } else { paddr }
        }
        unshare(paddr, buffer, direction) {
            // SAFETY: the caller's promise, handed on.
            unsafe { Right::unshare(paddr & !ELSEWHERE, buffer, direction) }
        }
    }
    assert_eq!(refused::<Astray>(Right::slot()), FaultFlags::WRITE);
}

#[test]
fn what_is_shared_for_reading_cannot_be_written() {
    virtio_hal! { struct Right; }
    fn turned(buffer: NonNull<[u8]>, direction: BufferDirection) -> BufferDirection {
        if buffer.len() == SECTOR_SIZE { BufferDirection::DriverToDevice } else { direction }
    }
    wrong_hal! { Turned over Right;
        share(buffer, direction) {
            // SAFETY: the caller's promise, handed on.
            unsafe { Right::share(buffer, turned(buffer, direction)) }
        }
        unshare(paddr, buffer, direction) {
            // SAFETY: it was shared so.
            unsafe { Right::unshare(paddr, buffer, turned(buffer, direction)) }
        }
    }
    let flags = FaultFlags::WRITE | FaultFlags::PRESENT | FaultFlags::PERMISSION;
    assert_eq!(refused::<Turned>(Right::slot()), flags);
}
