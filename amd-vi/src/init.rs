//! Bringing the units up, in Linux's order: `amd_iommu_init` → `iommu_go_to_state` → `state_next`.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use platform::pci::PciAddress;
use platform::{PhysAddr, Platform};

use crate::command_queue::CommandError;
use crate::config::Config;
use crate::device_table::DeviceTable;
use crate::driver::Shared;
use crate::hardware::Hardware;
use crate::irq_remap::{IrqMode, NoIrqRemap};
use crate::ivrs::{DeviceEntry, Ivhd, Ivrs, IvrsError};
use crate::pci_capability::{IommuCapability, disable_msi, enable_msi};
use crate::registers::{MMIO_LENGTH, Registers};
use crate::segment::Segment;
use crate::unit::Unit;

/// How far the driver has come (Linux: `enum iommu_init_state`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[doc(alias = "iommu_init_state")]
pub enum InitState {
    /// Nothing is known (`IOMMU_START_STATE`).
    Start,
    /// The table has been read (`IOMMU_IVRS_DETECTED`).
    IvrsDetected,
    /// Units and device tables have their memory; nothing is enabled (`IOMMU_ACPI_FINISHED`).
    AcpiFinished,
    /// The units translate, with every device blocked (`IOMMU_ENABLED`).
    Enabled,
    /// What the units can do has been compared with what firmware says of them (`IOMMU_PCI_INIT`).
    PciInit,
    /// The units' interrupts are on (`IOMMU_INTERRUPTS_EN`).
    InterruptsEn,
    /// The driver can be registered (`IOMMU_INITIALIZED`).
    Initialized,
}

/// Why the units could not be brought up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The table makes no sense.
    #[error("the IVRS table is unusable: {0}")]
    Ivrs(#[from] IvrsError),
    /// The table names no IOMMU.
    #[error("the IVRS table names no IOMMU")]
    NoUnits,
    /// There is no IOMMU capability where the table says.
    #[error("{0} has no IOMMU capability where the IVRS table says")]
    NoCapability(PciAddress),
    /// The registers are elsewhere than the table says.
    #[error("the registers of {unit} are at {capability}, the IVRS table says {ivrs}")]
    BaseMismatch {
        /// The unit.
        unit: PciAddress,
        /// Where its capability says.
        capability: PhysAddr,
        /// Where the table says.
        ivrs: PhysAddr,
    },
    /// Nothing answers where the registers should be.
    #[error("the registers of {0} cannot be reached")]
    NoRegisters(PciAddress),
    /// No memory for a ring, a log or a device table.
    #[error("out of memory for rings and device tables")]
    OutOfMemory,
    /// Firmware left the unit running, and it does not stop.
    #[error("{0} does not stop")]
    DoesNotStop(PciAddress),
    /// The unit does not start.
    #[error("{0} does not start")]
    DoesNotStart(PciAddress),
    /// The unit's first commands failed.
    #[error("{unit} does not execute commands: {error}")]
    Commands {
        /// The unit.
        unit: PciAddress,
        /// What happened.
        error: CommandError,
    },
    /// The machine has an interrupt for the unit, and the unit cannot send it.
    #[error("{0} has no MSI capability")]
    NoMsi(PciAddress),
}

/// The states with what is known in each; there is no way to a state but through the one before it.
enum Stage<'a> {
    Start(&'a [u8]),
    IvrsDetected(Ivrs),
    AcpiFinished(Machine),
    Enabled(Machine),
    PciInit(Machine),
    InterruptsEn(Machine),
    Initialized(Machine),
}

impl Stage<'_> {
    fn state(&self) -> InitState {
        match self {
            Self::Start(_) => InitState::Start,
            Self::IvrsDetected(_) => InitState::IvrsDetected,
            Self::AcpiFinished(_) => InitState::AcpiFinished,
            Self::Enabled(_) => InitState::Enabled,
            Self::PciInit(_) => InitState::PciInit,
            Self::InterruptsEn(_) => InitState::InterruptsEn,
            Self::Initialized(_) => InitState::Initialized,
        }
    }
}

impl fmt::Debug for Stage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state().fmt(f)
    }
}

/// Everything that the table names, with its memory.
struct Machine {
    ivrs: Ivrs,
    units: Vec<Unit>,
    segments: BTreeMap<u16, Segment>,
    irq_mode: Result<IrqMode, NoIrqRemap>,
}

/// Where things come from.
struct Context<'a> {
    platform: Arc<dyn Platform>,
    hardware: &'a dyn Hardware,
    config: Config,
}

