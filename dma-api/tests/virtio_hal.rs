//! A `virtio_drivers::Hal` over a device: what it asks of the DMA API, and what it does when it cannot have it.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Bench, Call, PAGE, pattern};
use dma_api::virtio::virtio_drivers::{BufferDirection, Hal};
use dma_api::virtio::{HalSlot, virtio_hal};
use dma_api::{Attrs, Direction};
use platform::DmaAddr;

const DIRECTIONS: [(BufferDirection, Direction); 3] = [
    (BufferDirection::DriverToDevice, Direction::ToDevice),
    (BufferDirection::DeviceToDriver, Direction::FromDevice),
    (BufferDirection::Both, Direction::Bidirectional),
];

/// A bench whose device is in the slot.
fn bench(slot: &HalSlot) -> Bench {
    let bench = Bench::new();
    slot.set(bench.device.clone()).unwrap();
    bench
}

#[test]
fn the_device_goes_in_once_and_out_when_nothing_needs_it() {
    virtio_hal! { struct Slot; }
    let slot = Slot::slot();
    assert!(slot.take().is_none());
    let bench = bench(slot);
    let second = Bench::new().device;
    assert!(Arc::ptr_eq(&slot.set(second.clone()).unwrap_err(), &second));
    let (paddr, vaddr) = Slot::dma_alloc(1, BufferDirection::Both);
    assert!(slot.take().is_none(), "the driver has memory of it");
    // SAFETY: it was allocated just now.
    assert_eq!(unsafe { Slot::dma_dealloc(paddr, vaddr, 1) }, 0);
    assert!(Arc::ptr_eq(&slot.take().unwrap(), &bench.device));
    assert!(slot.take().is_none());
    slot.set(bench.device.clone()).unwrap();
    // Another type has a slot of its own.
    virtio_hal! { struct Other; }
    assert!(Other::slot().take().is_none());
}

#[test]
fn queues_are_coherent_memory() {
    virtio_hal! { struct Queues; }
    let bench = bench(Queues::slot());
    let (paddr, vaddr) = Queues::dma_alloc(3, BufferDirection::DriverToDevice);
    assert!(vaddr.addr().get().is_multiple_of(PAGE));
    assert_eq!(bench.mock.take_calls(), [Call::Alloc { size: 3 * PAGE }]);
    let at = DmaAddr::new(paddr);
    assert_eq!(bench.mock.device_read(at, 3 * PAGE).unwrap(), vec![0; 3 * PAGE]);
    // SAFETY: the memory is three pages of this test's.
    unsafe { vaddr.add(2 * PAGE).write(7) };
    assert_eq!(bench.mock.device_read(at.wrapping_add(2 * PAGE as u64), 1).unwrap(), [7]);
    // SAFETY: it was allocated just now.
    assert_eq!(unsafe { Queues::dma_dealloc(paddr, vaddr, 3) }, 0);
    assert_eq!(bench.mock.take_calls(), [Call::Free { dma: paddr, size: 3 * PAGE }]);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
}

#[test]
fn without_memory_the_address_is_0() {
    virtio_hal! { struct Poor; }
    assert_eq!(Poor::dma_alloc(1, BufferDirection::Both).0, 0, "there is no device");
    let bench = bench(Poor::slot());
    assert_eq!(Poor::dma_alloc(0, BufferDirection::Both).0, 0);
    assert_eq!(Poor::dma_alloc(usize::MAX / PAGE + 1, BufferDirection::Both).0, 0);
    assert_eq!(bench.mock.take_calls(), []);
    bench.maps_left(0);
    assert_eq!(Poor::dma_alloc(1, BufferDirection::Both).0, 0);
    bench.maps_left(usize::MAX);
    // Memory at address 0 would be taken for none, and never freed.
    bench.mock.next_coherent.store(0, Ordering::Relaxed);
    assert_eq!(Poor::dma_alloc(1, BufferDirection::Both).0, 0);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
    assert!(Poor::slot().take().is_some(), "nothing is out");
    // SAFETY: there is nothing to free, which it says.
    assert_eq!(unsafe { Poor::dma_dealloc(0, NonNull::dangling(), 1) }, -1);
}

#[test]
fn memory_that_could_not_be_freed_is_the_ops_care() {
    virtio_hal! { struct Kept; }
    let bench = bench(Kept::slot());
    let (paddr, vaddr) = Kept::dma_alloc(1, BufferDirection::Both);
    bench.unmaps_fail(true);
    // SAFETY: it was allocated just now.
    assert_eq!(unsafe { Kept::dma_dealloc(paddr, vaddr, 1) }, 0);
    assert!(Kept::slot().take().is_some());
    assert_eq!(bench.host.live(), PAGE as u64, "it is not reused");
}

