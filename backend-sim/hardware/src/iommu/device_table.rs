//! Device table entries, as hardware reads them.

use super::config::Config;
use crate::ram::Ram;

/// A device table entry, in its four words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dte([u64; 4]);

/// Bits that must be zero in words 0 to 3.
const RESERVED: [u64; 4] = [0x8000_0000_0000_007c, 0, 0x0030_0000_0000_0000, 0x003f_0000_0000_7fff];
/// Fields of word 0 that belong to features: PPR and GPRP; GIoV; GV, GLX and GCR3.
const PPR: u64 = 0x0030_0000_0000_0000;
const GIOV: u64 = 1 << 54;
const GUEST_0: u64 = 0x1f80_0000_0000_0000;
/// Fields of word 1: GCR3 and I.
const GUEST_1: u64 = 0xffff_f800_ffff_0000;
const I: u64 = 1 << 32;

impl Dte {
    /// Reads an entry as hardware does: in two halves of 16 bytes.
    pub(super) fn read(ram: &Ram, at: u64) -> Option<Self> {
        let mut words = [0; 4];
        for (index, word) in words.iter_mut().enumerate() {
            *word = ram.read64(at + 8 * index as u64).ok()?;
        }
        Some(Self(words))
    }

    /// V.
    pub(super) fn valid(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// TV.
    pub(super) fn translation_valid(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// HAD.
    pub(super) fn had(self) -> u64 {
        self.0[0] >> 7 & 3
    }

    /// Whether table entries are marked as used (A).
    pub(super) fn marks_accessed(self) -> bool {
        self.had() != 0
    }

    /// Whether leaves are marked as written (D).
    pub(super) fn marks_dirty(self) -> bool {
        self.had() == 3
    }

    /// Mode: levels of the host table.
    pub(super) fn mode(self) -> u32 {
        (self.0[0] >> 9 & 7) as u32
    }

    /// The host table's root.
    pub(super) fn root(self) -> u64 {
        self.0[0] & 0x000f_ffff_ffff_f000
    }

    /// IR.
    pub(super) fn read_allowed(self) -> bool {
        self.0[0] >> 61 & 1 != 0
    }

    /// IW.
    pub(super) fn write_allowed(self) -> bool {
        self.0[0] >> 62 & 1 != 0
    }

    /// DomainID.
    pub(super) fn domain(self) -> u16 {
        self.0[1] as u16
    }

    /// I: translation requests are answered, and addresses that the device has translated pass.
    pub(super) fn answers_translations(self) -> bool {
        self.0[1] >> 32 & 1 != 0
    }

    /// PPR: the device may ask for pages.
    pub(super) fn page_requests(self) -> bool {
        self.0[0] >> 52 & 1 != 0
    }

    /// GV: there are guest tables.
    pub(super) fn guest_valid(self) -> bool {
        self.0[0] >> 55 & 1 != 0
    }

    /// GIoV: requests without a PASID use the table of PASID 0.
    pub(super) fn guest_io(self) -> bool {
        self.0[0] >> 54 & 1 != 0
    }

    /// GLX: levels of the GCR3 table less one; 3 is reserved.
    pub(super) fn glx(self) -> u32 {
        (self.0[0] >> 56 & 3) as u32
    }

    /// The GCR3 table's root.
    pub(super) fn gcr3_root(self) -> u64 {
        (self.0[0] >> 58 & 7) << 12 | (self.0[1] >> 16 & 0xffff) << 15 | (self.0[1] >> 43) << 31
    }

    /// GuestPagingMode: levels of guest tables.
    pub(super) fn guest_levels(self) -> u32 {
        if self.0[2] >> 54 & 3 == 1 { 5 } else { 4 }
    }

    /// SE: page faults after the first are not logged.
    pub(super) fn suppress_repeats(self) -> bool {
        self.0[1] >> 33 & 1 != 0
    }

    /// SA: no page fault is logged.
    pub(super) fn suppress_all(self) -> bool {
        self.0[1] >> 34 & 1 != 0
    }

    /// IV.
    pub(super) fn interrupts_valid(self) -> bool {
        self.0[2] & 1 != 0
    }

    /// IntTabLen.
    pub(super) fn interrupt_table_len(self) -> u32 {
        (self.0[2] >> 1 & 0xf) as u32
    }

    /// IG: unmapped interrupts are not logged.
    pub(super) fn ignores_unmapped_interrupts(self) -> bool {
        self.0[2] >> 5 & 1 != 0
    }

    /// The interrupt table's root.
    pub(super) fn interrupt_table(self) -> u64 {
        self.0[2] & 0x000f_ffff_ffff_ffc0
    }

    /// INITPass.
    pub(super) fn init_passes(self) -> bool {
        self.0[2] >> 56 & 1 != 0
    }

    /// EIntPass.
    pub(super) fn ext_int_passes(self) -> bool {
        self.0[2] >> 57 & 1 != 0
    }

    /// NMIPass.
    pub(super) fn nmi_passes(self) -> bool {
        self.0[2] >> 58 & 1 != 0
    }

    /// IntCtl.
    pub(super) fn interrupt_control(self) -> u32 {
        (self.0[2] >> 60 & 3) as u32
    }

    /// Whether a bit that must be zero is set in the half for memory requests.
    pub(super) fn memory_half_reserved(self, config: &Config) -> bool {
        let absent = |there: bool, field: u64| if there { 0 } else { field };
        let word_0 = absent(config.has_guest_io(), GIOV)
            | absent(config.has_guest_translation(), GUEST_0)
            | absent(config.has_page_requests(), PPR);
        let word_1 = absent(config.has_guest_translation(), GUEST_1) | absent(config.iotlb_sup, I);
        let reserved = self.0[0] & (RESERVED[0] | word_0) | self.0[1] & (RESERVED[1] | word_1);
        reserved != 0
    }

    /// Whether a bit that must be zero is set in the half for interrupts.
    pub(super) fn interrupt_half_reserved(self) -> bool {
        self.0[2] & RESERVED[2] != 0 || self.0[3] & RESERVED[3] != 0
    }
}
