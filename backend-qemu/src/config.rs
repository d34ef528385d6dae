//! What a machine should be like.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use iommu_core::Settings;
use platform::pci::PciAddress;

use crate::board::{ARM_VIRT, Board, Q35, RISCV_VIRT};
use crate::program::{Emulator, Program, Version};

/// The IOMMU of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    None,
    Amd,
    VtdFirstStage,
    VtdSecondStage,
    /// The board's own.
    OnBoard,
}

/// A machine in words: a board, a PC of type q35 with an AMD IOMMU unless it is told otherwise, and the devices that are added.
///
/// Devices on the root bus have the device numbers that their callers give, from 2 on: the AMD IOMMU takes 1.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) board: &'static Board,
    pub(crate) program: Option<Program>,
    pub(crate) memory: u64,
    pub(crate) processors: u32,
    pub(crate) iommu: Unit,
    pub(crate) iommu_options: Vec<String>,
    pub(crate) with_driver: bool,
    pub(crate) driver: amd_vi::Config,
    pub(crate) devices: Vec<OsString>,
    pub(crate) settings: Settings,
    pub(crate) untrusted: Vec<PciAddress>,
    pub(crate) bounce_pool: usize,
    pub(crate) tick: Duration,
}

/// From here on the AMD IOMMU's `dma-remap` is what `pt` was.
const REMAPPING_IS_AN_OPTION: Version = Version::new(10, 2, 0);
/// From here on the options of Intel's scalable mode have no `x-`.
const SCALABLE_MODE_IS_STABLE: Version = Version::new(11, 0, 0);

impl Config {
    /// The first version with [`Config::testdev`].
    pub const TESTDEV_FROM: Version = Version::new(11, 0, 0);

    /// A q35 machine with 256 MiB of memory and an AMD IOMMU.
    pub fn q35() -> Self {
        Self {
            board: &Q35,
            program: None,
            memory: 256 << 20,
            processors: 1,
            iommu: Unit::Amd,
            iommu_options: Vec::new(),
            with_driver: true,
            driver: amd_vi::Config::default(),
            devices: Vec::new(),
            settings: Settings::default(),
            untrusted: Vec::new(),
            bounce_pool: 8 << 20,
            tick: Duration::from_millis(10),
        }
    }

    /// QEMU's own RISC-V machine (`virt`) with 256 MiB of memory and a RISC-V IOMMU, registers at 301_0000h. There is no driver
    /// for that here: who asks for it brings it up through [`crate::QemuMachine::registers`], and until he does DMA is not
    /// translated.
    pub fn riscv_virt() -> Self {
        Self { board: &RISCV_VIRT, iommu: Unit::OnBoard, ..Self::q35() }
    }

    /// QEMU's own 64-bit ARM machine (`virt`) with 256 MiB of memory and an SMMUv3, registers at 905_0000h; as
    /// [`Config::riscv_virt`].
    pub fn arm_virt() -> Self {
        Self { board: &ARM_VIRT, iommu: Unit::OnBoard, ..Self::q35() }
    }

    /// Which of QEMU's programs runs it.
    pub fn emulator(&self) -> Emulator {
        self.board.emulator
    }

    /// With this QEMU instead of the one that [`Program::find`] finds.
    #[must_use]
    pub fn program(mut self, program: Program) -> Self {
        self.program = Some(program);
        self
    }

