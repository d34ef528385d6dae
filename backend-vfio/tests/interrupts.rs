//! Interrupt pins, and waiting for interrupts in other ways than by a thread.

mod common;

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use backend_vfio::{Vector, Vfio, VfioError};
use common::{Bed, Call, NVME};
use platform::Clock;
use platform::pci::Interrupt;

const INTX: u32 = 0;
const MSIX: u32 = 2;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

/// The device interrupts: the kernel writes to the file that it was given last.
fn raise(file: i32) {
    // SAFETY: the vector that has the file lives.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    rustix::io::write(file, &1_u64.to_ne_bytes()).unwrap();
}

fn connected(bed: &Bed, kind: u32) -> i32 {
    let calls = bed.mock.calls();
    let file = calls.iter().rev().find_map(|call| match call {
        Call::SetIrqs { index, files, .. } if *index == kind => files.iter().copied().find(|&file| file >= 0),
        _ => None,
    });
    file.unwrap()
}

fn acts(bed: &Bed) -> Vec<(u32, u32, u32)> {
    let act = |call| match call {
        Call::ActOnIrqs { index, count, action } => Some((index, count, action)),
        _ => None,
    };
    bed.mock.calls().into_iter().filter_map(act).collect()
}

fn soon(vfio: &Vfio) -> platform::Instant {
    vfio.platform().now() + Duration::from_millis(5)
}

#[test]
fn a_pin_is_masked_by_the_kernel_and_unmasked_by_the_next_wait() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let _function = vfio.function(NVME).unwrap();
    let pin = vfio.intx(NVME).unwrap();
    let file = connected(&bed, INTX);
    assert!(pin.wait(soon(&vfio)).is_err());
    assert_eq!(acts(&bed), [], "what never arrived was never masked");
    raise(file);
    pin.wait(soon(&vfio)).unwrap();
    assert_eq!(acts(&bed), [], "the driver has not been at the device yet");
    assert!(!pin.try_take());
    assert_eq!(acts(&bed), [(INTX, 1, UNMASK)]);
    raise(file);
    assert!(pin.try_take());
    pin.mask().unwrap();
    pin.unmask().unwrap();
    assert_eq!(acts(&bed), [(INTX, 1, MASK), (INTX, 1, UNMASK)]);
    drop(pin);
    assert_eq!(acts(&bed), [(INTX, 0, TRIGGER)], "the kind is off");
}

#[test]
fn a_device_without_messages_has_its_pin_as_its_vector() {
    let bed = Bed::new();
    bed.mock.knobs(|knobs| (knobs.msix, knobs.msi) = (0, 0));
    let vfio = bed.open(&[NVME]).unwrap();
    let function = vfio.function(NVME).unwrap();
    assert_eq!(function.interrupt_count(), 1);
    let pin = function.interrupt(0).unwrap();
    raise(connected(&bed, INTX));
    pin.wait(soon(&vfio)).unwrap();
}

#[test]
fn messages_and_the_pin_are_not_connected_together() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let refused = |connected: Result<Vector, VfioError>| {
        assert!(matches!(connected, Err(VfioError::OtherInterrupts(NVME))), "{connected:?}");
    };
    let message = vfio.vector(NVME, 0).unwrap();
    refused(vfio.intx(NVME));
    drop(message);
    let pin = vfio.intx(NVME).unwrap();
    refused(vfio.vector(NVME, 0));
    refused(vfio.intx(NVME));
    drop(pin);
    drop(vfio.vector(NVME, 0).unwrap());
    drop(vfio.intx(NVME).unwrap());
}

#[test]
fn with_the_last_vector_its_kind_is_off() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let (one, two) = (vfio.vector(NVME, 0).unwrap(), vfio.vector(NVME, 3).unwrap());
    bed.mock.calls();
    drop(one);
    assert_eq!(bed.mock.calls(), [Call::SetIrqs { index: MSIX, start: 0, files: vec![-1] }]);
    drop(two);
    assert_eq!(acts(&bed), [(MSIX, 0, TRIGGER)]);
    // And all of them can be on again.
    let again = vfio.vector(NVME, 5).unwrap();
    raise(connected(&bed, MSIX));
    again.wait(soon(&vfio)).unwrap();
}

/// Says in a channel that a task was woken.
struct Bell(Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // The test may have ended.
        let _ = self.0.send(());
    }
}

fn bell() -> (Waker, Receiver<()>) {
    let (sender, woken) = channel();
    (Waker::from(Arc::new(Bell(sender))), woken)
}

const LONG: Duration = Duration::from_secs(10);

#[test]
fn a_task_is_woken_when_the_interrupt_arrives() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let vector = vfio.vector(NVME, 0).unwrap();
    let file = connected(&bed, MSIX);
    let (waker, woken) = bell();
    let mut context = Context::from_waker(&waker);
    // Several times: a file is watched anew by each wait.
    for _ in 0..3 {
        let mut arrived = pin!(vector.arrived());
        assert!(matches!(arrived.as_mut().poll(&mut context), Poll::Pending));
        assert!(woken.try_recv().is_err());
        raise(file);
        woken.recv_timeout(LONG).unwrap();
        assert!(matches!(arrived.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
        assert!(!vector.try_take(), "it was taken");
    }
    // What has arrived before is not waited for.
    raise(file);
    assert!(matches!(pin!(vector.arrived()).poll(&mut context), Poll::Ready(Ok(()))));
    // A wait that is given up leaves nothing.
    assert!(matches!(pin!(vector.arrived()).poll(&mut context), Poll::Pending));
    drop(vector);
}

#[test]
fn tasks_of_several_vectors_are_told_apart() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let one = vfio.vector(NVME, 0).unwrap();
    let first = connected(&bed, MSIX);
    let two = vfio.vector(NVME, 1).unwrap();
    let second = connected(&bed, MSIX);
    let ((waker, woken), (other_waker, other_woken)) = (bell(), bell());
    let (mut waiting, mut other) = (pin!(one.arrived()), pin!(two.arrived()));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(other.as_mut().poll(&mut Context::from_waker(&other_waker)).is_pending());
    raise(second);
    other_woken.recv_timeout(LONG).unwrap();
    assert!(woken.try_recv().is_err());
    raise(first);
    woken.recv_timeout(LONG).unwrap();
}

#[test]
fn a_program_can_watch_the_file_itself() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let vector = vfio.vector(NVME, 0).unwrap();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let readable =
        || poll(&mut [PollFd::from_borrowed_fd(vector.as_fd(), PollFlags::IN)], Some(&at_once)).unwrap() == 1;
    assert!(!readable());
    raise(connected(&bed, MSIX));
    assert!(readable());
    assert!(vector.try_take());
    assert!(!readable());
}