#[test]
fn ram_is_shared_where_it_is() {
    virtio_hal! { struct Ram; }
    let bench = bench(Ram::slot());
    for (theirs, ours) in DIRECTIONS {
        let mut buffer = bench.buffer(&pattern(1, 600));
        let phys = buffer.phys().get();
        let shared = NonNull::from(&mut buffer[..]);
        // SAFETY: the buffer lives until it is unshared, and is reached by the device alone.
        let paddr = unsafe { Ram::share(shared, theirs) };
        assert_eq!(bench.mock.take_calls(), [Call::MapPhys { phys, len: 600, dir: ours }]);
        let may_write = bench.mock.device_write(DmaAddr::new(paddr), &pattern(2, 600));
        assert_eq!(may_write, ours.device_writes());
        // SAFETY: it was shared so.
        unsafe { Ram::unshare(paddr, shared, theirs) };
        let call = Call::UnmapPhys { address: paddr, len: 600, dir: ours, attrs: Attrs::empty() };
        assert_eq!(bench.mock.take_calls(), [call]);
        assert_eq!(buffer[..], pattern(if may_write { 2 } else { 1 }, 600));
    }
    assert_eq!(bench.mock.live(), 0);
}

#[test]
fn what_is_no_ram_is_shared_as_a_copy() {
    virtio_hal! { struct Heap; }
    let bench = bench(Heap::slot());
    for (theirs, ours) in DIRECTIONS {
        let mut buffer = pattern(1, 600);
        let shared = NonNull::from(&mut buffer[..]);
        let cpu = shared.cast::<u8>().addr().get();
        // SAFETY: the buffer lives until it is unshared, and is reached by the device alone.
        let paddr = unsafe { Heap::share(shared, theirs) };
        assert_eq!(bench.mock.take_calls(), [Call::MapForeign { cpu, len: 600, dir: ours }]);
        let may_write = bench.mock.device_write(DmaAddr::new(paddr), &pattern(2, 600));
        // SAFETY: it was shared so.
        unsafe { Heap::unshare(paddr, shared, theirs) };
        let call = Call::UnmapPhys { address: paddr, len: 600, dir: ours, attrs: Attrs::empty() };
        assert_eq!(bench.mock.take_calls(), [call]);
        assert_eq!(buffer[..], pattern(if may_write { 2 } else { 1 }, 600));
    }
    assert_eq!(bench.mock.live(), 0);
}

/// Runs the test of this name again in a process of its own, in which `body` must panic with `reason` and nobody can catch it.
#[track_caller]
fn dies(test: &str, reason: &str, body: impl FnOnce()) {
    const CHILD: &str = "DMA_API_TEST_DIES";
    const SIGABRT: i32 = 6;
    if std::env::var_os(CHILD).is_some() {
        let _ = catch_unwind(AssertUnwindSafe(body));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(SIGABRT), "{said}");
    assert!(said.contains(reason), "{said}");
}

#[test]
fn a_share_that_fails_does_not_unwind() {
    virtio_hal! { struct Full; }
    dies("a_share_that_fails_does_not_unwind", "cannot share memory: out of memory", || {
        let bench = bench(Full::slot());
        bench.maps_left(0);
        // SAFETY: it is not shared.
        unsafe { Full::share(NonNull::from(&mut [0; 16][..]), BufferDirection::DriverToDevice) };
    });
}

#[test]
fn an_unshare_that_fails_does_not_unwind() {
    virtio_hal! { struct Stuck; }
    dies("an_unshare_that_fails_does_not_unwind", "cannot unshare memory: the unmap of 16 bytes", || {
        let bench = bench(Stuck::slot());
        let mut buffer = [0; 16];
        let shared = NonNull::from(&mut buffer[..]);
        // SAFETY: the buffer lives until it is unshared.
        let paddr = unsafe { Stuck::share(shared, BufferDirection::DeviceToDriver) };
        bench.unmaps_fail(true);
        // SAFETY: it was shared so.
        unsafe { Stuck::unshare(paddr, shared, BufferDirection::DeviceToDriver) };
    });
}

#[test]
fn a_share_without_a_device_does_not_unwind() {
    virtio_hal! { struct Nobody; }
    dies("a_share_without_a_device_does_not_unwind", "cannot share memory: the type has no device", || {
        // SAFETY: it is not shared.
        unsafe { Nobody::share(NonNull::from(&mut [0; 16][..]), BufferDirection::DriverToDevice) };
    });
}

#[test]
#[should_panic = "dma_api::virtio::VirtioPci"]
fn there_are_no_pointers_to_registers() {
    virtio_hal! { struct Registers; }
    // SAFETY: nothing is at the address, and nothing is done with it.
    unsafe { Registers::mmio_phys_to_virt(0xfe00_0000, PAGE) };
}
