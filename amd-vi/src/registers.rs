//! The MMIO registers of a unit: where they are and what their bits mean (AMD I/O Virtualization Technology
//! specification, "MMIO registers").

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;

use bitfield_struct::bitfield;
use iommu_core::{DestinationMode, IrqDelivery, IrqTarget};
use platform::{Clock, Mmio, PhysAddr, TimedOut, time};

/// Byte offsets of the registers from the unit's MMIO base.
pub mod offset {
    /// Device Table Base Address Register.
    pub const DEVICE_TABLE_BASE: usize = 0x0000;
    /// Command Buffer Base Address Register.
    pub const COMMAND_BUFFER_BASE: usize = 0x0008;
    /// Event Log Base Address Register.
    pub const EVENT_LOG_BASE: usize = 0x0010;
    /// IOMMU Control Register.
    pub const CONTROL: usize = 0x0018;
    /// Exclusion Range Base Register.
    pub const EXCLUSION_BASE: usize = 0x0020;
    /// Exclusion Range Limit Register.
    pub const EXCLUSION_LIMIT: usize = 0x0028;
    /// Extended Feature Register (EFR).
    pub const EXTENDED_FEATURE: usize = 0x0030;
    /// PPR Log Base Address Register.
    pub const PPR_LOG_BASE: usize = 0x0038;
    /// XT IOMMU General Interrupt Control Register: events and completion waits.
    pub const XT_GENERAL_INTERRUPT: usize = 0x0170;
    /// XT IOMMU PPR Interrupt Control Register.
    pub const XT_PPR_INTERRUPT: usize = 0x0178;
    /// XT IOMMU GA Log Interrupt Control Register.
    pub const XT_GA_INTERRUPT: usize = 0x0180;
    /// Extended Feature 2 Register (EFR2).
    pub const EXTENDED_FEATURE_2: usize = 0x01a0;
    /// Command Buffer Head Pointer Register.
    pub const COMMAND_HEAD: usize = 0x2000;
    /// Command Buffer Tail Pointer Register.
    pub const COMMAND_TAIL: usize = 0x2008;
    /// Event Log Head Pointer Register.
    pub const EVENT_HEAD: usize = 0x2010;
    /// Event Log Tail Pointer Register.
    pub const EVENT_TAIL: usize = 0x2018;
    /// IOMMU Status Register.
    pub const STATUS: usize = 0x2020;
    /// PPR Log Head Pointer Register.
    pub const PPR_HEAD: usize = 0x2030;
    /// PPR Log Tail Pointer Register.
    pub const PPR_TAIL: usize = 0x2038;
    /// PPR Log Auto Response Register: the code with which the unit answers what it cannot log.
    pub const PPR_AUTO_RESPONSE: usize = 0x2080;
}

/// The length of the register region of a unit without performance counters, in bytes.
pub const MMIO_LENGTH: u64 = 0x4000;

/// IOMMU Control Register (MMIO offset 0018h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Control {
    /// IommuEn: the unit translates, checks and logs.
    pub iommu_en: bool,
    /// HtTunEn: upstream traffic that comes through a HyperTransport tunnel is translated.
    pub ht_tun_en: bool,
    /// EventLogEn: events are logged.
    pub event_log_en: bool,
    /// EventIntEn: a logged event raises the unit's interrupt.
    pub event_int_en: bool,
    /// ComWaitIntEn: a COMPLETION_WAIT with its i bit raises the unit's interrupt.
    pub com_wait_int_en: bool,
    /// InvTimeout: how long a device may take to answer an IOTLB invalidation; see [`InvTimeout`].
    #[bits(3)]
    pub inv_timeout: u8,
    /// PassPW: pass posted writes.
    pub pass_pw: bool,
    /// ResPassPW: responses pass posted writes.
    pub res_pass_pw: bool,
    /// Coherent: the unit snoops the caches when it reads its tables and rings.
    pub coherent: bool,
    /// Isoc: isochronous requests.
    pub isoc: bool,
    /// CmdBufEn: commands are fetched.
    pub cmd_buf_en: bool,
    /// PPRLogEn: peripheral page requests are logged.
    pub ppr_log_en: bool,
    /// PPRIntEn: a logged peripheral page request raises the unit's interrupt.
    pub ppr_int_en: bool,
    /// PPREn: peripheral page requests are processed.
    pub ppr_en: bool,
    /// GTEn: guest translation.
    pub gt_en: bool,
    /// GAEn: 128-bit interrupt remapping entries and guest virtual APIC.
    pub ga_en: bool,
    /// CRW: cache and snoop control, left as it is.
    #[bits(4)]
    pub crw: u8,
    /// SmiFEn: SMI filter.
    pub smif_en: bool,
    /// SlfWBdis: self write-back disabled.
    pub slf_wb_dis: bool,
    /// SmiFLogEn: SMI filter logging.
    pub smif_log_en: bool,
    /// GAMEn: guest virtual APIC mode.
    #[bits(3)]
    pub gam_en: u8,
    /// GALogEn: the guest virtual APIC log.
    pub ga_log_en: bool,
    /// GAIntEn: its interrupt.
    pub ga_int_en: bool,
    /// All from DualPPRLogEn (bit 30) to PPRAutoRspAon (bit 42): features that this driver does not use yet.
    #[bits(13)]
    pub middle: u16,
    /// NumIntRemapMode: entries of an interrupt remapping table, 0 for up to 512, 1 for up to 2048.
    #[bits(2)]
    pub num_int_remap_mode: u8,
    /// EPHEn to GDUpdateDis (bits 45 to 49).
    #[bits(5)]
    pub updates: u8,
    /// XTEn: interrupt destinations of 32 bits, with GAEn.
    pub xt_en: bool,
    /// IntCapXTEn: the unit's own interrupts go where the XT interrupt control registers say, instead of its MSI.
    pub int_cap_xt_en: bool,
    /// All from VCmdEn (bit 52) to SNPAVICEn (bit 63).
    #[bits(12)]
    pub upper: u16,
}

