//! A second reading of the Arm Architecture Reference Manual, section D8.2 "Translation process", for long descriptors: an
//! unprivileged access of an SMMU. Levels are ARM's: 3 is the lowest.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::{Fault, Found};
use crate::common::Arena;

type Looked = Result<Found, Fault>;

/// Stage 1 of 64 bits, with a granule of 2^`G` bytes.
pub(crate) fn stage1<const G: u32>(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    look(&Regime::stage1(G, cfg, 64), arena, root, iova)
}

/// Stage 1 with LPA2 (TCR.DS), with a granule of 2^`G` bytes.
pub(crate) fn stage1_lpa2<const G: u32>(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    look(&Regime::stage1(G, cfg, 52), arena, root, iova)
}

/// Stage 1 of 32 bits.
pub(crate) fn stage1_of_32(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    look(&Regime::stage1(12, cfg, 32), arena, root, iova)
}

/// Stage 2 of 64 bits, with a granule of 2^`G` bytes.
pub(crate) fn stage2<const G: u32>(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    look(&Regime::stage2(G, cfg, 64), arena, root, iova)
}

/// Stage 2 of 32 bits.
pub(crate) fn stage2_of_32(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    look(&Regime::stage2(12, cfg, 32), arena, root, iova)
}

/// What registers say.
struct Regime {
    granule: u32,
    input: u32,
    output: u32,
    start: i32,
    /// TCR.DS.
    lpa2: bool,
    second_stage: bool,
    upper_half: bool,
    /// HA and HD.
    hardware_updates: bool,
}

impl Regime {
    fn of(granule: u32, cfg: &IoPgtableCfg, bits: u32) -> Self {
        let most = if bits == 32 {
            40
        } else if granule == 16 || bits == 52 {
            52
        } else {
            48
        };
        Self {
            granule,
            input: cfg.ias,
            output: cfg.oas.min(most),
            start: 0,
            lpa2: bits == 52,
            second_stage: false,
            upper_half: cfg.quirks.contains(Quirks::ARM_TTBR1),
            hardware_updates: cfg.quirks.contains(Quirks::ARM_HD),
        }
    }

    fn stage1(granule: u32, cfg: &IoPgtableCfg, bits: u32) -> Self {
        let mut regime = Self::of(granule, cfg, bits);
        regime.start = regime.natural_start();
        regime
    }

    /// The start follows from what hardware can do: it lacks the higher levels when it has few physical addresses.
    fn stage2(granule: u32, cfg: &IoPgtableCfg, bits: u32) -> Self {
        let mut regime = Self { second_stage: true, ..Self::of(granule, cfg, bits) };
        regime.start = regime.natural_start();
        let refused = match (granule, regime.start) {
            (12, 0) => bits == 32 || regime.output < 44,
            (14, 0) => true,
            (14, 1) => regime.output < 42,
            (16, 1) => regime.output < 44,
            _ => false,
        };
        if refused {
            regime.start += 1;
        }
        assert!(regime.index_bits(regime.start) <= granule - 3 + 4, "at most sixteen tables at the start");
        regime
    }

    /// The level whose single table holds all of the address.
    fn natural_start(&self) -> i32 {
        (-1..=3).rev().find(|level| self.index_bits(*level) <= self.granule - 3).expect("a level")
    }

    /// The lowest address bit that an entry of a level looks at.
    fn shift(&self, level: i32) -> u32 {
        self.granule + (self.granule - 3) * (3 - level) as u32
    }

    /// Index bits of a level when a walk starts there.
    fn index_bits(&self, level: i32) -> u32 {
        self.input.saturating_sub(self.shift(level))
    }

    /// OA of a block or page, or a table's address.
    fn address(&self, entry: u64) -> u64 {
        if self.lpa2 {
            // Bits 9:8 are the address's 51:50, bits 49:48 are in place.
            return (entry & 0x3_ffff_ffff_f000) + ((entry >> 8 & 3) << 50);
        }
        let plain = entry & 0xffff_ffff_f000;
        if self.granule < 16 {
            return plain;
        }
        // Bits 15:12 are the address's 51:48.
        (plain >> 16 << 16) + ((plain >> 12 & 0xf) << 48)
    }

