//! ARM stage 1 tables word by word, as Linux 7.3 writes them, those with the contiguous hint as other implementations do; QEMU's
//! SMMU and CPU walkers read them so. Bits: Arm Architecture Reference Manual, section D8.3 "Translation table descriptor
//! formats".

mod common;
mod walkers;

use common::BASE;
use common::image::{Altered, Case, check, check_altered, word, words};
use io_pgtable::{Arm32LpaeS1, ArmLpa2S1, ArmLpaeS1, IoPgtableCfg, Quirks};
use walkers::arm_lpae::stage1;

const PAGE_4K: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x1234_5678_9000,
        phys: 0xbcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            word(0x4000_3000, 0x189, 0xbcde_f012_3f47),
        ],
    },
    // 4K RO CACHE
    Case {
        iova: 0x1234_5678_a000,
        phys: 0xbcde_f012_4000,
        size: 0x1000,
        prot: "RC",
        words: &[word(0x4000_3000, 0x18a, 0xbcde_f012_4fc7)],
    },
    // 4K WO flags
    Case {
        iova: 0x1234_5678_b000,
        phys: 0xbcde_f012_5000,
        size: 0x1000,
        prot: "WC",
        words: &[word(0x4000_3000, 0x18b, 0xbcde_f012_5f47)],
    },
    // 4K RW uncached
    Case {
        iova: 0x1234_5678_c000,
        phys: 0xbcde_f012_6000,
        size: 0x1000,
        prot: "RW",
        words: &[word(0x4000_3000, 0x18c, 0xbcde_f012_6e43)],
    },
    // 4K MMIO
    Case {
        iova: 0x1234_5678_d000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "RWM",
        words: &[word(0x4000_3000, 0x18d, 0xfee0_0e4b)],
    },
    // 4K RW CACHE NOEXEC
    Case {
        iova: 0x1234_5678_e000,
        phys: 0xbcde_f012_7000,
        size: 0x1000,
        prot: "RWCN",
        words: &[word(0x4000_3000, 0x18e, 0x60_bcde_f012_7f47)],
    },
    // 4K RW CACHE PRIV
    Case {
        iova: 0x1234_5678_f000,
        phys: 0xbcde_f012_8000,
        size: 0x1000,
        prot: "RWCP",
        words: &[word(0x4000_3000, 0x18f, 0xbcde_f012_8f07)],
    },
    // 2M RW CACHE
    Case {
        iova: 0x1234_5780_0000,
        phys: 0xbcde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_2000, 0xbc, 0xbcde_f020_0f45)],
    },
    // 1G RO CACHE
    Case {
        iova: 0x1234_8000_0000,
        phys: 0xbcde_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_1000, 0xd2, 0xbcde_4000_0fc5)],
    },
];

const BITS_39: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x7e_dcba_9000,
        phys: 0xde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x1fb, 0x4000_1003),
            word(0x4000_1000, 0xe5, 0x4000_2003),
            word(0x4000_2000, 0x1a9, 0xde_f012_3f47),
        ],
    },
    // 2M RO
    Case {
        iova: 0x7e_dcc0_0000,
        phys: 0xde_f020_0000,
        size: 0x20_0000,
        prot: "R",
        words: &[word(0x4000_1000, 0xe6, 0xde_f020_0ec1)],
    },
    // 1G RW CACHE
    Case {
        iova: 0x7f_c000_0000,
        phys: 0xde_4000_0000,
        size: 0x4000_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x1ff, 0xde_4000_0f45)],
    },
];

const UPPER_HALF: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0xffff_ffde_dcba_9000,
        phys: 0xde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x17b, 0x4000_1003),
            word(0x4000_1000, 0xe5, 0x4000_2003),
            word(0x4000_2000, 0x1a9, 0xde_f012_3f47),
        ],
    },
    // 2M RO
    Case {
        iova: 0xffff_ffde_dcc0_0000,
        phys: 0xde_f020_0000,
        size: 0x20_0000,
        prot: "RC",
        words: &[word(0x4000_1000, 0xe6, 0xde_f020_0fc5)],
    },
];

