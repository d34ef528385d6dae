//! Machines for the tests, and a device to try them with.

#![allow(dead_code, reason = "each test uses some of it")]

pub(crate) mod tables;

use std::io::Write as _;
use std::sync::Arc;

use backend_qemu::{Config, EDU_BUFFER, Edu, Program, ProgramError, QemuMachine};
use dma_api::DmaBuffer;
use iommu_core::{Domain, Group, PagingFlags, Settings, Trust};
use platform::pci::PciAddress;
use platform::{DmaAddr, FrameRequest, Frames, PhysAddr, Platform, Prot};

pub(crate) const PAGE: usize = 4096;
/// `edu`, as device 5 of the root bus.
pub(crate) const EDU: PciAddress = PciAddress::new(0, 0, 5, 0);

/// Strict DMA domains: the default.
pub(crate) const STRICT: Settings = Settings { passthrough: None, lazy: false, forcedac: false };
/// Identity domains.
// SAFETY: QEMU's devices do DMA only when a test tells them to, on memory of their machine.
pub(crate) const IDENTITY: Settings = Settings { passthrough: Some(unsafe { Trust::new() }), ..STRICT };

/// A machine with `edu`.
pub(crate) fn with_edu() -> Config {
    Config::q35().edu(EDU.id.device())
}

/// Starts a machine. `None` where there is no QEMU, which is said, and which is a failure when one was asked for by name.
pub(crate) fn start(config: Config) -> Option<QemuMachine> {
    let emulator = config.emulator();
    match Program::find(emulator) {
        Err(why @ ProgramError::NotFound(_)) if !Program::is_demanded() => {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("a test");
            // Not by `eprintln`, which the test harness swallows when a test passes.
            let _ = writeln!(std::io::stderr(), "not run: {test}: {why}");
            None
        }
        program => Some(QemuMachine::start(config.program(program.unwrap())).unwrap()),
    }
}

/// Pages of the machine's memory that no device knows.
pub(crate) fn pages(machine: &QemuMachine, count: usize) -> DmaBuffer<u8> {
    let platform: Arc<dyn Platform> = machine.platform().clone();
    DmaBuffer::zeroed_in(&platform, count * PAGE).unwrap()
}

/// What a page is filled with.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed).collect()
}

/// Where a rig's domains have the page through which it gives data to `edu` and takes it back.
const STAGING: DmaAddr = DmaAddr::new(0x1000);
/// Both ways.
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// `edu` as nobody's device: it is told directly, in whatever domain its group is.
// Fields are dropped in this order: a domain that goes asks the IOMMU to forget it.
pub(crate) struct Rig {
    edu: Edu,
    staging: PhysAddr,
    pub(crate) group: Arc<Group>,
    pub(crate) machine: QemuMachine,
}

impl Rig {
    /// A machine with `edu`, or `None` as [`start`].
    pub(crate) fn start(config: Config) -> Option<Self> {
        let machine = start(config)?;
        let group = machine.group(EDU).unwrap();
        let edu = Edu::new(machine.function(EDU).unwrap()).unwrap();
        let staging = machine.platform().alloc(FrameRequest::ONE).unwrap();
        Some(Self { edu, staging, group, machine })
    }

    /// A domain with nothing in it but the staging page.
    pub(crate) fn domain(&self) -> Arc<Domain> {
        let domain = self.group.alloc_unmanaged(PagingFlags::empty()).unwrap();
        map(&domain, STAGING, self.staging, PAGE as u64, RW);
        domain
    }

    /// The same, with the device in it.
    pub(crate) fn attached(&self) -> Arc<Domain> {
        let domain = self.domain();
        self.group.attach(&domain).unwrap();
        domain
    }

    /// Fills the start of `edu`'s buffer, in a domain of this rig.
    pub(crate) fn load(&self, data: &[u8]) {
        self.put(self.staging, data);
        self.edu.read(self.clock(), STAGING, 0, data.len()).unwrap();
    }

    /// The start of `edu`'s buffer.
    pub(crate) fn unload(&self, len: usize) -> Vec<u8> {
        self.edu.write(self.clock(), STAGING, 0, len).unwrap();
        self.get(self.staging, len)
    }

    /// Has the device write `len` bytes at `offset` of its buffer, whatever domain it is in.
    pub(crate) fn store(&self, at: DmaAddr, offset: usize, len: usize) {
        self.edu.write(self.clock(), at, offset, len).unwrap();
    }

    /// Has it read into its buffer.
    pub(crate) fn fetch(&self, at: DmaAddr, offset: usize, len: usize) {
        self.edu.read(self.clock(), at, offset, len).unwrap();
    }

    /// Has the device write a word, in a domain of this rig.
    pub(crate) fn write(&self, at: DmaAddr, value: u64) {
        self.load(&value.to_le_bytes());
        self.store(at, 0, 8);
    }

    /// Has the device read a word, in a domain of this rig. `None` when it got nothing.
    pub(crate) fn read(&self, at: DmaAddr) -> Option<u64> {
        const NOTHING: u64 = 0xeeee_eeee_eeee_eeee;
        self.load(&NOTHING.to_le_bytes());
        self.fetch(at, 0, 8);
        let found = u64::from_le_bytes(self.unload(8).try_into().unwrap());
        // Of what was refused some hardware makes zeros.
        (found != NOTHING && found != 0).then_some(found)
    }

    fn clock(&self) -> &impl platform::Clock {
        &**self.machine.platform()
    }

    /// Puts data into memory.
    pub(crate) fn put(&self, at: PhysAddr, data: &[u8]) {
        assert!(data.len() <= EDU_BUFFER);
        let to = self.machine.platform().window().ptr(at);
        // SAFETY: the frame is this test's and as long as a page; devices access it atomically.
        unsafe { platform::device_memory::copy_in(data.as_ptr(), to, data.len()) };
    }

    /// Takes data out of memory.
    pub(crate) fn get(&self, at: PhysAddr, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let from = self.machine.platform().window().ptr(at);
        // SAFETY: as in `put`.
        unsafe { platform::device_memory::copy_out(from, data.as_mut_ptr(), len) };
        data
    }

    /// The word at an address of memory.
    pub(crate) fn word(&self, at: PhysAddr) -> u64 {
        u64::from_le_bytes(self.get(at, 8).try_into().unwrap())
    }

    /// A frame of memory, zeroed, at or below an address.
    pub(crate) fn frame_below(&self, last: u64) -> PhysAddr {
        let request = FrameRequest { limit: PhysAddr::new(last), ..FrameRequest::ONE };
        self.machine.platform().alloc(request).unwrap()
    }

    /// A frame of memory, zeroed.
    pub(crate) fn frame(&self) -> PhysAddr {
        self.frame_below(u64::MAX)
    }
}

/// Maps a range of memory that stays valid.
pub(crate) fn map(domain: &Domain, at: DmaAddr, phys: PhysAddr, len: u64, prot: Prot) {
    // SAFETY: frames of these tests are never given back, and RAM of the machine is no memory of the process.
    let (mapped, result) = unsafe { domain.map(at, phys, len, prot) };
    assert_eq!((mapped, result), (len, Ok(())));
}

/// Unmaps a range and has the IOMMU forget it.
pub(crate) fn unmap(domain: &Domain, at: DmaAddr, len: u64) {
    let mut gather = domain.gather();
    // SAFETY: tests map and unmap on one thread.
    assert_eq!(unsafe { domain.unmap(at, len, &mut gather) }, len);
    let _ = domain.sync(gather).unwrap();
}
