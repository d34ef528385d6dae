//! The NVMe driver of the other backends, unchanged.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use backend_vfio::Vfio;
use dma_api::{DmaBuffer, DmaDebug};
use nvme_driver::{Controller, IoQueue};

use crate::checks::{bind_nvme, open};
use crate::system::NVME;
use crate::{Failure, ensure};

const SOON: Duration = Duration::from_secs(30);
const QUEUES: u16 = 2;
const DEPTH: u32 = 16;

/// What the disk holds, as `cargo xtask vfio` has made it, and what it looks for when the guest has ended: byte `at` of
/// pattern `seed`.
fn byte(seed: u64, at: u64) -> u8 {
    ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// All that the disk holds after pattern `seed` was written to it.
pub(crate) fn contents(seed: u64) -> Result<Vec<u8>, Failure> {
    let vfio = open(&[NVME])?;
    let controller = controller(&vfio)?;
    let len = controller.namespace().blocks * controller.namespace().block_size as u64;
    Ok((0..len).map(|at| byte(seed, at)).collect())
}

fn controller(vfio: &Vfio) -> Result<Controller, Failure> {
    let (function, device) = bind_nvme(vfio)?;
    Ok(Controller::new(function, device, QUEUES)?)
}

pub(crate) fn identify() -> Result<(), Failure> {
    let vfio = open(&[NVME])?;
    let controller = controller(&vfio)?;
    let info = controller.info();
    ensure(format!("{info:?}").contains("vfio-disk"), &format!("the controller is another one: {info:?}"))?;
    ensure(controller.namespace().blocks > 0, "the disk is empty")
}

fn finish(queue: &mut IoQueue<'_>) -> Result<(u16, Option<DmaBuffer<u8>>), Failure> {
    let done = queue.wait(SOON)?;
    done.result?;
    Ok((done.tag, done.buffer))
}

/// Sends a command for a place of the disk, and says its tag.
type Send<'a> = &'a dyn Fn(&mut IoQueue<'_>, u64, DmaBuffer<u8>) -> Result<u16, Failure>;
/// Looks at what came back from a place.
type Check<'a> = &'a dyn Fn(u64, &[u8]) -> Result<(), Failure>;

/// Moves the whole disk in pieces of several sizes, as many at a time as the queue takes.
fn move_everything(
    controller: &Controller,
    id: u16,
    send: Send<'_>,
    check: Check<'_>,
) -> Result<(), Failure> {
    let block = controller.namespace().block_size as u64;
    let len = controller.namespace().blocks * block;
    let sizes = [block, 4096, 64 << 10, 3 * block, 32 << 10];
    let mut sizes = sizes.iter().cycle();
    let mut queue = controller.io_queue(id, DEPTH)?;
    let mut places = std::collections::HashMap::new();
    let mut at = 0;
    while at < len || queue.outstanding() > 0 {
        while at < len && queue.outstanding() < queue.depth() {
            let size = sizes.next().map_or(block, |&size| size.min(len - at));
            let buffer = DmaBuffer::zeroed(controller.device(), size as usize)?;
            places.insert(send(&mut queue, at, buffer)?, at);
            at += size;
        }
        let (tag, buffer) = finish(&mut queue)?;
        let place = places.remove(&tag).ok_or("a command that nobody sent has ended")?;
        check(place, &buffer.ok_or("a command has lost its buffer")?)?;
    }
    Ok(())
}

pub(crate) fn whole_disk() -> Result<(), Failure> {
    let vfio = open(&[NVME])?;
    let controller = controller(&vfio)?;
    ensure(controller.queues() == QUEUES, "there are fewer queues: MSI-X has too few vectors")?;
    let block = controller.namespace().block_size as u64;
    let read = |queue: &mut IoQueue<'_>, at: u64, buffer| Ok(queue.read(at / block, buffer)?);
    let holds = |seed: u64| {
        move |at: u64, found: &[u8]| {
            let right = found.iter().zip(at..).all(|(&found, at)| found == byte(seed, at));
            ensure(right, &format!("{} bytes at {at} are wrong", found.len()))
        }
    };
    move_everything(&controller, 1, &read, &holds(1))?;
    let write = |queue: &mut IoQueue<'_>, at: u64, mut buffer: DmaBuffer<u8>| {
        buffer.iter_mut().zip(at..).for_each(|(into, at)| *into = byte(2, at));
        Ok(queue.write(at / block, buffer)?)
    };
    move_everything(&controller, 2, &write, &holds(2))?;
    let mut queue = controller.io_queue(1, DEPTH)?;
    queue.flush()?;
    finish(&mut queue)?;
    drop(queue);
    move_everything(&controller, 1, &read, &holds(2))
}

/// Under the decorator that reports a driver's mistakes.
pub(crate) fn checked() -> Result<(), Failure> {
    let debug = Arc::new(DmaDebug::new());
    let vfio = open(&[NVME])?;
    let (function, device) = vfio.bind(NVME)?;
    let controller = Controller::new(function, Arc::new(device.checked(&debug)), QUEUES)?;
    let block = controller.namespace().block_size as u64;
    let read = |queue: &mut IoQueue<'_>, at: u64, buffer| Ok(queue.read(at / block, buffer)?);
    let well = |at: u64, found: &[u8]| {
        ensure(found.iter().zip(at..).all(|(&found, at)| found == byte(2, at)), "the bytes are wrong")
    };
    move_everything(&controller, 1, &read, &well)?;
    drop(controller);
    let reports: Vec<String> = debug.take_reports().iter().map(ToString::to_string).collect();
    ensure(reports.is_empty() && debug.lost() == 0, &format!("mistakes: {reports:?}"))?;
    ensure(debug.dump().is_empty(), "something is mapped still")
}

pub(crate) fn reset() -> Result<(), Failure> {
    let vfio = open(&[NVME])?;
    let (function, device) = bind_nvme(&vfio)?;
    let controller = Controller::new(function.clone(), device.clone(), QUEUES)?;
    const CC: usize = 0x14;
    const ENABLE: u32 = 1;
    let registers = function.bar(0)?;
    ensure(registers.read32(CC) & ENABLE != 0, "the controller is not on")?;
    vfio.reset(NVME)?;
    ensure(registers.read32(CC) & ENABLE == 0, "the controller was not reset")?;
    drop(controller);
    // What was mapped before is as it was, and the driver begins anew.
    let controller = Controller::new(function, device, QUEUES)?;
    let mut queue = controller.io_queue(1, DEPTH)?;
    queue.read(0, DmaBuffer::zeroed(controller.device(), 4096)?)?;
    let (_, buffer) = finish(&mut queue)?;
    let right = buffer.ok_or("no buffer")?.iter().zip(0..).all(|(&found, at)| found == byte(2, at));
    ensure(right, "after a reset the disk holds something else")
}

/// Reads for ever, and says when it has begun.
pub(crate) fn read_for_ever() -> Result<(), Failure> {
    let vfio = open(&[NVME])?;
    let controller = controller(&vfio)?;
    let mut queue = controller.io_queue(1, DEPTH)?;
    let blocks = (64 << 10) / controller.namespace().block_size as u64;
    for index in 0_u64.. {
        while queue.outstanding() < queue.depth() {
            queue.read(index % 8 * blocks, DmaBuffer::zeroed(controller.device(), 64 << 10)?)?;
        }
        finish(&mut queue)?;
        if index == 50 {
            println!("begun");
            std::io::stdout().flush()?;
        }
    }
    Ok(())
}
