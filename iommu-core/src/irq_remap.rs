//! Interrupt remapping: what an IOMMU driver implements so that a device's messages reach what the kernel says and nothing else.
//!
//! A message interrupt is a write to an address that any device can write to. Without remapping a device so raises whatever
//! vector it likes on whatever processor it likes; with it a message names an entry of a table that is the device's own, and the
//! entry has the vector.

use alloc::boxed::Box;
use core::fmt;

use platform::pci::{MsiMessage, PciAddress};

use crate::ops::SyncError;

/// Who sends an interrupt (Linux: `struct irq_alloc_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "irq_alloc_info")]
pub enum IrqSource<'a> {
    /// A PCI function, by MSI or MSI-X.
    Msi {
        /// The function.
        function: PciAddress,
        /// Other names under which its messages may arrive: what [`Topology::dma_aliases`](crate::pci::Topology::dma_aliases)
        /// says. Those that firmware gives an IOMMU's driver need not be among them.
        aliases: &'a [PciAddress],
    },
    /// A pin of an IO-APIC.
    IoApic {
        /// The IO-APIC's identifier, as in the MADT.
        id: u8,
        /// The pin, from 0 on.
        pin: u8,
    },
    /// A timer of a high-precision event timer block.
    Hpet {
        /// The block's number.
        number: u8,
    },
}

/// How the destination of an interrupt is read (Linux: `apic_dest_mode_logical`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DestinationMode {
    /// As the identifier of a local APIC.
    #[default]
    Physical,
    /// As a set of processors.
    Logical,
}

/// How an interrupt is delivered (Linux: `enum apic_delivery_modes`). NMI, INIT and their like are not remapped: firmware says
/// for each device whether they pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "apic_delivery_modes")]
pub enum IrqDelivery {
    /// To all processors of the destination.
    #[default]
    Fixed,
    /// To the one of them with the lowest priority (the specification: arbitrated).
    LowestPriority,
}

/// Where an interrupt goes (Linux: `struct irq_cfg`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "irq_cfg")]
pub struct IrqTarget {
    /// The vector, 16 to 255.
    pub vector: u8,
    /// The processor or processors, 0 to [`IrqRemap::last_destination`].
    pub destination: u32,
    /// How `destination` is read.
    pub mode: DestinationMode,
    /// How it is delivered.
    pub delivery: IrqDelivery,
}

impl IrqTarget {
    /// The lowest vector that a message may have.
    pub const FIRST_VECTOR: u8 = 16;

    /// `vector` on the processor whose local APIC is `destination`.
    pub const fn fixed(vector: u8, destination: u32) -> Self {
        Self { vector, destination, mode: DestinationMode::Physical, delivery: IrqDelivery::Fixed }
    }
}

/// Why an interrupt cannot be remapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IrqRemapError {
    /// The source is behind none of this driver's IOMMUs, or firmware has not said where it is (Linux: `-ENODEV`).
    #[error("the source of the interrupt is behind none of these IOMMUs")]
    NoSuchSource,
    /// None, or more at once than a table has entries.
    #[error("{0} interrupts cannot be had at once")]
    Count(u16),
    /// The pin is one that cannot be told apart from other sources.
    #[error("pin {0} of an IO-APIC cannot be remapped")]
    Pin(u8),
    /// The pin has its entry already.
    #[error("the interrupt has been given to somebody")]
    Busy,
    /// The source's table has no room (Linux: `-ENOSPC`).
    #[error("the source's table has no room for more interrupts")]
    Exhausted,
    /// No memory for a table (Linux: `-ENOMEM`).
    #[error("out of memory for interrupt tables")]
    OutOfMemory,
    /// The source's messages arrive under names of which two have tables of their own.
    #[error("the source shares names with two others that have a table each")]
    Aliases,
    /// There are fewer interrupts than that.
    #[error("there is no interrupt {0} here")]
    Index(u16),
    /// The vector is one that no message may have.
    #[error("vector {0} cannot be raised by a message")]
    Vector(u8),
    /// The destination is beyond what the IOMMU can name.
    #[error("destination {0:#x} is beyond what the IOMMU can name")]
    Destination(u32),
    /// The IOMMU did not answer.
    #[error("{0}")]
    Sync(#[from] SyncError),
}

