//! Where QEMU's hardware is not as its specification says, by version: what a test on it must expect instead.
//!
//! Each entry was seen in the versions that it names, and a test fails when it is there no more.

use crate::program::Version;

/// Something that QEMU does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Defect {
    /// The AMD IOMMU logs no event: `amdvi_test_mask` says for every bit that it is set, so the log counts as overflowed.
    NoEventLog,
    /// The AMD IOMMU takes a device behind a bridge for one on bus 0: it looks the bus number up when the device is made, before
    /// anybody has given one.
    BusZeroBehindBridges,
    /// The AMD IOMMU takes bit 8 of a domain identifier for a reserved bit of the device table entry, and refuses the device's
    /// requests.
    DomainIdBit8,
    /// The AMD IOMMU ignores the bits of an address that its table does not reach, instead of refusing it.
    AddressAliases,
    /// The address in an event of the AMD IOMMU is 0: `amdvi_setevent_bits` shifts a 64-bit mask by 64.
    EventAddressZero,
    /// The domain identifier in an event of the AMD IOMMU is 0.
    EventDomainZero,
    /// The flags of an event of the AMD IOMMU say that the request was an interrupt (I), and not that it was a write (RW): that is
    /// in the bits of GN and NX.
    EventFlags,
    /// The AMD IOMMU refuses an interrupt without an event.
    NoInterruptEvents,
    /// The AMD IOMMU makes vector 0 for processor 0 of an interrupt that it is to forward as it is (IntCtl = 1): it copies the
    /// message and then writes over it what an entry would have said.
    ForwardsNoInterrupt,
    /// Messages of the IO-APIC do not go through the AMD IOMMU.
    IoApicNotRemapped,
    /// An invalidation of pages drops all translations of the domain, so that a range that is too small does not show.
    InvalidatesWholeDomain,
    /// The RISC-V IOMMU finds a page of more than 4 KiB somewhere else than its entry says.
    RiscvLargePages,
}

/// In which versions: from the first up to, and without, the second.
const DEFECTS: &[(Defect, Version, Version)] = &[
    (Defect::NoEventLog, OLDEST, Version::new(10, 2, 0)),
    (Defect::BusZeroBehindBridges, OLDEST, Version::new(10, 2, 0)),
    (Defect::DomainIdBit8, OLDEST, Version::new(10, 0, 3)),
    // Fixed somewhere between 10.0.13 and 11.1.3.
    (Defect::AddressAliases, OLDEST, Version::new(11, 0, 0)),
    (Defect::EventAddressZero, Version::new(10, 2, 0), NOT_YET),
    (Defect::EventDomainZero, Version::new(10, 2, 0), NOT_YET),
    (Defect::EventFlags, Version::new(10, 2, 0), NOT_YET),
    (Defect::NoInterruptEvents, OLDEST, NOT_YET),
    (Defect::ForwardsNoInterrupt, OLDEST, NOT_YET),
    // Fixed somewhere between 10.0.2 and 11.1.3.
    (Defect::IoApicNotRemapped, OLDEST, Version::new(11, 0, 0)),
    (Defect::InvalidatesWholeDomain, OLDEST, NOT_YET),
    // Fixed somewhere between 10.0.2 and 11.1.3.
    (Defect::RiscvLargePages, OLDEST, Version::new(11, 0, 0)),
];

const OLDEST: Version = Version::new(0, 0, 0);
const NOT_YET: Version = Version::new(u32::MAX, 0, 0);

impl Version {
    /// Whether this version does that wrong.
    pub fn has(self, defect: Defect) -> bool {
        DEFECTS.iter().any(|&(known, first, fixed)| known == defect && first <= self && self < fixed)
    }
}