/// Goes through all states (Linux: `iommu_go_to_state`).
pub(crate) fn run(
    platform: Arc<dyn Platform>,
    table: &[u8],
    hardware: &dyn Hardware,
    config: Config,
) -> Result<(Shared, Ivrs), InitError> {
    let context = Context { platform, hardware, config };
    let mut stage = Stage::Start(table);
    loop {
        stage = match stage {
            Stage::Initialized(Machine { ivrs, units, segments, irq_mode }) => {
                let device_config = context.hardware.device_config();
                let Context { platform, config, .. } = context;
                let shared = Shared::new(platform, config, &ivrs, units, segments, irq_mode, device_config);
                return Ok((shared, ivrs));
            }
            stage => context.state_next(stage)?,
        };
    }
}

impl Context<'_> {
    /// One step (Linux: `state_next`).
    fn state_next<'t>(&self, stage: Stage<'t>) -> Result<Stage<'t>, InitError> {
        Ok(match stage {
            Stage::Start(table) => {
                let mut ivrs = Ivrs::parse(table)?;
                ivrs.apply(&self.config.overrides);
                Stage::IvrsDetected(ivrs)
            }
            Stage::IvrsDetected(ivrs) => Stage::AcpiFinished(self.early_init(ivrs)?),
            Stage::AcpiFinished(machine) => Stage::Enabled(self.or_undo(machine, Self::early_enable)?),
            Stage::Enabled(machine) => Stage::PciInit(self.or_undo(machine, Self::init_pci)?),
            Stage::PciInit(machine) => Stage::InterruptsEn(self.or_undo(machine, Self::enable_interrupts)?),
            Stage::InterruptsEn(machine) => Stage::Initialized(machine),
            done @ Stage::Initialized(_) => done,
        })
    }

    /// Does a step; when it fails, turns the units off and gives everything back (Linux: `free_iommu_resources`).
    fn or_undo(
        &self,
        machine: Machine,
        step: impl FnOnce(&Self, &Machine) -> Result<(), InitError>,
    ) -> Result<Machine, InitError> {
        match step(self, &machine) {
            Ok(()) => Ok(machine),
            Err(error) => {
                let Machine { units, segments, .. } = machine;
                let mut all_off = true;
                for unit in &units {
                    disable_msi(self.hardware.config_space(), unit.address());
                    all_off &= unit.disable().is_ok();
                }
                // What does not stop keeps its memory.
                if all_off {
                    // SAFETY: every unit is disabled.
                    unsafe { give_back(units, segments) };
                }
                Err(error)
            }
        }
    }

    /// Units and segments with their memory, before anything is enabled (Linux: `early_amd_iommu_init`).
    fn early_init(&self, ivrs: Ivrs) -> Result<Machine, InitError> {
        let mut units = Vec::new();
        let made = self.init_units(&ivrs, &mut units).and_then(|()| {
            let irq_mode = IrqMode::choose(self.config.irq_remap.as_ref(), &ivrs, &units);
            let segments = self.init_segments(&ivrs, &units, irq_mode.is_ok());
            Ok((segments.map_err(|_| InitError::OutOfMemory)?, irq_mode))
        });
        match made {
            Ok((segments, irq_mode)) => Ok(Machine { ivrs, units, segments, irq_mode }),
            Err(error) => {
                // SAFETY: no unit has been told of its rings.
                unsafe { give_back(units, BTreeMap::new()) };
                Err(error)
            }
        }
    }

    fn init_units(&self, ivrs: &Ivrs, units: &mut Vec<Unit>) -> Result<(), InitError> {
        for ivhd in ivrs.units() {
            let unit = self.init_unit(units.len(), ivhd)?;
            units.push(unit);
        }
        if units.is_empty() { Err(InitError::NoUnits) } else { Ok(()) }
    }

    /// One unit (Linux: `init_iommu_one`).
    fn init_unit(&self, index: usize, ivhd: &Ivhd) -> Result<Unit, InitError> {
        let (config, address, base) = (self.hardware.config_space(), ivhd.address, ivhd.mmio_base);
        let offset = ivhd.capability_offset;
        let capability =
            IommuCapability::read(config, address, offset).ok_or(InitError::NoCapability(address))?;
        if !capability.enabled() {
            IommuCapability::set_base(config, address, offset, base);
        } else if capability.base().align_down(MMIO_LENGTH) != base.align_down(MMIO_LENGTH) {
            return Err(InitError::BaseMismatch { unit: address, capability: capability.base(), ivrs: base });
        }
        let mmio = self.hardware.map_mmio(base, MMIO_LENGTH).ok_or(InitError::NoRegisters(address))?;
        let registers = Registers::new(mmio);
        // All ones is what a bus answers when nobody does.
        if !registers.is_complete() || registers.control().into_bits() == u64::MAX {
            return Err(InitError::NoRegisters(address));
        }
        Unit::new(index, ivhd.clone(), capability, registers, &self.platform, &self.config)
            .map_err(|_| InitError::OutOfMemory)
    }

    /// Device tables with every device blocked (Linux: `alloc_pci_segment` and `init_device_table_dma`).
    fn init_segments(
        &self,
        ivrs: &Ivrs,
        units: &[Unit],
        remaps: bool,
    ) -> Result<BTreeMap<u16, Segment>, platform::OutOfFrames> {
        let mut segments: BTreeMap<u16, Segment> = BTreeMap::new();
        for id in units.iter().map(|unit| unit.address().segment) {
            if segments.contains_key(&id) {
                continue;
            }
            let of_segment = || units.iter().filter(|unit| unit.address().segment == id);
            // Every block counts for the size: firmware may name a device in an older one only.
            let of_blocks = ivrs.ivhds.iter().filter(|ivhd| ivhd.address.segment == id);
            let highest = of_blocks.map(Ivhd::highest_device).max().unwrap_or(0);
            let flags = of_segment().flat_map(|unit| {
                unit.ivhd().entries.iter().map(|entry| {
                    let (first, last) = entry.devices();
                    (first, last, entry.flags())
                })
            });
            let special =
                of_segment().flat_map(|unit| &unit.ivhd().entries).filter_map(|entry| match *entry {
                    DeviceEntry::Special { device, .. } => Some(device),
                    _ => None,
                });
            let table = match DeviceTable::new(&self.platform, highest, flags, special.collect(), remaps) {
                Ok(table) => table,
                Err(error) => {
                    // SAFETY: no unit has been told of a device table.
                    unsafe { give_back(Vec::new(), segments) };
                    return Err(error);
                }
            };
            let mut segment =
                Segment { table, highest, ranges: Vec::new(), aliases: Vec::new(), no_ats: Vec::new() };
            for unit in of_segment() {
                unit.ivhd().entries.iter().for_each(|entry| segment.add_entry(unit.index(), entry));
            }
            segments.insert(id, segment);
        }
        Ok(segments)
    }

    /// Stops what firmware left running, then turns everything on (Linux: `early_enable_iommus`).
    fn early_enable(&self, machine: &Machine) -> Result<(), InitError> {
        for unit in &machine.units {
            unit.disable().map_err(|_| InitError::DoesNotStop(unit.address()))?;
        }
        for unit in &machine.units {
            let Some(segment) = machine.segments.get(&unit.address().segment) else { continue };
            unit.enable(segment.table.base_register(), machine.irq_mode.ok())
                .map_err(|_| InitError::DoesNotStart(unit.address()))?;
            self.flush_all(unit, segment)?;
        }
        Ok(())
    }

    fn flush_all(&self, unit: &Unit, segment: &Segment) -> Result<(), InitError> {
        unit.flush_all_caches(segment.highest)
            .map_err(|error| InitError::Commands { unit: unit.address(), error })
    }

    /// What is left to be learnt of the units once the machine's PCI is up (Linux: `amd_iommu_init_pci`).
    fn init_pci(&self, machine: &Machine) -> Result<(), InitError> {
        // The registers are right and their images in the table may not be (Linux: `late_iommu_features_init`): nothing uses
        // those, and `Unit::features_match_firmware` tells. What is left is that each unit answers with all of them on.
        for unit in &machine.units {
            unit.run(&[]).map_err(|error| InitError::Commands { unit: unit.address(), error })?;
        }
        Ok(())
    }

    /// Interrupts (Linux: `amd_iommu_enable_interrupts`).
    fn enable_interrupts(&self, machine: &Machine) -> Result<(), InitError> {
        for unit in &machine.units {
            let target = self.hardware.x2apic_target(unit.address()).filter(|_| unit.has_xt_interrupts());
            if let Some(target) = target {
                unit.set_xt_interrupts(target);
            } else {
                let Some(message) = self.hardware.msi_message(unit.address()) else { continue };
                if !enable_msi(self.hardware.config_space(), unit.address(), message) {
                    return Err(InitError::NoMsi(unit.address()));
                }
            }
            unit.enable_interrupts();
        }
        Ok(())
    }
}

/// Gives the memory of units and device tables back.
///
/// # Safety
/// No unit uses it.
unsafe fn give_back(units: Vec<Unit>, segments: BTreeMap<u16, Segment>) {
    for unit in units {
        // SAFETY: the caller's promise.
        unsafe { unit.free() };
    }
    for segment in segments.into_values() {
        // SAFETY: the caller's promise.
        unsafe { segment.table.free() };
    }
}
