//! What hardware is told of a table.

use crate::table::Root;

/// What registers, or a unit's structures in memory, are to say of a table (Linux: the union at the end of
/// `struct io_pgtable_cfg`).
#[doc(alias = "io_pgtable_cfg")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Registers {
    /// Address and level of the top are all.
    Root(Root),
    /// ARM, stage 1 (`arm_lpae_s1_cfg`).
    #[doc(alias = "arm_lpae_s1_cfg")]
    ArmLpaeS1 {
        /// TTBR0 or TTBR1: the address of the top, without an ASID.
        ttbr: u64,
        /// TCR, the fields of that half of the address space.
        tcr: ArmTcr,
        /// MAIR: what the entries' indices mean.
        mair: u64,
    },
    /// ARM, stage 2 (`arm_lpae_s2_cfg`).
    #[doc(alias = "arm_lpae_s2_cfg")]
    ArmLpaeS2 {
        /// VTTBR: the address of the top, without a VMID.
        vttbr: u64,
        /// VTCR but SL0.
        vtcr: ArmTcr,
        /// VTCR.SL0: the level of the top, in the code of the granule.
        sl: u8,
    },
    /// ARM v7, short descriptors (`arm_v7s_cfg`).
    #[doc(alias = "arm_v7s_cfg")]
    ArmV7s {
        /// TTBR0, with its attributes.
        ttbr: u32,
        /// TTBCR.
        tcr: u32,
        /// NMRR.
        nmrr: u32,
        /// PRRR.
        prrr: u32,
    },
    /// Mali GPUs (`arm_mali_lpae_cfg`).
    #[doc(alias = "arm_mali_lpae_cfg")]
    MaliLpae {
        /// TRANSTAB: the address of the top, with its attributes.
        transtab: u64,
        /// MEMATTR.
        memattr: u64,
    },
    /// DART (`apple_dart_cfg`).
    #[doc(alias = "apple_dart_cfg")]
    Dart {
        /// TTBRs: addresses of tables, the first `ttbrs` of them.
        ttbr: [u64; 4],
        /// How many: 1, 2 or 4.
        ttbrs: u8,
        /// Levels of tables below each.
        levels: u8,
    },
}

/// Fields of ARM's TCR or VTCR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArmTcr {
    /// IPS, or PS of stage 2: the size of a physical address. 0 to 6 are 32, 36, 40, 42, 44, 48 and 52 bits.
    pub ps: u8,
    /// TG0 or TG1: the granule, in the code of that half.
    pub tg: u8,
    /// SH: 2 outer, 3 inner shareable.
    pub sh: u8,
    /// ORGN: 0 not cached, 1 write-back.
    pub orgn: u8,
    /// IRGN, as ORGN.
    pub irgn: u8,
    /// TxSZ: 64 less the bits of an I/O address. 32-bit translation takes the low bits that its field has.
    pub tsz: u8,
    /// DS: descriptors are those of LPA2.
    pub ds: bool,
}
