//! The device table entry (specification, "Device table entry"): 256 bits in two halves, one for memory and one for
//! interrupts.

use core::fmt;

use bitfield_struct::bitfield;
use io_pgtable::Root;
use platform::PhysAddr;

/// Bits 127:0: what happens to the device's memory requests. Looked at when V is set.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct TranslationHalf {
    /// V: this half is valid. When clear, requests pass unchecked.
    pub v: bool,
    /// TV: the translation fields are valid. When clear (and V set), requests are aborted.
    pub tv: bool,
    #[bits(5)]
    __: u8,
    /// HAD: host access and dirty updates.
    #[bits(2)]
    pub had: u8,
    /// Mode: levels of the host page table, 0 for none (addresses pass as they are).
    #[bits(3)]
    pub mode: u8,
    /// Bits 51:12 of the address of the host page table's top page.
    #[bits(40)]
    pub host_root: u64,
    /// PPR: peripheral page requests are allowed.
    pub ppr: bool,
    /// GPRP: responses to them carry the PASID.
    pub gprp: bool,
    /// GIoV: requests without PASID use PASID 0 of the guest table.
    pub giov: bool,
    /// GV: guest translation valid.
    pub gv: bool,
    /// GLX: levels of the GCR3 table less one.
    #[bits(2)]
    pub glx: u8,
    /// GCR3 table root, bits 14:12.
    #[bits(3)]
    pub gcr3_low: u8,
    /// IR: reads are allowed.
    pub ir: bool,
    /// IW: writes are allowed.
    pub iw: bool,
    #[bits(1)]
    __: u8,
    /// DomainID: the tag of cached translations.
    pub domain_id: u16,
    /// GCR3 table root, bits 30:15.
    pub gcr3_middle: u16,
    /// I: the unit answers translation requests (ATS).
    pub i: bool,
    /// SE: page faults after the first are not logged.
    pub se: bool,
    /// SA: no page fault is logged.
    pub sa: bool,
    /// IoCtl: port I/O.
    #[bits(2)]
    pub io_ctl: u8,
    /// Cache: a hint.
    pub cache: bool,
    /// SD: snoop disable.
    pub sd: bool,
    /// EX: the exclusion range applies.
    pub ex: bool,
    /// SysMgt: what happens to system management messages.
    #[bits(2)]
    pub sys_mgt: u8,
    /// SATS: secure ATS.
    pub sats: bool,
    /// GCR3 table root, bits 51:31.
    #[bits(21)]
    pub gcr3_high: u32,
}

/// Bits 255:128: what happens to the device's interrupts. Looked at when IV is set.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InterruptHalf {
    /// IV: this half is valid. When clear, interrupts pass unchecked.
    pub iv: bool,
    /// IntTabLen: logarithm of the number of entries of the interrupt remapping table.
    #[bits(4)]
    pub int_tab_len: u8,
    /// IG: unmapped interrupts are not logged.
    pub ig: bool,
    /// Bits 51:6 of the address of the interrupt remapping table.
    #[bits(46)]
    pub int_table_root: u64,
    #[bits(2)]
    __: u8,
    /// GuestPagingMode: levels of guest tables, 0 for four, 1 for five.
    #[bits(2)]
    pub guest_paging_mode: u8,
    /// InitPass: INIT is forwarded.
    pub init_pass: bool,
    /// EIntPass: ExtInt is forwarded.
    pub eint_pass: bool,
    /// NMIPass: NMI is forwarded.
    pub nmi_pass: bool,
    /// HPTMode: a hint.
    pub hpt_mode: bool,
    /// IntCtl: fixed and arbitrated interrupts; see [`IntCtl`].
    #[bits(2)]
    pub int_ctl: u8,
    /// Lint0Pass: legacy interrupt 0 is forwarded.
    pub lint0_pass: bool,
    /// Lint1Pass: legacy interrupt 1 is forwarded.
    pub lint1_pass: bool,
    /// Guest identifiers and attributes, not used here.
    pub upper: u64,
}

impl InterruptHalf {
    /// The same for a device whose interrupts are remapped by the table of `2^log2_entries` entries at `table`.
    #[must_use]
    pub const fn remapped(self, table: PhysAddr, log2_entries: u8) -> Self {
        self.with_iv(true)
            .with_int_ctl(IntCtl::Remap as u8)
            .with_int_tab_len(log2_entries & 0xf)
            .with_int_table_root((table.get() & 0x000f_ffff_ffff_ffc0) >> 6)
    }
}

/// The value of [`TranslationHalf::had`] with which the unit sets A and D.
const HAD_ACCESSED_AND_DIRTY: u8 = 3;

/// Values of [`InterruptHalf::int_ctl`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum IntCtl {
    /// The interrupt is aborted.
    Abort = 0,
    /// It is forwarded as it is.
    Forward = 1,
    /// It is remapped.
    Remap = 2,
}

/// What firmware asks to be kept in every entry of a device (Linux: `struct ivhd_dte_flags`): the flags byte of its IVHD
/// device entry.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct PersistentFlags {
    /// INITPass.
    pub init_pass: bool,
    /// EIntPass.
    pub eint_pass: bool,
    /// NMIPass.
    pub nmi_pass: bool,
    #[bits(1)]
    __: u8,
    /// System management message handling.
    #[bits(2)]
    pub sys_mgt: u8,
    /// LINT0 pass.
    pub lint0_pass: bool,
    /// LINT1 pass.
    pub lint1_pass: bool,
}