const DIRTY_MANAGEMENT: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x1234_5678_9000,
        phys: 0xbcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            word(0x4000_3000, 0x189, 0x8_bcde_f012_3f47),
        ],
    },
    // 4K RO CACHE
    Case {
        iova: 0x1234_5678_a000,
        phys: 0xbcde_f012_4000,
        size: 0x1000,
        prot: "RC",
        words: &[word(0x4000_3000, 0x18a, 0xbcde_f012_4fc7)],
    },
    // 2M RW CACHE
    Case {
        iova: 0x1234_5780_0000,
        phys: 0xbcde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_2000, 0xbc, 0x8_bcde_f020_0f45)],
    },
];

const NON_SECURE: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x1234_5678_9000,
        phys: 0xbcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x8000_0000_4000_1003),
            word(0x4000_1000, 0xd1, 0x8000_0000_4000_2003),
            word(0x4000_2000, 0xb3, 0x8000_0000_4000_3003),
            word(0x4000_3000, 0x189, 0xbcde_f012_3f67),
        ],
    },
    // 2M RO
    Case {
        iova: 0x1234_5780_0000,
        phys: 0xbcde_f020_0000,
        size: 0x20_0000,
        prot: "R",
        words: &[word(0x4000_2000, 0xbc, 0xbcde_f020_0ee1)],
    },
];

const PAGE_16K: &[Case] = &[
    // 16K RW CACHE
    Case {
        iova: 0x9234_5678_c000,
        phys: 0xbcde_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x1, 0x4000_4003),
            word(0x4000_4000, 0x123, 0x4000_8003),
            word(0x4000_8000, 0x22b, 0x4000_c003),
            word(0x4000_c000, 0x1e3, 0xbcde_f012_4f47),
        ],
    },
    // 16K RO
    Case {
        iova: 0x9234_5679_0000,
        phys: 0xbcde_f012_8000,
        size: 0x4000,
        prot: "R",
        words: &[word(0x4000_c000, 0x1e4, 0xbcde_f012_8ec3)],
    },
    // 16K WO flags
    Case {
        iova: 0x9234_5679_4000,
        phys: 0xbcde_f012_c000,
        size: 0x4000,
        prot: "WC",
        words: &[word(0x4000_c000, 0x1e5, 0xbcde_f012_cf47)],
    },
    // 16K MMIO
    Case {
        iova: 0x9234_5679_8000,
        phys: 0xfee0_0000,
        size: 0x4000,
        prot: "RWM",
        words: &[word(0x4000_c000, 0x1e6, 0xfee0_0e4b)],
    },
    // 32M RW CACHE
    Case {
        iova: 0x9234_5800_0000,
        phys: 0xbcde_f200_0000,
        size: 0x200_0000,
        prot: "RWC",
        words: &[word(0x4000_8000, 0x22c, 0xbcde_f200_0f45)],
    },
    // 32M RO NOEXEC
    Case {
        iova: 0x9234_5a00_0000,
        phys: 0xbcde_f400_0000,
        size: 0x200_0000,
        prot: "RCN",
        words: &[word(0x4000_8000, 0x22d, 0x60_bcde_f400_0fc5)],
    },
];

const PAGE_64K: &[Case] = &[
    // 64K RW CACHE
    Case {
        iova: 0x9234_5678_0000,
        phys: 0xbcde_f012_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x4001_0003),
            word(0x4001_0000, 0x11a2, 0x4002_0003),
            word(0x4002_0000, 0x1678, 0xbcde_f012_0f47),
        ],
    },
    // 64K RO
    Case {
        iova: 0x9234_5679_0000,
        phys: 0xbcde_f013_0000,
        size: 0x1_0000,
        prot: "R",
        words: &[word(0x4002_0000, 0x1679, 0xbcde_f013_0ec3)],
    },
    // 64K WO flags
    Case {
        iova: 0x9234_567a_0000,
        phys: 0xbcde_f014_0000,
        size: 0x1_0000,
        prot: "WC",
        words: &[word(0x4002_0000, 0x167a, 0xbcde_f014_0f47)],
    },
    // 64K MMIO
    Case {
        iova: 0x9234_567b_0000,
        phys: 0xfee0_0000,
        size: 0x1_0000,
        prot: "RWM",
        words: &[word(0x4002_0000, 0x167b, 0xfee0_0e4b)],
    },
    // 512M RW CACHE
    Case {
        iova: 0x9234_6000_0000,
        phys: 0xbcdf_0000_0000,
        size: 0x2000_0000,
        prot: "RWC",
        words: &[word(0x4001_0000, 0x11a3, 0xbcdf_0000_0f45)],
    },
    // 512M RO PRIV
    Case {
        iova: 0x9234_8000_0000,
        phys: 0xbcdf_2000_0000,
        size: 0x2000_0000,
        prot: "RCP",
        words: &[word(0x4001_0000, 0x11a4, 0xbcdf_2000_0f85)],
    },
];

