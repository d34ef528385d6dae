//! MSI-X: masks, pending bits, and that a message is a write like any other.

mod common;

use common::*;
use platform::Mmio;
use platform::pci::RequesterId;
use sim_hardware::interrupts::Vector;
use std::sync::Arc;

/// Of the MSI-X capability's control word, in the upper half of its first dword.
const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;

struct Table<'a> {
    bench: &'a Bench,
    registers: Arc<dyn Mmio>,
    capability: u16,
    pending: usize,
}

impl<'a> Table<'a> {
    /// Finds the capability and what it says, as a driver does.
    fn of(bench: &'a Bench, function: RequesterId) -> Self {
        let mut at = config_read(&bench.pci, function, 0x34) as u16;
        while config_read(&bench.pci, function, at) & 0xff != 0x11 {
            at = (config_read(&bench.pci, function, at) >> 8 & 0xff) as u16;
            assert_ne!(at, 0, "no MSI-X");
        }
        let (table, pending) =
            (config_read(&bench.pci, function, at + 4), config_read(&bench.pci, function, at + 8));
        assert_eq!((table & 7, pending & 7), (4, 4), "both in BAR 4");
        assert_eq!(table & !7, 0);
        let registers = bench.pci.mmio(function, 4).expect("BAR 4");
        Self { bench, registers, capability: at, pending: (pending & !7) as usize }
    }

    fn control(&self, bits: u32) {
        config_write(&self.bench.pci, A, self.capability, bits);
    }

    /// Points an entry to a fresh vector.
    fn point(&self, entry: usize, masked: bool) -> Vector {
        let vector = self.bench.interrupts.allocate().expect("a vector");
        let (address, data) = vector.message();
        self.registers.write32(16 * entry, address as u32);
        self.registers.write32(16 * entry + 4, (address >> 32) as u32);
        self.registers.write32(16 * entry + 8, data);
        self.mask(entry, masked);
        vector
    }

    fn mask(&self, entry: usize, masked: bool) {
        self.registers.write32(16 * entry + 12, masked.into());
    }

    fn pending(&self) -> u32 {
        self.registers.read32(self.pending)
    }
}

#[test]
fn a_vector_sends_its_own_message() {
    let bench = Bench::default();
    let table = Table::of(&bench, A);
    assert_eq!(config_read(&bench.pci, A, table.capability) >> 16 & 0x7ff, 2, "three vectors, less one");
    table.control(ENABLE);
    let vectors = [table.point(0, false), table.point(1, false), table.point(2, false)];
    bench.a.raise(1);
    assert!(vectors[1].wait(SOON));
    assert!(!vectors[0].wait(A_WHILE) && !vectors[2].wait(A_WHILE));
    // A vector that is not there does nothing.
    bench.a.raise(3);
    assert_eq!(bench.interrupts.spurious(), 0);
}

#[test]
fn vectors_are_masked_after_reset_and_read_back() {
    let bench = Bench::default();
    let table = Table::of(&bench, A);
    for entry in 0..3 {
        assert_eq!(table.registers.read32(16 * entry + 12), 1);
    }
    table.registers.write64(16, 0x1234_5678_fee0_1003);
    table.registers.write64(24, 0x41);
    assert_eq!(table.registers.read64(16), 0x1234_5678_fee0_1000, "bits 1:0 are 0");
    assert_eq!((table.registers.read32(24), table.registers.read32(28)), (0x41, 0));
    assert_eq!(table.registers.read32(0), 0, "the neighbour");
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let bench = Bench::default();
    let table = Table::of(&bench, A);
    table.control(ENABLE);
    let (first, second) = (table.point(0, true), table.point(1, true));
    bench.a.raise(1);
    bench.a.raise(1);
    assert_eq!(table.pending(), 0b10);
    table.mask(0, false);
    assert!(!first.wait(A_WHILE) && !second.wait(A_WHILE));
    table.mask(1, false);
    assert!(second.wait(SOON));
    assert_eq!(table.pending(), 0);
    assert!(!second.wait(A_WHILE), "raised twice, sent once");
    // Pending bits cannot be written.
    table.mask(1, true);
    bench.a.raise(1);
    table.registers.write32(table.pending, 0);
    assert_eq!(table.pending(), 0b10);
}

#[test]
fn the_function_masks_all_vectors() {
    let bench = Bench::default();
    let table = Table::of(&bench, A);
    let vector = table.point(2, false);
    // Off; then on and masked as a whole.
    for control in [0, MASK_ALL, ENABLE | MASK_ALL] {
        table.control(control);
        bench.a.raise(2);
        assert!(!vector.wait(A_WHILE), "{control:#x}");
        assert_eq!(table.pending(), 0b100);
    }
    table.control(ENABLE);
    assert!(vector.wait(SOON));
    assert_eq!(table.pending(), 0);
    // What is read only stays.
    table.control(u32::MAX);
    assert_eq!(config_read(&bench.pci, A, table.capability) >> 16, 0xc002);
}

#[test]
fn a_message_needs_bus_mastering_and_the_iommus_leave() {
    let bench = Bench::default();
    let table = Table::of(&bench, A);
    table.control(ENABLE);
    let vector = table.point(0, false);
    config_write(&bench.pci, A, 0x04, 0x2);
    bench.a.raise(0);
    assert!(!vector.wait(A_WHILE));
    bus_master_on(&bench.pci, A);
    bench.set_dte(A, [0, 0, 1, 0]);
    bench.a.raise(0);
    assert!(!vector.wait(A_WHILE));
    assert_eq!(bench.events(), [(0x8a00_0000_0000_0018, 0xfee0_0000)]);
    bench.set_dte(A, [0, 0, 1 | 1 << 60, 0]);
    bench.invalidate_device(A);
    bench.a.raise(0);
    assert!(vector.wait(SOON));
}

#[test]
fn a_peer_that_unmasks_a_vector_makes_it_send() {
    // The message passes the IOMMU while the peer's own request is being answered.
    let bench = Bench::default();
    let table = Table::of(&bench, A);
    table.control(ENABLE);
    let vector = table.point(0, true);
    bench.a.raise(0);
    assert_eq!(bench.b.write_bytes(bar(&bench.pci, A, 4) + 12, &[0; 4]), Ok(()));
    assert!(vector.wait(SOON));
}

#[test]
fn messages_for_nobody_are_counted() {
    let bench = Bench::default();
    assert_eq!(bench.a.write_bytes(0xfee0_0000, &[0xf0, 0, 0, 0]), Ok(()));
    assert_eq!(bench.interrupts.spurious(), 1);
    // A message is a dword.
    assert!(bench.a.write_bytes(0xfee0_0000, &[0xf0, 0]).is_err());
    assert_eq!(bench.interrupts.spurious(), 1);
    // Vectors come back.
    let all: Vec<_> = std::iter::from_fn(|| bench.interrupts.allocate()).collect();
    assert_eq!(all.len(), 256 - 32);
    drop(all);
    assert!(bench.interrupts.allocate().is_some());
}
