//! The NVMe driver of the examples, unchanged, on QEMU's controller behind QEMU's IOMMU: what it reads and writes is what the
//! file on the host has, byte for byte.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use backend_qemu::{Config, QemuMachine};
use common::{IDENTITY, start};
use dma_api::DmaBuffer;
use nvme_driver::{Controller, IoQueue};
use platform::pci::PciAddress;
use tempfile::NamedTempFile;

/// The controller, as device 4 of the root bus.
const NVME: PciAddress = PciAddress::new(0, 0, 4, 0);
const BLOCK: usize = 512;
const LEN: usize = 2 << 20;
const QUEUES: u16 = 2;
const DEPTH: u32 = 16;
const SOON: Duration = Duration::from_secs(30);

/// Bytes that depend on their place, with no period that a page or a block could hide.
fn bytes(seed: u64, at: usize, len: usize) -> Vec<u8> {
    let byte = |place: usize| ((place as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (at..at + len).map(byte).collect()
}

fn disk() -> NamedTempFile {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().write_all_at(&bytes(1, 0, LEN), 0).unwrap();
    disk
}

fn controller(machine: &QemuMachine) -> Controller {
    // SAFETY: the controller does as it is told, and memory of the machine is no memory of the process.
    let (function, device) = unsafe { machine.trust(NVME) }.unwrap();
    Controller::new(function, Arc::new(device), QUEUES).unwrap()
}

/// Moves the whole disk in pieces of several sizes, several at a time; `send` starts a piece, `check` sees it back.
fn move_everything(
    controller: &Controller,
    send: &dyn Fn(&mut IoQueue<'_>, usize, DmaBuffer<u8>) -> u16,
    check: &dyn Fn(usize, &[u8]),
) {
    let mut queue = controller.io_queue(1, DEPTH).unwrap();
    // From one block over a part of a page and two pages to lists of many.
    let mut sizes = [BLOCK, 4096, 3 * BLOCK, 128 << 10, 8192, 64 << 10, 12288].into_iter().cycle();
    let (mut at, mut places) = (0, std::collections::HashMap::new());
    while at < LEN || queue.outstanding() > 0 {
        while at < LEN && queue.outstanding() < queue.depth() {
            let size = sizes.next().unwrap_or(BLOCK).min(LEN - at);
            let tag = send(&mut queue, at, DmaBuffer::zeroed(controller.device(), size).unwrap());
            assert_eq!(places.insert(tag, at), None, "a tag of two commands");
            at += size;
        }
        let done = queue.wait(SOON).unwrap();
        done.result.unwrap();
        check(places.remove(&done.tag).unwrap(), &done.buffer.unwrap());
    }
}

fn read_everything(controller: &Controller, seed: u64) {
    let read = |queue: &mut IoQueue<'_>, at, buffer| queue.read((at / BLOCK) as u64, buffer).unwrap();
    move_everything(controller, &read, &|at, found| {
        assert!(found == bytes(seed, at, found.len()), "{} bytes at {at} are wrong", found.len());
    });
}

fn write_everything(controller: &Controller, seed: u64) {
    let write = |queue: &mut IoQueue<'_>, at, mut buffer: DmaBuffer<u8>| {
        let data = bytes(seed, at, buffer.len());
        buffer.copy_from_slice(&data);
        queue.write((at / BLOCK) as u64, buffer).unwrap()
    };
    move_everything(controller, &write, &|_, _| {});
    let mut queue = controller.io_queue(1, DEPTH).unwrap();
    queue.flush().unwrap();
    queue.wait(SOON).unwrap().result.unwrap();
}

fn exercise(config: Config, nvme: &dyn Fn(Config, &NamedTempFile) -> Config) {
    let disk = disk();
    let Some(machine) = start(nvme(config, &disk)) else { return };
    let controller = controller(&machine);
    assert_eq!(controller.namespace().blocks, (LEN / BLOCK) as u64);
    assert_eq!(controller.namespace().block_size, BLOCK);
    read_everything(&controller, 1);
    write_everything(&controller, 2);
    assert!(std::fs::read(disk.path()).unwrap() == bytes(2, 0, LEN), "the file has something else");
    read_everything(&controller, 2);
    drop(controller);
    machine.health().unwrap();
    assert_eq!(machine.take_faults(), []);
    assert_eq!(machine.check_free_memory(), []);
    let statistics = machine.iommu().map(|iommu| iommu.statistics()).unwrap_or_default();
    assert_eq!((statistics.quarantined, statistics.maps), (0, statistics.unmaps));
}

fn direct(config: Config, disk: &NamedTempFile) -> Config {
    config.nvme(NVME.id.device(), disk.path(), true)
}

#[test]
fn reads_and_writes_the_whole_disk_behind_the_iommu() {
    exercise(Config::q35(), &direct);
}

#[test]
fn reads_and_writes_the_whole_disk_through_an_identity_domain() {
    exercise(Config::q35().settings(IDENTITY), &direct);
}

#[test]
fn reads_and_writes_the_whole_disk_without_an_iommu() {
    exercise(Config::q35().without_iommu(), &direct);
}
