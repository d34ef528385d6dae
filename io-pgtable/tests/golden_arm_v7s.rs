//! ARM v7 short-descriptor tables word by word, as Linux 7.3 writes them; QEMU's CPU walker reads those without MediaTek's quirks
//! so. Bits: ARM Architecture Reference Manual, ARMv7-A, section B3.5.

mod common;
mod walkers;

use std::sync::Arc;

use common::image::{Altered, Case, check, check_altered, word, words};
use common::{Arena, BASE};
use io_pgtable::{ArmV7s, CfgError, IoPageTable, IoPgtableCfg, PageTable, Quirks, Registers};
use walkers::arm_v7s::look;

const PLAIN: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x1234_5000,
        phys: 0xf012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x123, 0x4000_4001), word(0x4000_4000, 0x45, 0xf012_3c7e)],
    },
    // 4K RO CACHE
    Case {
        iova: 0x1234_6000,
        phys: 0xf012_4000,
        size: 0x1000,
        prot: "RC",
        words: &[word(0x4000_4000, 0x46, 0xf012_4e7e)],
    },
    // 4K WO flags
    Case {
        iova: 0x1234_7000,
        phys: 0xf012_5000,
        size: 0x1000,
        prot: "WC",
        words: &[word(0x4000_4000, 0x47, 0xf012_5c7e)],
    },
    // 4K RW uncached
    Case {
        iova: 0x1234_8000,
        phys: 0xf012_6000,
        size: 0x1000,
        prot: "RW",
        words: &[word(0x4000_4000, 0x48, 0xf012_6c72)],
    },
    // 4K MMIO
    Case {
        iova: 0x1234_9000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "RWM",
        words: &[word(0x4000_4000, 0x49, 0xfee0_0c36)],
    },
    // 4K NOEXEC
    Case {
        iova: 0x1234_a000,
        phys: 0xf012_7000,
        size: 0x1000,
        prot: "RWCN",
        words: &[word(0x4000_4000, 0x4a, 0xf012_7c7f)],
    },
    // 4K PRIV
    Case {
        iova: 0x1234_b000,
        phys: 0xf012_8000,
        size: 0x1000,
        prot: "RWCP",
        words: &[word(0x4000_4000, 0x4b, 0xf012_8c5e)],
    },
    // 64K RW CACHE
    Case {
        iova: 0x1235_0000,
        phys: 0xf013_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[words(0x4000_4000, 0x50, 0xf013_1c3d, 16, 0)],
    },
    // 64K RO NOEXEC
    Case {
        iova: 0x1236_0000,
        phys: 0xf014_0000,
        size: 0x1_0000,
        prot: "RCN",
        words: &[words(0x4000_4000, 0x60, 0xf014_9e3d, 16, 0)],
    },
    // 1M RW CACHE
    Case {
        iova: 0x1240_0000,
        phys: 0xf020_0000,
        size: 0x10_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x124, 0xf023_1c0e)],
    },
    // 1M RO NOEXEC
    Case {
        iova: 0x1250_0000,
        phys: 0xf030_0000,
        size: 0x10_0000,
        prot: "RCN",
        words: &[word(0x4000_0000, 0x125, 0xf033_9c1e)],
    },
    // 16M RW CACHE
    Case {
        iova: 0xfe00_0000,
        phys: 0xe100_0000,
        size: 0x100_0000,
        prot: "RWC",
        words: &[words(0x4000_0000, 0xfe0, 0xe107_1c0e, 16, 0)],
    },
    // 1M MMIO
    Case {
        iova: 0x1260_0000,
        phys: 0xfed0_0000,
        size: 0x10_0000,
        prot: "RWM",
        words: &[word(0x4000_0000, 0x126, 0xfed3_0c06)],
    },
];

const NON_SECURE: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x1234_5000,
        phys: 0xf012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x123, 0x4000_4009), word(0x4000_4000, 0x45, 0xf012_3c7e)],
    },
    // 64K RW CACHE
    Case {
        iova: 0x1235_0000,
        phys: 0xf013_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[words(0x4000_4000, 0x50, 0xf013_1c3d, 16, 0)],
    },
    // 1M RW CACHE
    Case {
        iova: 0x1240_0000,
        phys: 0xf020_0000,
        size: 0x10_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x124, 0xf02b_1c0e)],
    },
    // 16M RW CACHE
    Case {
        iova: 0xfe00_0000,
        phys: 0xe100_0000,
        size: 0x100_0000,
        prot: "RWC",
        words: &[words(0x4000_0000, 0xfe0, 0xe10f_1c0e, 16, 0)],
    },
];

