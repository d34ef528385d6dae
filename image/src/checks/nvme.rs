//! The NVMe driver of the examples, as it is, on a disk that the host has filled and will look at.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::time::Duration;

use dma_api::DmaBuffer;
use nvme_driver::{Controller, IoQueue, Rejected, Tag};

use super::{Expected, NVME, ensure, failed};
use crate::kernel::Machine;

const BLOCK: usize = 512;
const SOON: Duration = Duration::from_secs(60);
/// What the disk holds at first, and afterwards: the host knows both.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

/// The byte of the disk at a place, with no period that a page or a block could hide.
fn byte(seed: u64, place: usize) -> u8 {
    ((place as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

pub(super) fn read(machine: &Machine, _: &Expected) -> Result<(), String> {
    with_controller(machine, |controller| check(controller, FIRST))
}

pub(super) fn write(machine: &Machine, _: &Expected) -> Result<(), String> {
    with_controller(machine, |controller| {
        let send = |queue: &mut IoQueue<'_>, at: usize, mut buffer: DmaBuffer<u8>| {
            buffer.iter_mut().enumerate().for_each(|(index, it)| *it = byte(SECOND, at + index));
            queue.write((at / BLOCK) as u64, buffer)
        };
        move_everything(controller, &send, &|_, _| true)?;
        let mut queue = controller.io_queue(1, 4).map_err(failed("a queue"))?;
        queue.flush().map_err(failed("flushing"))?;
        queue.wait(SOON).and_then(|done| done.result).map_err(failed("flushing"))?;
        drop(queue);
        check(controller, SECOND)
    })
}

fn with_controller(
    machine: &Machine,
    work: impl FnOnce(&Controller) -> Result<(), String>,
) -> Result<(), String> {
    let (function, device) = machine.bind(NVME).map_err(failed("binding"))?;
    let controller = Controller::new(function, Arc::new(device), 1).map_err(failed("the controller"))?;
    work(&controller)?;
    drop(controller);
    let faults = machine.take_faults();
    ensure(!machine.events() && faults.is_empty(), format!("{} faults: {:?}", faults.len(), faults.first()))
}

fn check(controller: &Controller, seed: u64) -> Result<(), String> {
    let send = |queue: &mut IoQueue<'_>, at: usize, buffer| queue.read((at / BLOCK) as u64, buffer);
    let is_there =
        |at, found: &[u8]| found.iter().enumerate().all(|(index, &it)| it == byte(seed, at + index));
    move_everything(controller, &send, &is_there)
}

/// Starts a piece of the disk at a place.
type Send<'a> = &'a dyn Fn(&mut IoQueue<'_>, usize, DmaBuffer<u8>) -> Result<Tag, Rejected>;

/// Moves the whole disk in pieces of several sizes, several at a time; `send` starts a piece, `good` looks at what came back.
fn move_everything(
    controller: &Controller,
    send: Send<'_>,
    good: &dyn Fn(usize, &[u8]) -> bool,
) -> Result<(), String> {
    let disk = controller.namespace().blocks as usize * controller.namespace().block_size;
    let mut queue = controller.io_queue(1, 8).map_err(failed("a queue"))?;
    // From one block over a part of a page and two pages to lists of many.
    let mut sizes = [BLOCK, 4096, 3 * BLOCK, 128 << 10, 8192, 64 << 10, 12288].into_iter().cycle();
    let (mut at, mut places) = (0, BTreeMap::new());
    while at < disk || queue.outstanding() > 0 {
        while at < disk && queue.outstanding() < queue.depth() {
            let size = sizes.next().unwrap_or(BLOCK).min(disk - at);
            let buffer = DmaBuffer::zeroed(controller.device(), size).map_err(failed("a buffer"))?;
            places.insert(send(&mut queue, at, buffer).map_err(failed("a command"))?, at);
            at += size;
        }
        let done = queue.wait(SOON).map_err(failed("waiting"))?;
        done.result.map_err(failed("a command"))?;
        let place = places.remove(&done.tag).ok_or("a command that was not sent has ended")?;
        let buffer = done.buffer.ok_or("a buffer is gone")?;
        ensure(good(place, &buffer), format!("{} bytes at {place} are wrong", buffer.len()))?;
    }
    Ok(())
}