const BITS_52: &[Case] = &[
    // 64K RW CACHE
    Case {
        iova: 0xa_9234_5678_0000,
        phys: 0xa_bcde_f012_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x2a4, 0x4001_0003),
            word(0x4001_0000, 0x11a2, 0x4002_0003),
            word(0x4002_0000, 0x1678, 0xbcde_f012_af47),
        ],
    },
    // 64K RO
    Case {
        iova: 0xa_9234_5679_0000,
        phys: 0x5_bcde_f013_0000,
        size: 0x1_0000,
        prot: "R",
        words: &[word(0x4002_0000, 0x1679, 0xbcde_f013_5ec3)],
    },
    // 512M RW CACHE
    Case {
        iova: 0xa_9234_6000_0000,
        phys: 0xa_bcdf_0000_0000,
        size: 0x2000_0000,
        prot: "RWC",
        words: &[word(0x4001_0000, 0x11a3, 0xbcdf_0000_af45)],
    },
    // 4T RW CACHE
    Case {
        iova: 0xa_c000_0000_0000,
        phys: 0x5_4000_0000_0000,
        size: 0x400_0000_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x2b0, 0x4000_0000_5f45)],
    },
];

const CONTIGUOUS_4K: &[Case] = &[
    // 64K contig RW CACHE
    Case {
        iova: 0x1234_5678_0000,
        phys: 0xbcde_f012_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            words(0x4000_3000, 0x180, 0x10_bcde_f012_0f47, 16, 0x1000),
        ],
    },
    // 32M contig RO CACHE
    Case {
        iova: 0x1234_5800_0000,
        phys: 0xbcde_f200_0000,
        size: 0x200_0000,
        prot: "RC",
        words: &[words(0x4000_2000, 0xc0, 0x10_bcde_f200_0fc5, 16, 0x20_0000)],
    },
    // 16G contig RW CACHE
    Case {
        iova: 0x1238_0000_0000,
        phys: 0xbcdc_0000_0000,
        size: 0x4_0000_0000,
        prot: "RWC",
        words: &[words(0x4000_1000, 0xe0, 0x10_bcdc_0000_0f45, 16, 0x4000_0000)],
    },
];

const CONTIGUOUS_16K: &[Case] = &[
    // 2M contig RW CACHE
    Case {
        iova: 0x1234_5660_0000,
        phys: 0xbcde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x0, 0x4000_4003),
            word(0x4000_4000, 0x123, 0x4000_8003),
            word(0x4000_8000, 0x22b, 0x4000_c003),
            words(0x4000_c000, 0x180, 0x10_bcde_f020_0f47, 128, 0x4000),
        ],
    },
    // 1G contig RO CACHE
    Case {
        iova: 0x1234_8000_0000,
        phys: 0xbcde_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[words(0x4000_8000, 0x240, 0x10_bcde_4000_0fc5, 32, 0x200_0000)],
    },
];

const CONTIGUOUS_64K: &[Case] = &[
    // 2M contig RW CACHE
    Case {
        iova: 0x1234_5660_0000,
        phys: 0xbcde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x4, 0x4001_0003),
            word(0x4001_0000, 0x11a2, 0x4002_0003),
            words(0x4002_0000, 0x1660, 0x10_bcde_f020_0f47, 32, 0x1_0000),
        ],
    },
    // 16G contig RO CACHE
    Case {
        iova: 0x1238_0000_0000,
        phys: 0xbcdc_0000_0000,
        size: 0x4_0000_0000,
        prot: "RC",
        words: &[words(0x4001_0000, 0x11c0, 0x10_bcdc_0000_0fc5, 32, 0x2000_0000)],
    },
];