impl Control {
    /// PPRAutoRspEn, bit 39: the unit answers page requests that it cannot log.
    pub(crate) fn with_ppr_auto_rsp_en(self, on: bool) -> Self {
        Self::from_bits(self.into_bits() & !(1 << 39) | u64::from(on) << 39)
    }

    /// EPHEn, bit 45: enhanced peripheral page request handling.
    pub(crate) fn with_eph_en(self, on: bool) -> Self {
        Self::from_bits(self.into_bits() & !(1 << 45) | u64::from(on) << 45)
    }

    /// Its single bits, by the specification's names.
    pub(crate) const NAMES: &[(u32, &str)] = &[
        (0, "IommuEn"),
        (1, "HtTunEn"),
        (2, "EventLogEn"),
        (3, "EventIntEn"),
        (4, "ComWaitIntEn"),
        (8, "PassPW"),
        (9, "ResPassPW"),
        (10, "Coherent"),
        (11, "Isoc"),
        (12, "CmdBufEn"),
        (13, "PPRLogEn"),
        (14, "PPRIntEn"),
        (15, "PPREn"),
        (16, "GTEn"),
        (17, "GAEn"),
        (28, "GALogEn"),
        (29, "GAIntEn"),
        (39, "PPRAutoRspEn"),
        (45, "EPHEn"),
        (50, "XTEn"),
        (51, "IntCapXTEn"),
    ];
}

/// An XT IOMMU Interrupt Control Register (MMIO offsets 0170h, 0178h and 0180h; Linux: `union intcapxt`).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[doc(alias = "intcapxt")]
pub struct XtInterruptControl {
    #[bits(2)]
    __: u8,
    /// Destination mode: logical.
    pub destination_mode: bool,
    #[bits(5)]
    __: u8,
    /// Destination, bits 23:0.
    #[bits(24)]
    pub destination_low: u32,
    /// Vector.
    pub vector: u8,
    /// Delivery mode: arbitrated.
    pub delivery_mode: bool,
    #[bits(15)]
    __: u16,
    /// Destination, bits 31:24.
    pub destination_high: u8,
}

impl XtInterruptControl {
    /// An interrupt that goes to `target`.
    pub const fn to(target: IrqTarget) -> Self {
        Self::new()
            .with_destination_mode(matches!(target.mode, DestinationMode::Logical))
            .with_destination_low(target.destination & 0x00ff_ffff)
            .with_destination_high((target.destination >> 24) as u8)
            .with_vector(target.vector)
            .with_delivery_mode(matches!(target.delivery, IrqDelivery::LowestPriority))
    }
}

/// Values of [`Control::inv_timeout`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum InvTimeout {
    /// The unit waits forever.
    None = 0,
    /// One millisecond.
    Ms1 = 1,
    /// Ten milliseconds.
    Ms10 = 2,
    /// A hundred milliseconds.
    Ms100 = 3,
    /// One second, as Linux (`CTRL_INV_TO_1S`).
    S1 = 4,
}