/// An IOMMU driver's interrupt remapping (Linux: `struct irq_remap_ops` and the interrupt domains behind it).
///
/// A kernel asks for entries with [`IrqRemap::alloc`], says where each leads with [`RemappedIrqs::set_target`], and programs the
/// source with [`RemappedIrqs::message`]. From then on only the entry changes, whatever processor the interrupt moves to.
///
/// # Safety
/// Kernels rely on it, as on a device's memory: from the moment that the driver says that it remaps, a message of a source
/// - that has no entries, or names one that it does not have or that is masked, raises nothing;
/// - else raises what the entry says, and nothing else.
#[doc(alias = "irq_remap_ops")]
pub unsafe trait IrqRemap: Send + Sync + fmt::Debug {
    /// A name for messages.
    fn name(&self) -> &str;

    /// The highest destination that an entry can have: 255, or all 32 bits with x2APIC (Linux: `IRQ_REMAP_X2APIC_MODE`).
    #[doc(alias = "IRQ_REMAP_X2APIC_MODE")]
    fn last_destination(&self) -> u32;

    /// Takes `count` entries in a row, all masked. As the messages of one function with multiple MSI need, the first is at a
    /// multiple of the next power of two.
    ///
    /// # Errors
    /// [`IrqRemapError`] with the reason.
    fn alloc(&self, source: IrqSource<'_>, count: u16) -> Result<Box<dyn RemappedIrqs>, IrqRemapError>;

    /// Entries that are nobody's and never will be, since the IOMMU may still have them in use: it did not answer when they were
    /// given back.
    fn quarantined(&self) -> u64;
}

/// Entries of a source. Dropped, they raise nothing any more; they are used again only once the IOMMU has forgotten them, and
/// never when it does not answer.
///
/// # Safety
/// See [`IrqRemap`].
pub unsafe trait RemappedIrqs: Send + Sync + fmt::Debug {
    /// How many there are, at least one.
    fn count(&self) -> u16;

    /// What the source writes to raise interrupt `index` (Linux: `irq_compose_msi_msg`). It stays as it is, whatever the
    /// target. Of several messages in a row the data differ in the lowest bits, as multiple MSI has it.
    ///
    /// # Errors
    /// [`IrqRemapError::Index`].
    #[doc(alias = "irq_compose_msi_msg")]
    fn message(&self, index: u16) -> Result<MsiMessage, IrqRemapError>;

    /// Has interrupt `index` lead to `target`, unmasked. A message that comes meanwhile goes to the old target or the new one;
    /// when this returns none goes to the old one any more (Linux: `irq_set_affinity`).
    ///
    /// # Errors
    /// [`IrqRemapError::Sync`] when the IOMMU did not answer: it goes to either then.
    /// [`IrqRemapError`] with the reason, and nothing has changed.
    #[doc(alias = "irq_set_affinity")]
    fn set_target(&self, index: u16, target: IrqTarget) -> Result<(), IrqRemapError>;

    /// Masks interrupt `index`: when this returns, a message raises nothing and is lost. Whoever does not want to lose it masks
    /// it at its source.
    ///
    /// # Errors
    /// [`IrqRemapError::Index`], and [`IrqRemapError::Sync`] when the IOMMU did not answer.
    #[doc(alias = "irq_domain_deactivate_irq")]
    fn mask(&self, index: u16) -> Result<(), IrqRemapError>;
}

/// The redirection entry with which an IO-APIC sends `message`: unmasked, edge-triggered and active high, for the caller to set
/// bits 16, 15 and 13 otherwise (Linux: `ioapic_setup_msg_from_msi`).
///
/// A level-triggered interrupt ends when the IO-APIC is told so by the vector in its entry, which is the low byte of the
/// message's data and not the processor's vector.
#[doc(alias = "ioapic_setup_msg_from_msi")]
pub const fn io_apic_entry(message: MsiMessage) -> u64 {
    let vector_and_delivery = message.data as u64 & 0x7ff;
    let logical = message.address >> 2 & 1;
    // Bits 63:48 of the entry are bits 19:4 of the address.
    let destination = message.address >> 4 & 0xffff;
    vector_and_delivery | logical << 11 | destination << 48
}
