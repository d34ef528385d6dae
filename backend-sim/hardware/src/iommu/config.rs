//! What kind of AMD IOMMU it is, and how it may misbehave.

/// EFR bits that the model can have (MMIO 0030h).
const PPR_SUP: u64 = 1 << 1;
const NX_SUP: u64 = 1 << 3;
const GT_SUP: u64 = 1 << 4;
const IA_SUP: u64 = 1 << 6;
const PPR_AUTO_RSP_SUP: u64 = 1 << 41;
/// 128-bit entries of interrupt tables; destinations of 32 bits in them, and for the unit's own interrupts.
const GA_SUP: u64 = 1 << 7;
const XT_SUP: u64 = 1 << 2;
/// The MSI capability among the registers. The model has it in configuration space alone; drivers take the bit as leave to use
/// the XT interrupt registers.
const MSI_CAP_MMIO_SUP: u64 = 1 << 46;
/// NumIntRemap = 1: 2048 entries in an interrupt table.
const NUM_INT_REMAP_2K: u64 = 1 << 8;
/// HASup and HDSup: entries are marked as used and written.
const HA_SUP: u64 = 1 << 49;
const HD_SUP: u64 = 1 << 52;
const GIO_SUP: u64 = 1 << 48;
const EPH_SUP: u64 = 1 << 50;
/// GATS = 1: guest tables of up to 5 levels.
const GATS_5_LEVELS: u64 = 1 << 12;
/// GLXSup = 2: GCR3 tables of up to 3 levels.
const GLX_3_LEVELS: u64 = 2 << 14;
/// PASmax = 19: PASIDs of 20 bits.
const PASIDS_20_BITS: u64 = 19 << 32;
/// HATS = 2: host tables of up to 6 levels.
const HATS_6_LEVELS: u64 = 2 << 10;

/// The unit's features and switches.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Extended Feature Register.
    pub efr: u64,
    /// The second one (EFR2).
    pub efr2: u64,
    /// Capability bit NpCache: results "not present" are remembered too.
    pub np_cache: bool,
    /// Capability bit IotlbSup: devices may keep translations themselves (ATS).
    pub iotlb_sup: bool,
    /// How many page translations are kept, at least one; the oldest go first. `None` keeps all until a command names
    /// them.
    pub iotlb_capacity: Option<usize>,
    /// Whether an invalidation that meets a part of a large page drops all of it. A real unit may do either; the strict
    /// reading finds more mistakes.
    pub lenient_invalidation: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            efr: IA_SUP | HATS_6_LEVELS | XT_SUP | GA_SUP | MSI_CAP_MMIO_SUP | HA_SUP | HD_SUP,
            efr2: NUM_INT_REMAP_2K,
            np_cache: false,
            iotlb_sup: true,
            iotlb_capacity: None,
            lenient_invalidation: false,
        }
    }
}

impl Config {
    /// Guest translation with all that belongs to it: an EFR's bits.
    pub const GUEST: u64 = NX_SUP | GT_SUP | GIO_SUP | GATS_5_LEVELS | GLX_3_LEVELS | PASIDS_20_BITS;

    /// Peripheral page requests with all that belongs to them: an EFR's bits.
    pub const PAGE_REQUESTS: u64 = PPR_SUP | PPR_AUTO_RSP_SUP | EPH_SUP;

    pub(super) fn has_page_requests(&self) -> bool {
        self.efr & PPR_SUP != 0
    }

    pub(super) fn has_guest_translation(&self) -> bool {
        self.efr & GT_SUP != 0
    }

    pub(super) fn has_guest_io(&self) -> bool {
        self.efr & GIO_SUP != 0
    }

    pub(super) fn has_no_execute(&self) -> bool {
        self.efr & NX_SUP != 0
    }

    /// The most levels that a guest table may have.
    pub(super) fn max_guest_levels(&self) -> u32 {
        if self.efr >> 12 & 3 == 1 { 5 } else { 4 }
    }

    /// The most levels that a GCR3 table may have.
    pub(super) fn max_gcr3_levels(&self) -> u32 {
        (self.efr >> 14 & 3) as u32 + 1
    }

    /// Bits of a PASID.
    pub(super) fn pasid_bits(&self) -> u32 {
        (self.efr >> 32 & 0x1f) as u32 + 1
    }

    pub(super) fn has_invalidate_all(&self) -> bool {
        self.efr & IA_SUP != 0
    }

    /// Whether an entry may have this HAD: 0 none, 1 accessed, 3 accessed and dirty; 2 is reserved.
    pub(super) fn allows_had(&self, had: u64) -> bool {
        match had {
            0 => true,
            1 => self.efr & HA_SUP != 0,
            3 => self.efr & (HA_SUP | HD_SUP) == HA_SUP | HD_SUP,
            _ => false,
        }
    }

    /// The most levels that a host table may have; 0 when host translation is off.
    pub(super) fn max_levels(&self) -> u32 {
        match self.efr >> 10 & 3 {
            3 => 0,
            hats => hats as u32 + 4,
        }
    }
}