const LPA2_4K: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0xa_9234_5678_9000,
        phys: 0xa_bcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0xa, 0x4000_1003),
            word(0x4000_1000, 0x124, 0x4000_2003),
            word(0x4000_2000, 0xd1, 0x4000_3003),
            word(0x4000_3000, 0xb3, 0x4000_4003),
            word(0x4000_4000, 0x189, 0x2_bcde_f012_3e47),
        ],
    },
    // 4K RO MMIO
    Case {
        iova: 0xa_9234_5678_a000,
        phys: 0xf_0000_fee0_0000,
        size: 0x1000,
        prot: "RM",
        words: &[word(0x4000_4000, 0x18a, 0x3_0000_fee0_0fcb)],
    },
    // 2M RW CACHE
    Case {
        iova: 0xa_9234_5780_0000,
        phys: 0xa_bcde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_3000, 0xbc, 0x2_bcde_f020_0e45)],
    },
    // 1G RO CACHE
    Case {
        iova: 0xa_9234_8000_0000,
        phys: 0x5_bcde_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_2000, 0xd2, 0x1_bcde_4000_0dc5)],
    },
    // 512G RW CACHE
    Case {
        iova: 0xb_0000_0000_0000,
        phys: 0xc_0080_0000_0000,
        size: 0x80_0000_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0xb, 0x4000_5003), word(0x4000_5000, 0x0, 0x80_0000_0f45)],
    },
];

const LPA2_16K: &[Case] = &[
    // 16K RW CACHE
    Case {
        iova: 0xa_9234_5678_c000,
        phys: 0xa_bcde_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x15, 0x4000_4003),
            word(0x4000_4000, 0x123, 0x4000_8003),
            word(0x4000_8000, 0x22b, 0x4000_c003),
            word(0x4000_c000, 0x1e3, 0x2_bcde_f012_4e47),
        ],
    },
    // 32M RO CACHE
    Case {
        iova: 0xa_9234_5800_0000,
        phys: 0xa_bcde_f200_0000,
        size: 0x200_0000,
        prot: "RC",
        words: &[word(0x4000_8000, 0x22c, 0x2_bcde_f200_0ec5)],
    },
    // 64G RW CACHE
    Case {
        iova: 0xb_0010_0000_0000,
        phys: 0x5_4010_0000_0000,
        size: 0x10_0000_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x16, 0x4001_0003), word(0x4001_0000, 0x1, 0x1_4010_0000_0d45)],
    },
];

const BITS_32: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0xfedc_b000,
        phys: 0xde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x3, 0x4000_1003),
            word(0x4000_1000, 0x1f6, 0x4000_2003),
            word(0x4000_2000, 0x1cb, 0xde_f012_3f47),
        ],
    },
    // 4K RO
    Case {
        iova: 0xfedc_c000,
        phys: 0xde_f012_4000,
        size: 0x1000,
        prot: "R",
        words: &[word(0x4000_2000, 0x1cc, 0xde_f012_4ec3)],
    },
    // 4K WO flags
    Case {
        iova: 0xfedc_d000,
        phys: 0xde_f012_5000,
        size: 0x1000,
        prot: "WC",
        words: &[word(0x4000_2000, 0x1cd, 0xde_f012_5f47)],
    },
    // 4K MMIO
    Case {
        iova: 0xfedc_e000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "RWM",
        words: &[word(0x4000_2000, 0x1ce, 0xfee0_0e4b)],
    },
    // 2M RW CACHE NOEXEC
    Case {
        iova: 0xfee0_0000,
        phys: 0xde_f020_0000,
        size: 0x20_0000,
        prot: "RWCN",
        words: &[word(0x4000_1000, 0x1f7, 0x60_00de_f020_0f45)],
    },
    // 1G RW CACHE
    Case {
        iova: 0x4000_0000,
        phys: 0xde_4000_0000,
        size: 0x4000_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x1, 0xde_4000_0f45)],
    },
];

fn with(ias: u32, quirk: Quirks) -> IoPgtableCfg {
    IoPgtableCfg::new(ias).with_quirks(quirk)
}

