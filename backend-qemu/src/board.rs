//! The machine types: where things are that a processor would find.

use std::ops::Range;

use crate::program::Emulator;

/// A type of machine.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) emulator: Emulator,
    /// What `-M` takes, without the memory.
    pub(crate) machine: &'static str,
    /// The first address of RAM.
    pub(crate) ram: u64,
    /// How much at the end of RAM is QEMU's own.
    pub(crate) ram_tail: u64,
    /// Configuration space, memory-mapped.
    pub(crate) config_space: u64,
    /// Where registers of devices may be put.
    pub(crate) registers: Range<u64>,
    /// How its processor is kept from running, in QEMU's words, but for a PC's, which runs firmware that halts.
    pub(crate) processor: &'static str,
    /// Whether it is a PC: with ports, and a chipset that must be told where configuration space is.
    pub(crate) is_pc: bool,
    /// What a processor finds at the start of RAM, if it starts there: it must wait.
    pub(crate) halt: &'static [u8],
}

/// A PC, without the timers that tick while nothing happens.
pub(crate) static Q35: Board = Board {
    emulator: Emulator::X86_64,
    machine: "q35,pit=off,hpet=off",
    ram: 0,
    ram_tail: 0,
    config_space: 0xb000_0000,
    // Above configuration space, below the chipset's own.
    registers: 0xc000_0000..0xfe00_0000,
    processor: "",
    is_pc: true,
    halt: &[],
};

/// QEMU's own RISC-V machine, with an IOMMU.
pub(crate) static RISCV_VIRT: Board = Board {
    emulator: Emulator::RiscV64,
    machine: "virt,iommu-sys=on",
    ram: 0x8000_0000,
    // The device tree.
    ram_tail: 2 << 20,
    config_space: 0x3000_0000,
    registers: 0x4000_0000..0x8000_0000,
    processor: "-bios none",
    is_pc: false,
    // wfi; j .-4
    halt: &[0x73, 0x00, 0x50, 0x10, 0x6f, 0xf0, 0xdf, 0xff],
};

/// QEMU's own ARM machine, with an SMMUv3.
pub(crate) static ARM_VIRT: Board = Board {
    emulator: Emulator::Aarch64,
    // Configuration space below 4 GiB, of 16 buses.
    machine: "virt,iommu=smmuv3,highmem-ecam=off",
    // The device tree is at its start.
    ram: 0x4000_0000,
    ram_tail: 0,
    config_space: 0x3f00_0000,
    registers: 0x1000_0000..0x3eff_0000,
    processor: "-cpu cortex-a57 -global arm-cpu.start-powered-off=on",
    is_pc: false,
    halt: &[],
};