/// What a device's memory requests are to meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// An abort.
    Blocked,
    /// Nothing: addresses pass as they are.
    Identity {
        /// The tag of the identity domain.
        domain: u16,
    },
    /// A host (v1) page table.
    Paging {
        /// The tag of cached translations.
        domain: u16,
        /// The top table.
        root: PhysAddr,
        /// Its level, 1 to 6.
        level: u8,
        /// Whether the unit marks entries that it uses, and pages that are written (HAD). For units with
        /// [`ExtendedFeatures::tracks_dirty`](crate::registers::ExtendedFeatures::tracks_dirty).
        dirty: bool,
    },
}

impl Translation {
    /// The same with another top of its table; of one without a table, the same.
    #[must_use]
    pub(crate) fn with_top(self, top: Root) -> Self {
        match self {
            Self::Paging { domain, dirty, .. } => {
                Self::Paging { domain, root: top.phys, level: (top.level & 7) as u8, dirty }
            }
            other => other,
        }
    }

    /// The same with or without HAD; of one without a table, the same.
    #[must_use]
    pub(crate) fn with_dirty(self, dirty: bool) -> Self {
        match self {
            Self::Paging { domain, root, level, .. } => Self::Paging { domain, root, level, dirty },
            other => other,
        }
    }
}

/// One device table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Dte {
    /// Bits 127:0.
    pub translation: TranslationHalf,
    /// Bits 255:128.
    pub interrupt: InterruptHalf,
}

const _: () = assert!(size_of::<Dte>() == Dte::SIZE as usize);

impl Dte {
    /// Bytes in an entry.
    pub const SIZE: u64 = 32;

    /// An entry for `translation` and `interrupts` that keeps what firmware asked for.
    pub const fn new(translation: Translation, interrupts: IntCtl, flags: PersistentFlags) -> Self {
        let lower = TranslationHalf::new().with_v(true).with_sys_mgt(flags.sys_mgt());
        // Erratum 63: with SysMgt 01b writes must be allowed, or the messages are not forwarded.
        let lower = lower.with_iw(flags.sys_mgt() == 1);
        let lower = match translation {
            Translation::Blocked => lower,
            Translation::Identity { domain } => {
                lower.with_tv(true).with_ir(true).with_iw(true).with_domain_id(domain)
            }
            Translation::Paging { domain, root, level, dirty } => lower
                .with_tv(true)
                .with_ir(true)
                .with_iw(true)
                .with_had(if dirty { HAD_ACCESSED_AND_DIRTY } else { 0 })
                .with_domain_id(domain)
                .with_mode(level & 7)
                .with_host_root((root.get() & 0x000f_ffff_ffff_f000) >> 12),
        };
        let upper = InterruptHalf::new()
            .with_iv(true)
            .with_int_ctl(interrupts as u8)
            .with_init_pass(flags.init_pass())
            .with_eint_pass(flags.eint_pass())
            .with_nmi_pass(flags.nmi_pass())
            .with_lint0_pass(flags.lint0_pass())
            .with_lint1_pass(flags.lint1_pass());
        Self { translation: lower, interrupt: upper }
    }

    /// The four words, lowest first.
    pub const fn to_words(self) -> [u64; 4] {
        let (lower, upper) = (self.translation.into_bits(), self.interrupt.into_bits());
        [lower as u64, (lower >> 64) as u64, upper as u64, (upper >> 64) as u64]
    }

    /// From the four words, lowest first.
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self {
            translation: TranslationHalf::from_bits(words[0] as u128 | (words[1] as u128) << 64),
            interrupt: InterruptHalf::from_bits(words[2] as u128 | (words[3] as u128) << 64),
        }
    }
}

impl fmt::Display for Dte {
    /// What happens to the device's requests and to its interrupts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lower, upper) = (self.translation, self.interrupt);
        match (lower.v(), lower.tv(), lower.mode()) {
            (false, ..) => write!(f, "passes unchecked")?,
            (true, false, _) => write!(f, "blocked")?,
            (true, true, 0) if lower.gv() => {
                let root = u64::from(lower.gcr3_low()) << 12
                    | u64::from(lower.gcr3_middle()) << 15
                    | u64::from(lower.gcr3_high()) << 31;
                let (domain, levels) = (lower.domain_id(), lower.glx() + 1);
                let rest = if lower.giov() { "" } else { ", identity without PASID" };
                write!(f, "domain {domain}, guest tables by {levels} levels at {root:#x}{rest}")?;
            }
            (true, true, 0) => write!(f, "identity, domain {}", lower.domain_id())?,
            (true, true, levels) => {
                let root = lower.host_root() << 12;
                write!(f, "domain {}, {levels} levels at {root:#x}", lower.domain_id())?;
            }
        }
        let access = match (lower.ir(), lower.iw()) {
            (true, true) => "",
            (true, false) => ", reads only",
            (false, true) => ", writes only",
            (false, false) => ", no access",
        };
        let interrupts = match (upper.iv(), upper.int_ctl()) {
            (false, _) => "pass unchecked",
            (true, 0) => "are aborted",
            (true, 1) => "pass",
            (true, 2) => "are remapped",
            (true, _) => "have a reserved setting",
        };
        let access = if lower.v() && lower.tv() { access } else { "" };
        write!(f, "{access}; interrupts {interrupts}")
    }
}
