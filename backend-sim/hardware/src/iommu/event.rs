//! Events: what the unit writes to its log.

/// One entry of the event log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Event {
    pub(super) first: u64,
    pub(super) second: u64,
}

const I: u64 = 1 << 51;
const PR: u64 = 1 << 52;
const RW: u64 = 1 << 53;
const PE: u64 = 1 << 54;
const RZ: u64 = 1 << 55;

/// Why a memory request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// No translation: PR = 0.
    NotPresent,
    /// Present, but not for this access: PR = 1, PE = 1.
    Permission,
    /// A reserved bit is set in a table entry: PR = 1, RZ = 1.
    ReservedBit,
    /// A level or size that cannot be: PR = 1, RZ = 0.
    BadLevel,
    /// A table could not be read.
    TableUnreadable(u64),
}

impl Event {
    /// IO_PAGE_FAULT, or PAGE_TAB_HARDWARE_ERROR when a table could not be read.
    pub(super) fn page_fault(device: u16, domain: u16, address: u64, write: bool, refusal: Refusal) -> Self {
        let who = u64::from(device) | u64::from(domain) << 32;
        let rw = if write { RW } else { 0 };
        let flags = match refusal {
            Refusal::NotPresent => 0,
            Refusal::Permission => PR | PE,
            Refusal::ReservedBit => PR | RZ,
            Refusal::BadLevel => PR,
            Refusal::TableUnreadable(at) => {
                const MASTER_ABORT: u64 = 1 << 57;
                return Self { first: 4 << 60 | MASTER_ABORT | rw | who, second: at & !7 };
            }
        };
        Self { first: 2 << 60 | flags | rw | who, second: address }
    }

    /// The same for a request with guest translation: it names the PASID, in GN, instead of the domain.
    #[must_use]
    pub(super) fn of_guest(self, pasid: u32) -> Self {
        const GN: u64 = 1 << 48;
        let pasid = u64::from(pasid & 0xffff) << 32 | u64::from(pasid >> 16 & 0xf) << 16;
        Self { first: self.first & !(0xffff << 32) | GN | pasid, ..self }
    }

    /// ILLEGAL_DEV_TABLE_ENTRY.
    pub(super) fn illegal_dte(
        device: u16,
        address: u64,
        write: bool,
        interrupt: bool,
        reserved: bool,
    ) -> Self {
        let mut first = 1 << 60 | u64::from(device);
        if interrupt {
            first |= I;
        } else if write {
            first |= RW;
        }
        if reserved {
            first |= RZ;
        }
        Self { first, second: address & !3 }
    }

    /// DEV_TAB_HARDWARE_ERROR: the entry at `at` could not be read.
    pub(super) fn device_table_error(device: u16, at: u64, write: bool, interrupt: bool) -> Self {
        const MASTER_ABORT: u64 = 1 << 57;
        let kind = match (interrupt, write) {
            (true, _) => I,
            (false, true) => RW,
            (false, false) => 0,
        };
        Self { first: 3 << 60 | MASTER_ABORT | kind | u64::from(device), second: at & !15 }
    }

    /// IO_PAGE_FAULT of an interrupt, or PAGE_TAB_HARDWARE_ERROR when its table could not be read.
    pub(super) fn interrupt_fault(device: u16, domain: u16, address: u64, refusal: Refusal) -> Self {
        let of_memory = Self::page_fault(device, domain, address, false, refusal);
        Self { first: of_memory.first | I, ..of_memory }
    }

    /// ILLEGAL_COMMAND_ERROR.
    pub(super) fn illegal_command(at: u64) -> Self {
        Self { first: 5 << 60, second: at & !15 }
    }

    /// COMMAND_HARDWARE_ERROR.
    pub(super) fn command_hardware_error(at: u64) -> Self {
        const MASTER_ABORT: u64 = 1 << 57;
        Self { first: 6 << 60 | MASTER_ABORT, second: at & !15 }
    }

    /// INVALID_DEVICE_REQUEST of a type (TR = 0).
    pub(super) fn invalid_request(device: u16, address: u64, kind: u64) -> Self {
        Self { first: 8 << 60 | kind << 57 | u64::from(device), second: address }
    }

    /// INVALID_DEVICE_REQUEST of a type, for a translation request (TR = 1).
    pub(super) fn invalid_translation(device: u16, address: u64, kind: u64) -> Self {
        const TR: u64 = 1 << 56;
        Self { first: 8 << 60 | kind << 57 | TR | u64::from(device), second: address }
    }

    /// IOTLB_INV_TIMEOUT: `device` has not answered the command at `at`.
    pub(super) fn iotlb_timeout(device: u16, at: u64) -> Self {
        Self { first: 7 << 60 | u64::from(device), second: at & !15 }
    }

    /// INVALID_PPR_REQUEST.
    pub(super) fn invalid_page_request(device: u16, address: u64, pasid: Option<u32>) -> Self {
        let event = Self { first: 9 << 60 | u64::from(device), second: address };
        pasid.map_or(event, |pasid| event.of_guest(pasid))
    }

    /// Whether it is an IO_PAGE_FAULT.
    pub(super) fn is_page_fault(self) -> bool {
        self.first >> 60 == 2
    }
}
