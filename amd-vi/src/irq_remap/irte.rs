//! The interrupt remapping table entry (specification, "Interrupt remapping tables"): 32 bits, or 128 with GAEn.

use bitfield_struct::bitfield;
use iommu_core::{DestinationMode, IrqDelivery, IrqTarget};

/// An entry of 32 bits: the unit's control register has GAEn = 0.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Irte32 {
    /// RemapEn: the entry is valid.
    pub remap_en: bool,
    /// SupIOPF: with RemapEn clear, interrupts are aborted without an event.
    pub sup_iopf: bool,
    /// IntType: 0 fixed, 1 arbitrated.
    #[bits(3)]
    pub int_type: u8,
    /// RqEoi: the source waits for an end of interrupt.
    pub rq_eoi: bool,
    /// DM: the destination is logical.
    pub dm: bool,
    /// GuestMode, 0 here.
    #[bits(1)]
    __: u8,
    /// Destination.
    pub destination: u8,
    /// Vector.
    pub vector: u8,
    #[bits(8)]
    __: u8,
}

/// An entry of 128 bits with GuestMode clear: the unit's control register has GAEn = 1.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct Irte128 {
    /// RemapEn: the entry is valid.
    pub remap_en: bool,
    /// SupIOPF: with RemapEn clear, interrupts are aborted without an event.
    pub sup_iopf: bool,
    /// IntType: 0 fixed, 1 arbitrated.
    #[bits(3)]
    pub int_type: u8,
    /// RqEoi: the source waits for an end of interrupt.
    pub rq_eoi: bool,
    /// DM: the destination is logical.
    pub dm: bool,
    /// GuestMode: the interrupt is a guest's. Clear here.
    pub guest_mode: bool,
    /// Destination, bits 23:0. Without XTEn only bits 7:0 count.
    #[bits(24)]
    pub destination_low: u32,
    #[bits(32)]
    __: u32,
    /// Vector.
    pub vector: u8,
    #[bits(48)]
    __: u64,
    /// Destination, bits 31:24. Only with XTEn.
    pub destination_high: u8,
}

const _: () = assert!(size_of::<Irte32>() == 4 && size_of::<Irte128>() == 16);

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Irte {
    /// Nobody's: an interrupt that names it is aborted and logged.
    Free,
    /// Masked: an interrupt that names it is aborted.
    Masked,
    /// It leads somewhere.
    Remapped(IrqTarget),
}

/// The width of the entries of all tables of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrteFormat {
    /// [`Irte32`].
    Bits32,
    /// [`Irte128`].
    Bits128,
}

impl IrteFormat {
    /// Bytes in an entry.
    pub const fn size(self) -> u64 {
        match self {
            Self::Bits32 => size_of::<Irte32>() as u64,
            Self::Bits128 => size_of::<Irte128>() as u64,
        }
    }
}

const fn is_logical(target: IrqTarget) -> bool {
    matches!(target.mode, DestinationMode::Logical)
}

const fn int_type(target: IrqTarget) -> u8 {
    match target.delivery {
        IrqDelivery::Fixed => 0,
        IrqDelivery::LowestPriority => 1,
    }
}

impl Irte {
    /// As 32 bits. Of the destination the low eight remain.
    pub const fn to_32(self) -> Irte32 {
        let none = Irte32::new();
        match self {
            Self::Free => none,
            Self::Masked => none.with_sup_iopf(true),
            Self::Remapped(target) => none
                .with_remap_en(true)
                .with_int_type(int_type(target))
                .with_dm(is_logical(target))
                .with_destination(target.destination as u8)
                .with_vector(target.vector),
        }
    }

    /// As 128 bits.
    pub const fn to_128(self) -> Irte128 {
        let none = Irte128::new();
        match self {
            Self::Free => none,
            Self::Masked => none.with_sup_iopf(true),
            Self::Remapped(target) => none
                .with_remap_en(true)
                .with_int_type(int_type(target))
                .with_dm(is_logical(target))
                .with_destination_low(target.destination & 0x00ff_ffff)
                .with_destination_high((target.destination >> 24) as u8)
                .with_vector(target.vector),
        }
    }
}