const MEDIATEK: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x3_1234_5000,
        phys: 0x7_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x3123, 0x4001_0001), word(0x4001_0000, 0x45, 0xf012_3e7e)],
    },
    // 64K RW CACHE
    Case {
        iova: 0x3_1235_0000,
        phys: 0x5_f013_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[words(0x4001_0000, 0x50, 0xf013_1e2d, 16, 0)],
    },
    // 1M RW CACHE
    Case {
        iova: 0x3_1240_0000,
        phys: 0x6_f020_0000,
        size: 0x10_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x3124, 0xf023_103e)],
    },
    // 16M RW CACHE
    Case {
        iova: 0x3_fe00_0000,
        phys: 0x3_e100_0000,
        size: 0x100_0000,
        prot: "RWC",
        words: &[words(0x4000_0000, 0x3fe0, 0xe107_121e, 16, 0)],
    },
];

const NO_RIGHTS: Quirks = Quirks::NO_PERMS.union(Quirks::ARM_MTK_EXT);

fn of(bits: u32) -> IoPgtableCfg {
    IoPgtableCfg { oas: bits, ..IoPgtableCfg::new(bits) }
}

#[test]
fn golden_words() {
    check::<ArmV7s>(BASE, &of(32), PLAIN);
    check::<ArmV7s>(BASE, &of(32).with_quirks(Quirks::ARM_NS), NON_SECURE);
    check::<ArmV7s>(BASE, &IoPgtableCfg::new(34).with_quirks(NO_RIGHTS), MEDIATEK);
}

/// As QEMU's CPU walker does, without privilege.
#[test]
fn altered_entries() {
    let leaf = |after, faults| Altered {
        iova: 0x1234_5000,
        table: 0x4000_4000,
        index: 0x45,
        before: 0xf012_3c7e,
        after,
        faults,
    };
    let first =
        |after, faults| Altered { table: BASE, index: 0x123, before: 0x4000_4001, ..leaf(after, faults) };
    let altered = [
        leaf(0xf012_3c7c, "rwx"),
        // AP[0], the access flag; AP[2]; AP[1]; XN.
        leaf(0xf012_3c6e, "rwx"),
        leaf(0xf012_3e7e, "w"),
        leaf(0xf012_3c5e, "rwx"),
        leaf(0xf012_3c7f, "x"),
        first(0x4000_4000, "rwx"),
        // A pointer that becomes a section without the access flag.
        first(0x4000_4002, "rwx"),
        // XN of a large page.
        Altered { iova: 0x1235_0000, index: 0x50, before: 0xf013_1c3d, ..leaf(0xf013_9c3d, "x") },
    ];
    check_altered::<ArmV7s>(&of(32), PLAIN, look, &of(32), &altered);
}

#[test]
fn registers_say_what_the_table_is() {
    let table = PageTable::<ArmV7s>::new(Arc::new(Arena::new(8)), &of(32)).expect("a table");
    let expected = Registers::ArmV7s { ttbr: 0x4000_006a, tcr: 0, nmrr: 0x4000_4000, prrr: 0x800b_8204 };
    assert_eq!(table.registers(), expected);
}

#[test]
fn what_short_descriptors_lack_is_refused() {
    let refused = |cfg| PageTable::<ArmV7s>::new(Arc::new(Arena::new(32)), &cfg).map(drop);
    assert_eq!(refused(IoPgtableCfg::new(33)), Err(CfgError::InputSize));
    assert_eq!(refused(IoPgtableCfg::new(20)), Err(CfgError::InputSize));
    assert_eq!(refused(IoPgtableCfg::new(35).with_quirks(NO_RIGHTS)), Err(CfgError::InputSize));
    for quirks in [Quirks::ARM_MTK_EXT, NO_RIGHTS.union(Quirks::ARM_MTK_TTBR_EXT), Quirks::ARM_TTBR1] {
        assert_eq!(refused(of(32).with_quirks(quirks)), Err(CfgError::Quirks), "{quirks:?}");
    }
}
