//! The entries of the event log (specification, "Event log"): sixteen bytes each, decoded.

use core::fmt;

use bitfield_struct::bitfield;
use platform::pci::RequesterId;
use platform::{DmaAddr, PhysAddr};

/// The first word of an entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventHeader {
    /// DeviceID: who made the request.
    pub device: u16,
    /// PASID 19:16.
    #[bits(4)]
    pub pasid_high: u8,
    #[bits(12)]
    __: u16,
    /// DomainID, or PASID 15:0 when GN is set.
    pub domain_or_pasid: u16,
    /// GN: the address is a guest's, so the entry names a PASID instead of a domain.
    pub gn: bool,
    /// NX: an instruction fetch.
    pub nx: bool,
    /// US: a user-mode access.
    pub us: bool,
    /// I: an interrupt request.
    pub i: bool,
    /// PR: the translation was present.
    pub pr: bool,
    /// RW: a write.
    pub rw: bool,
    /// PE: the access was not permitted.
    pub pe: bool,
    /// RZ: a reserved bit was set, or an encoding is illegal.
    pub rz: bool,
    /// TR: the device asked for a translation.
    pub tr: bool,
    /// Type of hardware errors in the low two bits, of invalid requests in all three (from TR on).
    #[bits(3)]
    pub kind: u8,
    /// The event's code; 0 for an entry that is not written yet.
    #[bits(4)]
    pub code: u8,
}

/// Event codes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum EventCode {
    /// ILLEGAL_DEV_TABLE_ENTRY.
    IllegalDevTableEntry,
    /// IO_PAGE_FAULT.
    IoPageFault,
    /// DEV_TAB_HARDWARE_ERROR.
    DevTabHardwareError,
    /// PAGE_TAB_HARDWARE_ERROR.
    PageTabHardwareError,
    /// ILLEGAL_COMMAND_ERROR.
    IllegalCommandError,
    /// COMMAND_HARDWARE_ERROR.
    CommandHardwareError,
    /// IOTLB_INV_TIMEOUT.
    IotlbInvTimeout,
    /// INVALID_DEVICE_REQUEST.
    InvalidDeviceRequest,
    /// INVALID_PPR_REQUEST.
    InvalidPprRequest,
    /// A code that this driver does not know.
    Other(u8),
}

impl EventCode {
    /// From the four bits of an entry.
    pub const fn from_bits(code: u8) -> Self {
        match code {
            1 => Self::IllegalDevTableEntry,
            2 => Self::IoPageFault,
            3 => Self::DevTabHardwareError,
            4 => Self::PageTabHardwareError,
            5 => Self::IllegalCommandError,
            6 => Self::CommandHardwareError,
            7 => Self::IotlbInvTimeout,
            8 => Self::InvalidDeviceRequest,
            9 => Self::InvalidPprRequest,
            other => Self::Other(other),
        }
    }

    /// The specification's name, which is also what Linux prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IllegalDevTableEntry => "ILLEGAL_DEV_TABLE_ENTRY",
            Self::IoPageFault => "IO_PAGE_FAULT",
            Self::DevTabHardwareError => "DEV_TAB_HARDWARE_ERROR",
            Self::PageTabHardwareError => "PAGE_TAB_HARDWARE_ERROR",
            Self::IllegalCommandError => "ILLEGAL_COMMAND_ERROR",
            Self::CommandHardwareError => "COMMAND_HARDWARE_ERROR",
            Self::IotlbInvTimeout => "IOTLB_INV_TIMEOUT",
            Self::InvalidDeviceRequest => "INVALID_DEVICE_REQUEST",
            Self::InvalidPprRequest => "INVALID_PPR_REQUEST",
            Self::Other(_) => "UNKNOWN",
        }
    }
}

/// An event, decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The first word as it was logged.
    pub header: EventHeader,
    /// The second word as it was logged.
    pub address: u64,
}

impl Event {
    /// Bytes in an entry.
    pub const SIZE: u64 = 16;

    /// From the two words of an entry.
    pub const fn from_words(q0: u64, q1: u64) -> Self {
        Self { header: EventHeader::from_bits(q0), address: q1 }
    }