    /// How many entries a run with the contiguous hint has.
    fn run(&self, level: i32) -> u64 {
        match (self.granule, level) {
            (12, _) => 16,
            (14, 3) => 128,
            _ => 32,
        }
    }
}

fn look(regime: &Regime, arena: &Arena, root: Root, iova: u64) -> Looked {
    assert_eq!(4 - root.level as i32, regime.start, "hardware starts elsewhere");
    // All bits above the input size are zeros, or ones.
    let above = iova >> regime.input;
    if above != if regime.upper_half { u64::MAX >> regime.input } else { 0 } {
        return Err(Fault::Absent);
    }
    let input = iova - (above << regime.input);
    let start_bytes = 8u64 << regime.index_bits(regime.start);
    assert_eq!(root.phys.get() % start_bytes.max(64), 0, "the top's alignment");

    let mut table = root.phys.get();
    // What tables take away: EL0's access, writes, EL0's execution.
    let (mut no_access, mut no_write, mut no_execute) = (false, false, false);
    for level in regime.start..=3 {
        let shift = regime.shift(level);
        let index = input >> shift;
        let index = if level == regime.start { index } else { index % (1 << (regime.granule - 3)) };
        let entry = arena.read(table + 8 * index);
        if entry & 1 == 0 {
            return Err(Fault::of_empty(entry));
        }
        let address = regime.address(entry);
        if address >> regime.output != 0 {
            return Err(Fault::Refused("an address of more bits than IPS"));
        }
        if level < 3 && entry & 2 != 0 {
            if !regime.second_stage {
                no_access |= entry >> 61 & 1 == 1;
                no_write |= entry >> 62 & 1 == 1;
                no_execute |= entry >> 60 & 1 == 1;
            }
            table = address;
            continue;
        }
        let is_block_level = match regime.granule {
            12 => level == 1 || level == 2 || level == 0 && regime.lpa2,
            14 => level == 2 || level == 1 && regime.lpa2,
            _ => level == 2 || level == 1 && regime.output == 52,
        };
        if (level == 3) != (entry & 2 != 0) || level < 3 && !is_block_level {
            return Err(Fault::Refused("a reserved descriptor"));
        }
        if !address.is_multiple_of(1 << shift) {
            return Err(Fault::Refused("address bits below a block"));
        }
        if entry >> 10 & 1 == 0 && !regime.hardware_updates {
            return Err(Fault::Refused("the access flag"));
        }
        let (read, write, execute) = if regime.second_stage {
            (entry >> 6 & 1 == 1, entry >> 7 & 1 == 1, entry >> 54 & 1 == 0)
        } else {
            let user = entry >> 6 & 1 == 1 && !no_access;
            let clean = regime.hardware_updates && entry >> 51 & 1 == 1;
            let writable = entry >> 7 & 1 == 0 || clean;
            (user, user && writable && !no_write, entry >> 54 & 1 == 0 && !no_execute)
        };
        let size = reach(regime, arena, table, index, level);
        return Ok(Found { phys: address + input % (1 << shift), size, read, write, execute });
    }
    unreachable!("level 3 has pages only")
}

/// Bytes that a TLB may keep as one: all of a run when each of its entries has the hint, the same attributes, and the next address
/// from an aligned one on. Else the hint is worth nothing.
fn reach(regime: &Regime, arena: &Arena, table: u64, index: u64, level: i32) -> u64 {
    let size = 1u64 << regime.shift(level);
    let count = regime.run(level);
    let first = index / count * count;
    let base = regime.address(arena.read(table + 8 * first));
    // Hardware marks any entry of a run as used or written.
    let marks = if regime.hardware_updates { 0x480 } else { 0 };
    // With LPA2 bits 9:8 are the address's.
    let low = if regime.lpa2 { 0xcff } else { 0xfff };
    let attributes = |entry: u64| (entry >> 50, entry & low & !marks);
    let expected = attributes(arena.read(table + 8 * index));
    let whole = (0..count).all(|n| {
        let entry = arena.read(table + 8 * (first + n));
        entry >> 52 & 1 == 1 && attributes(entry) == expected && regime.address(entry) == base + n * size
    });
    if whole && base.is_multiple_of(size * count) { size * count } else { size }
}