#[test]
fn golden_words() {
    check::<ArmLpaeS1<12>>(BASE, &IoPgtableCfg::new(48), PAGE_4K);
    check::<ArmLpaeS1<12>>(BASE, &IoPgtableCfg::new(39), BITS_39);
    check::<ArmLpaeS1<14>>(BASE, &IoPgtableCfg::new(48), PAGE_16K);
    check::<ArmLpaeS1<16>>(BASE, &IoPgtableCfg { oas: 48, ..IoPgtableCfg::new(48) }, PAGE_64K);
    check::<ArmLpaeS1<16>>(BASE, &IoPgtableCfg::new(52), BITS_52);
    check::<ArmLpa2S1<12>>(BASE, &IoPgtableCfg::new(52), LPA2_4K);
    check::<ArmLpa2S1<14>>(BASE, &IoPgtableCfg::new(52), LPA2_16K);
    check::<Arm32LpaeS1>(BASE, &IoPgtableCfg::new(32), BITS_32);
}

#[test]
fn golden_words_of_quirks() {
    check::<ArmLpaeS1<12>>(BASE, &with(39, Quirks::ARM_TTBR1), UPPER_HALF);
    check::<ArmLpaeS1<12>>(BASE, &with(48, Quirks::ARM_HD), DIRTY_MANAGEMENT);
    check::<ArmLpaeS1<12>>(BASE, &with(48, Quirks::ARM_NS), NON_SECURE);
}

#[test]
fn golden_words_of_the_contiguous_hint() {
    check::<ArmLpaeS1<12>>(BASE, &with(48, Quirks::ARM_CONTIGUOUS_1G), CONTIGUOUS_4K);
    check::<ArmLpaeS1<14>>(BASE, &IoPgtableCfg::new(48), CONTIGUOUS_16K);
    check::<ArmLpaeS1<16>>(BASE, &IoPgtableCfg::new(48), CONTIGUOUS_64K);
}

/// As QEMU's CPU walker does, without privilege.
#[test]
fn altered_entries() {
    let leaf = |after, faults| Altered {
        iova: 0x1234_5678_9000,
        table: 0x4000_3000,
        index: 0x189,
        before: 0xbcde_f012_3f47,
        after,
        faults,
    };
    let pointer = |after, faults| Altered {
        table: 0x4000_1000,
        index: 0xd1,
        before: 0x4000_2003,
        ..leaf(after, faults)
    };
    let altered = [
        leaf(0xbcde_f012_3f46, "rwx"),
        // A block at level 3.
        leaf(0xbcde_f012_3f45, "rwx"),
        // AF.
        leaf(0xbcde_f012_3b47, "rwx"),
        // AP[2], AP[1].
        leaf(0xbcde_f012_3fc7, "w"),
        leaf(0xbcde_f012_3f07, "rw"),
        // Bits 58:55 are software's.
        leaf(0x0780_bcde_f012_3f47, ""),
        // The hint alone.
        leaf(0x0010_bcde_f012_3f47, ""),
        // UXN.
        leaf(0x0040_bcde_f012_3f47, "x"),
        // DBM means nothing while HD is off.
        leaf(0x0008_bcde_f012_3fc7, "w"),
        // APTable, UXNTable.
        pointer(0x4000_0000_4000_2003, "w"),
        pointer(0x2000_0000_4000_2003, "rw"),
        pointer(0x1000_0000_4000_2003, "x"),
        // A block at level 0.
        Altered { table: 0x4000_0000, index: 0x24, before: 0x4000_1003, ..leaf(0x4000_1001, "rwx") },
    ];
    let cfg = IoPgtableCfg::new(48);
    check_altered::<ArmLpaeS1<12>>(&cfg, PAGE_4K, stage1::<12>, &cfg, &altered);
    // Memory ends at 2^40.
    let narrow = IoPgtableCfg { oas: 40, ..cfg };
    let same = [leaf(0xbcde_f012_3f47, "rwx")];
    check_altered::<ArmLpaeS1<12>>(&cfg, PAGE_4K, stage1::<12>, &narrow, &same);

    let updates = with(48, Quirks::ARM_HD);
    let before = 0x0008_bcde_f012_3f47;
    let altered = [
        // Clean, and old: hardware changes both.
        Altered { before, ..leaf(0x0008_bcde_f012_3fc7, "") },
        Altered { before, ..leaf(0x0008_bcde_f012_3b47, "") },
    ];
    check_altered::<ArmLpaeS1<12>>(&updates, DIRTY_MANAGEMENT, stage1::<12>, &updates, &altered);
}