    /// With this many bytes of memory: whole mebibytes, from 64 MiB to 2 GiB.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes.clamp(64 << 20, 2 << 30) & !0xf_ffff;
        self
    }

    /// With this many processors, 1 to 255, all of them halted: interrupts come to them
    /// ([`crate::QemuMachine::raised_interrupts`]).
    #[must_use]
    pub fn processors(mut self, count: u32) -> Self {
        self.processors = count.clamp(1, 255);
        self
    }

    /// Without an IOMMU.
    #[must_use]
    pub fn without_iommu(mut self) -> Self {
        self.iommu = Unit::None;
        self
    }

    /// With an AMD IOMMU that nobody brings up, registers at FED8_0000h, as [`Config::vtd_first_stage`].
    #[must_use]
    pub fn without_driver(mut self) -> Self {
        self.with_driver = false;
        self
    }

    /// With Intel's IOMMU (VT-d) in scalable mode with first-stage tables, registers at FED9_0000h, instead of AMD's. There is no
    /// driver for it here: who asks for it brings it up through [`crate::QemuMachine::registers`], and until he does DMA is not
    /// translated.
    #[must_use]
    pub fn vtd_first_stage(mut self) -> Self {
        self.iommu = Unit::VtdFirstStage;
        self
    }

    /// The same with second-stage tables.
    #[must_use]
    pub fn vtd_second_stage(mut self) -> Self {
        self.iommu = Unit::VtdSecondStage;
        self
    }

    /// With an option of QEMU's IOMMU, such as `xtsup=on`.
    #[must_use]
    pub fn iommu_option(mut self, option: &str) -> Self {
        self.iommu_options.push(option.into());
        self
    }

    /// With the AMD IOMMU's driver set up so.
    #[must_use]
    pub fn driver(mut self, driver: amd_vi::Config) -> Self {
        self.driver = driver;
        self
    }

    /// With a device in QEMU's own words (`e1000e,addr=6`; what `-device` takes).
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.devices.extend(["-device".into(), device.into()]);
        self
    }

    /// With `edu`, QEMU's teaching device, as device `number` of the root bus: a device that copies to and from wherever it is
    /// told ([`crate::Edu`]).
    #[must_use]
    pub fn edu(self, number: u8) -> Self {
        self.device(&format!("edu,addr={number:x},dma_mask=0xffffffffffffffff"))
    }

    /// With `iommu-testdev`, which writes wherever it is told and says how that went, as device `number` of the root bus
    /// ([`crate::Testdev`]). QEMU has it from [`Config::TESTDEV_FROM`] on.
    #[must_use]
    pub fn testdev(self, number: u8) -> Self {
        self.device(&format!("iommu-testdev,addr={number:x}"))
    }

    /// With an NVMe controller as device `number` of the root bus, whose disk is the file at `disk`, in blocks of 512 bytes.
    #[must_use]
    pub fn nvme(self, number: u8, disk: &Path, writable: bool) -> Self {
        let (id, read_only) = (format!("disk{number}"), if writable { "off" } else { "on" });
        // In an option a comma is written twice.
        let mut drive =
            OsString::from(format!("if=none,format=raw,cache=unsafe,read-only={read_only},id={id},file="));
        drive.push(disk.to_string_lossy().replace(',', ",,"));
        let mut with_drive = self;
        with_drive.devices.extend(["-drive".into(), drive]);
        with_drive.device(&format!("nvme,addr={number:x},serial={id},drive={id}"))
    }

    /// With default domains chosen so.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// With devices that are not trusted even where [`crate::QemuMachine::trust`] binds them.
    #[must_use]
    pub fn untrusted(mut self, devices: Vec<PciAddress>) -> Self {
        self.untrusted = devices;
        self
    }

    /// With a bounce pool of this many bytes.
    #[must_use]
    pub fn bounce_pool(mut self, bytes: usize) -> Self {
        self.bounce_pool = bytes;
        self
    }

    /// With flush queues flushed, and the event log read, this often. At the latest: both are done when they are waited for.
    #[must_use]
    pub fn tick(mut self, tick: Duration) -> Self {
        self.tick = tick;
        self
    }

    /// The command line.
    pub(crate) fn arguments(&self, version: Version, ram: &str, firmware: Option<&str>) -> Vec<OsString> {
        let memory = self.memory >> 20;
        let text = |words: &str| words.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        // Time jumps to the next thing that happens.
        let mut arguments = text(&format!(
            "-M {},memory-backend=ram -accel tcg -icount shift=0,sleep=off",
            self.board.machine
        ));
        arguments.extend(text("-display none -nodefaults -no-user-config -qtest-log none"));
        arguments.extend(text(&format!(
            "-m {memory} -object memory-backend-file,id=ram,size={memory}M,mem-path={ram},share=on"
        )));
        arguments.extend(text(self.board.processor));
        arguments.extend(firmware.into_iter().flat_map(|path| ["-bios".into(), path.into()]));
        // Standard input and output are the sockets.
        arguments.extend(text("-chardev socket,id=qtest,fd=0 -qtest chardev:qtest"));
        arguments.extend(text("-chardev socket,id=monitor,fd=1 -mon chardev=monitor,mode=control"));
        arguments.extend(text(&format!("-smp {}", self.processors)));
        // Option ROMs are for processors.
        arguments.extend(text("-global pci-device.romfile="));
        let unit = match self.iommu {
            Unit::None | Unit::OnBoard => None,
            // Without it QEMU emulates the IOMMU and passes DMA by.
            Unit::Amd if version < REMAPPING_IS_AN_OPTION => Some("amd-iommu,pt=off"),
            Unit::Amd => Some("amd-iommu,dma-remap=on"),
            Unit::VtdFirstStage if version < SCALABLE_MODE_IS_STABLE => {
                Some("intel-iommu,x-scalable-mode=on,x-flts=on")
            }
            Unit::VtdFirstStage => Some("intel-iommu,scalable-mode=on,fsts=on"),
            Unit::VtdSecondStage if version < SCALABLE_MODE_IS_STABLE => {
                Some("intel-iommu,x-scalable-mode=on")
            }
            Unit::VtdSecondStage => Some("intel-iommu,scalable-mode=on"),
        };
        if let Some(unit) = unit {
            let options = self.iommu_options.iter().map(String::as_str);
            let device = std::iter::once(unit).chain(options).collect::<Vec<_>>().join(",");
            arguments.extend(["-device".into(), device.into()]);
        }
        arguments.extend(self.devices.iter().cloned());
        arguments
    }
}