/// IOMMU Status Register (MMIO offset 2020h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// EventOverflow: an event was dropped because the log was full (write one to clear).
    pub event_overflow: bool,
    /// EventLogInt: an event was logged (write one to clear).
    pub event_log_int: bool,
    /// ComWaitInt: a COMPLETION_WAIT with its i bit finished (write one to clear).
    pub com_wait_int: bool,
    /// EventLogRun: events are being logged.
    pub event_log_run: bool,
    /// CmdBufRun: commands are being fetched; clear when the buffer is disabled or an illegal command stopped it.
    pub cmd_buf_run: bool,
    /// PPROverflow: a peripheral page request was dropped (write one to clear).
    pub ppr_overflow: bool,
    /// PPRInt: a peripheral page request was logged (write one to clear).
    pub ppr_int: bool,
    /// PPRLogRun: peripheral page requests are being logged.
    pub ppr_log_run: bool,
    /// GALogRun: the guest virtual APIC log runs.
    pub ga_log_run: bool,
    /// GALOverflow: it lost an entry (write one to clear).
    pub ga_log_overflow: bool,
    /// GAInt: it has an entry (write one to clear).
    pub ga_int: bool,
    /// PPROverflowB and what follows: dual logs.
    #[bits(53)]
    pub upper: u64,
}

impl Status {
    /// The bits that are cleared by writing ones to them.
    pub const WRITE_ONE_TO_CLEAR: u64 = 0x6_8e67;

    /// Its bits, by the specification's names.
    pub(crate) const NAMES: &[(u32, &str)] = &[
        (0, "EventOverflow"),
        (1, "EventLogInt"),
        (2, "ComWaitInt"),
        (3, "EventLogRun"),
        (4, "CmdBufRun"),
        (5, "PPROverflow"),
        (6, "PPRInt"),
        (7, "PPRLogRun"),
        (8, "GALogRun"),
        (9, "GALOverflow"),
        (10, "GAInt"),
    ];
}

/// Extended Feature Register (EFR, MMIO offset 0030h; also in IVHD blocks 11h and 40h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedFeatures {
    /// PreFSup: PREFETCH_IOMMU_PAGES.
    pub pref_sup: bool,
    /// PPRSup: peripheral page requests.
    pub ppr_sup: bool,
    /// XTSup: x2APIC destinations.
    pub xt_sup: bool,
    /// NXSup: no-execute protection.
    pub nx_sup: bool,
    /// GTSup: guest (v2) translation.
    pub gt_sup: bool,
    /// GAPPISup: guest virtual APIC physical interrupts.
    pub gappi_sup: bool,
    /// IASup: INVALIDATE_IOMMU_ALL.
    pub ia_sup: bool,
    /// GASup: guest virtual APIC and 128-bit interrupt entries.
    pub ga_sup: bool,
    /// HESup: hardware error registers.
    pub he_sup: bool,
    /// PCSup: performance counters.
    pub pc_sup: bool,
    /// HATS: levels of host tables, 0/1/2 for 4/5/6; 3 says that host translation is off.
    #[bits(2)]
    pub hats: u8,
    /// GATS: levels of guest tables, 0/1 for 4/5.
    #[bits(2)]
    pub gats: u8,
    /// GLXSup: levels of GCR3 tables, 0/1/2 for 1/2/3.
    #[bits(2)]
    pub glx_sup: u8,
    /// SmiFSup and SmiFRC: the SMI filter.
    #[bits(5)]
    pub smif: u8,
    /// GAMSup: guest virtual APIC modes.
    #[bits(3)]
    pub gam_sup: u8,
    /// DualPPRLogSup to SATSSup (bits 24 to 31).
    #[bits(8)]
    pub dual_logs: u8,
    /// PASmax: bits of a PASID less one.
    #[bits(5)]
    pub pas_max: u8,
    /// USSup: user and supervisor page protection.
    pub us_sup: bool,
    /// DevTblSegSup: 0/1/2/3 for 1/2/4/8 segments of the device table.
    #[bits(2)]
    pub dev_tbl_seg_sup: u8,
    /// PPROverflowEarlySup to PerfOptSup: bits 40 to 45.
    #[bits(6)]
    pub misc: u8,
    /// MsiCapMmioSup: the MSI capability is also among the registers.
    pub msi_cap_mmio_sup: bool,
    /// SnoopAttrSup.
    pub snoop_attr_sup: bool,
    /// GIoSup: guest I/O protection.
    pub gio_sup: bool,
    /// HASup: host access flag.
    pub ha_sup: bool,
    /// EPHSup: enhanced peripheral page request handling.
    pub eph_sup: bool,
    /// AttrFWSup: attribute forwarding.
    pub attr_fw_sup: bool,
    /// HDSup: host dirty flag.
    pub hd_sup: bool,
    /// V2HDDisSup to SNPSup (bits 53 to 63).
    #[bits(11)]
    pub upper: u16,
}