    /// What happened.
    pub const fn code(self) -> EventCode {
        EventCode::from_bits(self.header.code())
    }

    /// Who made the request, for events that are about a device.
    pub const fn device(self) -> Option<RequesterId> {
        match self.code() {
            EventCode::IllegalCommandError | EventCode::CommandHardwareError | EventCode::Other(_) => None,
            _ => Some(RequesterId::new(self.header.device())),
        }
    }

    /// The domain of a page fault or page-table error, when the request was not a guest's.
    pub const fn domain(self) -> Option<u16> {
        match self.code() {
            EventCode::IoPageFault | EventCode::PageTabHardwareError if !self.header.gn() => {
                Some(self.header.domain_or_pasid())
            }
            _ => None,
        }
    }

    /// The PASID, when the request was a guest's.
    pub const fn pasid(self) -> Option<u32> {
        if self.header.gn() {
            Some((self.header.pasid_high() as u32) << 16 | self.header.domain_or_pasid() as u32)
        } else {
            None
        }
    }

    /// The I/O address that was asked for, for events about a request.
    pub const fn iova(self) -> Option<DmaAddr> {
        match self.code() {
            EventCode::IllegalDevTableEntry => Some(DmaAddr::new(self.address & !3)),
            EventCode::IoPageFault | EventCode::InvalidDeviceRequest | EventCode::InvalidPprRequest => {
                Some(DmaAddr::new(self.address))
            }
            _ => None,
        }
    }

    /// The physical address of the structure that could not be used, for hardware and command errors.
    pub const fn structure(self) -> Option<PhysAddr> {
        match self.code() {
            EventCode::DevTabHardwareError
            | EventCode::IllegalCommandError
            | EventCode::CommandHardwareError
            | EventCode::IotlbInvTimeout => Some(PhysAddr::new(self.address & !0xf)),
            // Sources differ on whether bit 3 counts, so it is kept.
            EventCode::PageTabHardwareError => Some(PhysAddr::new(self.address & !7)),
            _ => None,
        }
    }

    /// Whether the request was a write. Page faults and the like say so for memory requests; of invalid requests it follows
    /// from their type.
    pub const fn is_write(self) -> bool {
        match self.code() {
            EventCode::InvalidDeviceRequest => !self.header.tr() && matches!(self.header.kind(), 3 | 5 | 6),
            _ => self.header.rw() && !self.header.i() && !self.header.tr(),
        }
    }

    /// Whether the request was an interrupt: a posted write to the interrupt range.
    pub const fn is_interrupt(self) -> bool {
        match self.code() {
            EventCode::InvalidDeviceRequest => !self.header.tr() && matches!(self.header.kind(), 5 | 6),
            _ => self.header.i(),
        }
    }

    /// Whether the event says that a command stopped the command buffer.
    pub const fn halts_commands(self) -> bool {
        matches!(self.code(), EventCode::IllegalCommandError | EventCode::CommandHardwareError)
    }
}

impl fmt::Display for Event {
    /// As Linux prints it, with each code's own fields (`iommu_print_event`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use EventCode::*;
        let code = self.code();
        write!(f, "AMD-Vi: Event logged [{}", code.name())?;
        if let Other(code) = code {
            write!(f, " type={code:#x}")?;
        }
        if let Some(device) = self.device() {
            write!(f, " device={device}")?;
        }
        // One field, which is a domain or a PASID.
        let tag = u32::from(self.header.pasid_high()) << 16 | u32::from(self.header.domain_or_pasid());
        match code {
            IoPageFault => write!(f, " domain={tag:#06x}")?,
            PageTabHardwareError => write!(f, " pasid={tag:#06x}")?,
            IllegalDevTableEntry | InvalidDeviceRequest | InvalidPprRequest => {
                write!(f, " pasid={tag:#07x}")?
            }
            _ => {}
        }
        write!(f, " address={:#x}", self.address)?;
        if !matches!(code, IllegalCommandError | IotlbInvTimeout) {
            // Bits 27:16 of the second 32-bit word.
            write!(f, " flags={:#06x}", self.header.into_bits() >> 48 & 0xfff)?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
