//! The ways in which backends give a device its memory, and the rules that each does not keep: the one place that says so. The
//! tests of each backend run the list with the waivers from here, and a waived rule that holds after all fails them.

use crate::bench::Waiver;

/// A way in which a backend gives a device its memory.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// What it is called in the table of the crate's documentation.
    pub name: &'static str,
    /// The rules that it does not keep.
    pub waivers: &'static [Waiver],
}

const fn waiver(check: &'static str, reason: &'static str) -> Waiver {
    Waiver { check, reason }
}

/// The simulated machine behind its IOMMU, strict, whatever that IOMMU remembers or forgets.
pub const SIM: Mode = Mode { name: "sim", waivers: &[] };

/// The same with lazy invalidation.
pub const SIM_LAZY: Mode = Mode {
    name: "sim, lazy",
    waivers: &[waiver(
        "just_unmapped_is_refused",
        "a lazy domain invalidates when its flush queue is flushed, not when a map ends",
    )],
};

/// The simulated machine where nothing translates: an identity domain, and no IOMMU (the backend `swiotlb`). What was bounced and is
/// the device's no more is a slot of the pool, so that memory just unmapped is safe even here, and so is what the device may
/// only read.
pub const SWIOTLB: Mode = Mode {
    name: "swiotlb",
    waivers: &[
        waiver("unmapped_is_refused", "every physical address below the mask is the device's"),
        waiver("from_device_refuses_reads", "without a page table there are no permissions"),
    ],
};

/// QEMU's devices behind its AMD IOMMU, strict.
pub const QEMU: Mode = Mode { name: "qemu", waivers: &[] };

/// The same where nothing translates, and nothing need be bounced.
pub const QEMU_IDENTITY: Mode = Mode {
    name: "qemu, identity",
    waivers: &[
        waiver("unmapped_is_refused", "every physical address is the device's"),
        waiver("just_unmapped_is_refused", "every physical address is the device's"),
        waiver("to_device_refuses_writes", "without a page table there are no permissions"),
        waiver("from_device_refuses_reads", "without a page table there are no permissions"),
    ],
};

/// VFIO's type1 on an AMD-Vi.
pub const VFIO: Mode = Mode { name: "vfio", waivers: &[] };

/// VFIO's type1 on a VT-d.
pub const VFIO_VT_D: Mode = Mode {
    name: "vfio, VT-d",
    waivers: &[waiver(
        "from_device_refuses_reads",
        "Linux's driver for VT-d lets devices read whatever they may write (5.13 and later)",
    )],
};

/// VFIO, with memory that is registered.
pub const REGISTERED: Mode = Mode {
    name: "registered",
    waivers: &[
        waiver("just_unmapped_is_refused", "registered memory stays mapped when a map ends"),
        waiver("to_device_refuses_writes", "registered memory has no permissions of its own"),
        waiver("from_device_refuses_reads", "registered memory has no permissions of its own"),
    ],
};

/// All of them, in the order of the table.
pub const MODES: &[Mode] = &[SIM, SIM_LAZY, SWIOTLB, QEMU, QEMU_IDENTITY, VFIO, VFIO_VT_D, REGISTERED];