impl ExtendedFeatures {
    /// PPRAutoRspSup, bit 41: the unit can answer page requests that it cannot log.
    pub const fn ppr_auto_rsp_sup(self) -> bool {
        self.into_bits() >> 41 & 1 != 0
    }

    /// The most levels that a host (v1) page table may have, or `None` when the unit does not translate with host tables.
    pub const fn host_levels(self) -> Option<u8> {
        match self.hats() {
            hats @ 0..=2 => Some(4 + hats),
            _ => None,
        }
    }

    /// Whether the unit can mark in host tables what is used and written (HASup and HDSup; Linux: `amd_iommu_hd_support`).
    #[doc(alias = "amd_iommu_hd_support")]
    pub const fn tracks_dirty(self) -> bool {
        self.ha_sup() && self.hd_sup()
    }
}

/// Extended Feature 2 Register (EFR2, MMIO offset 01A0h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedFeatures2 {
    #[bits(8)]
    __: u8,
    /// NumIntRemapSup: interrupts per device, 0 for 512, 1 for 2048.
    #[bits(2)]
    pub num_int_remap_sup: u8,
    #[bits(1)]
    __: u8,
    /// HTRangeIgnore: addresses FD_0000_0000h to FF_FFFF_FFFFh are ordinary.
    pub ht_range_ignore: bool,
    #[bits(52)]
    __: u64,
}

/// The registers of one unit, with their types.
#[derive(Clone)]
pub struct Registers {
    mmio: Arc<dyn Mmio>,
}

impl Registers {
    /// The registers in `mmio`.
    pub fn new(mmio: Arc<dyn Mmio>) -> Self {
        Self { mmio }
    }

    /// Whether the region is long enough to hold every register that the driver uses.
    pub fn is_complete(&self) -> bool {
        self.mmio.len() as u64 >= MMIO_LENGTH
    }

    /// Reads the register at `offset`.
    pub fn read(&self, offset: usize) -> u64 {
        self.mmio.read64(offset)
    }

    /// Writes the register at `offset`. What was stored to memory before is visible to the unit.
    #[inline]
    pub(crate) fn write(&self, offset: usize, value: u64) {
        self.mmio.write64(offset, value);
    }

    /// The control register.
    pub fn control(&self) -> Control {
        Control::from_bits(self.read(offset::CONTROL))
    }

    /// Writes the control register.
    pub(crate) fn set_control(&self, control: Control) {
        self.write(offset::CONTROL, control.into_bits());
    }

    /// The status register.
    pub fn status(&self) -> Status {
        Status::from_bits(self.read(offset::STATUS))
    }

    /// Clears the write-one-to-clear bits that are set in `bits`.
    pub(crate) fn clear_status(&self, bits: Status) {
        self.write(offset::STATUS, bits.into_bits() & Status::WRITE_ONE_TO_CLEAR);
    }

    /// The extended features.
    pub fn extended_features(&self) -> ExtendedFeatures {
        ExtendedFeatures::from_bits(self.read(offset::EXTENDED_FEATURE))
    }

    /// The second register of extended features.
    pub fn extended_features_2(&self) -> ExtendedFeatures2 {
        ExtendedFeatures2::from_bits(self.read(offset::EXTENDED_FEATURE_2))
    }

    /// Waits until the status register says what `done` asks for.
    ///
    /// # Errors
    /// [`TimedOut`] when it did not within `timeout`.
    pub fn wait_status(
        &self,
        clock: &(impl Clock + ?Sized),
        timeout: Duration,
        done: impl Fn(Status) -> bool,
    ) -> Result<(), TimedOut> {
        time::poll_until(clock, timeout, || done(self.status()))
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registers").field("len", &self.mmio.len()).finish_non_exhaustive()
    }
}

/// Logarithms of the numbers of entries that a ring may have. A model's rings are shorter.
pub(crate) const LOG2_ENTRIES: (u32, u32) = (if cfg!(loom) { 2 } else { 8 }, 15);

/// The value of a ring's base register: its address and the logarithm of its number of entries.
pub const fn ring_base(base: PhysAddr, log2_entries: u32) -> u64 {
    (base.get() & 0x000f_ffff_ffff_f000) | (log2_entries as u64 & 0xf) << 56
}
