//! x86-64 tables word by word, as Linux 7.3 writes them for AMD's guest tables and the first stage of VT-d; QEMU's VT-d walker
//! reads the four-level ones so. Bits: AMD64 Architecture Programmer's Manual, volume 2, section 5.3.

mod common;
mod walkers;

use common::image::{Case, check, word};
use io_pgtable::{IoPgtableCfg, Quirks, X86_64};

const BASE: u64 = 0x4000_0000;

#[test]
fn four_levels() {
    let cfg = IoPgtableCfg::new(48).with_quirks(Quirks::SIGN_EXTEND);
    const CASES: &[Case] = &[
        // 4K RW
        Case {
            iova: 0x1234_5678_9000,
            phys: 0xa_bcde_f012_3000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0x24, 0x4000_1027),
                word(0x4000_1000, 0xd1, 0x4000_2027),
                word(0x4000_2000, 0xb3, 0x4000_3027),
                word(0x4000_3000, 0x189, 0xa_bcde_f012_3067),
            ],
        },
        // 4K RO
        Case {
            iova: 0x1234_5678_a000,
            phys: 0xa_bcde_f012_4000,
            size: 0x1000,
            prot: "R",
            words: &[word(0x4000_3000, 0x18a, 0xa_bcde_f012_4025)],
        },
        // 4K WO flags
        Case {
            iova: 0x1234_5678_b000,
            phys: 0xa_bcde_f012_5000,
            size: 0x1000,
            prot: "W",
            words: &[word(0x4000_3000, 0x18b, 0xa_bcde_f012_5067)],
        },
        // 4K MMIO
        Case {
            iova: 0x1234_5678_c000,
            phys: 0xfee0_0000,
            size: 0x1000,
            prot: "WM",
            words: &[word(0x4000_3000, 0x18c, 0xfee0_0067)],
        },
        // 2M RW
        Case {
            iova: 0x1234_5780_0000,
            phys: 0xa_bcde_f020_0000,
            size: 0x20_0000,
            prot: "RW",
            words: &[word(0x4000_2000, 0xbc, 0xa_bcde_f020_00e7)],
        },
        // 2M RO
        Case {
            iova: 0x1234_57a0_0000,
            phys: 0xa_bcde_f040_0000,
            size: 0x20_0000,
            prot: "R",
            words: &[word(0x4000_2000, 0xbd, 0xa_bcde_f040_00a5)],
        },
        // 1G RW
        Case {
            iova: 0x1234_8000_0000,
            phys: 0xa_bcde_4000_0000,
            size: 0x4000_0000,
            prot: "RW",
            words: &[word(0x4000_1000, 0xd2, 0xa_bcde_4000_00e7)],
        },
        // 4K RW upper half
        Case {
            iova: 0xffff_9234_5678_9000,
            phys: 0x1_2345_6000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0x124, 0x4000_4027),
                word(0x4000_4000, 0xd1, 0x4000_5027),
                word(0x4000_5000, 0xb3, 0x4000_6027),
                word(0x4000_6000, 0x189, 0x1_2345_6067),
            ],
        },
        // last page
        Case {
            iova: 0xffff_ffff_ffff_f000,
            phys: 0x1_2345_7000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0x1ff, 0x4000_7027),
                word(0x4000_7000, 0x1ff, 0x4000_8027),
                word(0x4000_8000, 0x1ff, 0x4000_9027),
                word(0x4000_9000, 0x1ff, 0x1_2345_7067),
            ],
        },
    ];
    check::<X86_64>(BASE, &cfg, CASES);
}

#[test]
fn five_levels() {
    let cfg = IoPgtableCfg::new(57).with_quirks(Quirks::SIGN_EXTEND);
    const CASES: &[Case] = &[
        // 4K RW
        Case {
            iova: 0xfe_dcba_9876_5000,
            phys: 0xa_bcde_f012_3000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0xfe, 0x4000_1027),
                word(0x4000_1000, 0x1b9, 0x4000_2027),
                word(0x4000_2000, 0xea, 0x4000_3027),
                word(0x4000_3000, 0xc3, 0x4000_4027),
                word(0x4000_4000, 0x165, 0xa_bcde_f012_3067),
            ],
        },
        // 2M RO
        Case {
            iova: 0xfe_dcba_9880_0000,
            phys: 0xa_bcde_f020_0000,
            size: 0x20_0000,
            prot: "R",
            words: &[word(0x4000_3000, 0xc4, 0xa_bcde_f020_00a5)],
        },
        // 1G RW
        Case {
            iova: 0xfe_dcba_c000_0000,
            phys: 0xa_bcde_4000_0000,
            size: 0x4000_0000,
            prot: "RW",
            words: &[word(0x4000_2000, 0xeb, 0xa_bcde_4000_00e7)],
        },
        // 4K upper half
        Case {
            iova: 0xff00_0000_0000_0000,
            phys: 0x5000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0x100, 0x4000_5027),
                word(0x4000_5000, 0x0, 0x4000_6027),
                word(0x4000_6000, 0x0, 0x4000_7027),
                word(0x4000_7000, 0x0, 0x4000_8027),
                word(0x4000_8000, 0x0, 0x5067),
            ],
        },
    ];
    check::<X86_64>(BASE, &cfg, CASES);
}

#[test]
fn four_unsigned_levels() {
    let cfg = IoPgtableCfg::new(47);
    const CASES: &[Case] = &[
        // 4K RW
        Case {
            iova: 0x7edc_ba98_7000,
            phys: 0xa_bcde_f012_3000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0xfd, 0x4000_1027),
                word(0x4000_1000, 0x172, 0x4000_2027),
                word(0x4000_2000, 0x1d4, 0x4000_3027),
                word(0x4000_3000, 0x187, 0xa_bcde_f012_3067),
            ],
        },
        // last page
        Case {
            iova: 0x7fff_ffff_f000,
            phys: 0x6000,
            size: 0x1000,
            prot: "R",
            words: &[
                word(0x4000_0000, 0xff, 0x4000_4027),
                word(0x4000_4000, 0x1ff, 0x4000_5027),
                word(0x4000_5000, 0x1ff, 0x4000_6027),
                word(0x4000_6000, 0x1ff, 0x6025),
            ],
        },
    ];
    check::<X86_64>(BASE, &cfg, CASES);
}

#[test]
fn five_encrypted_levels() {
    let cfg = IoPgtableCfg { encryption: 1 << 47, oas: 47, ..IoPgtableCfg::new(56) };
    const CASES: &[Case] = &[
        // 4K RW encrypted
        Case {
            iova: 0xfe_dcba_9876_5000,
            phys: 0x1_2345_6000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0xfe, 0x8000_4000_1027),
                word(0x4000_1000, 0x1b9, 0x8000_4000_2027),
                word(0x4000_2000, 0xea, 0x8000_4000_3027),
                word(0x4000_3000, 0xc3, 0x8000_4000_4027),
                word(0x4000_4000, 0x165, 0x8001_2345_6067),
            ],
        },
        // 4K MMIO plain
        Case {
            iova: 0xfe_dcba_9876_6000,
            phys: 0xfee0_0000,
            size: 0x1000,
            prot: "RWM",
            words: &[word(0x4000_4000, 0x166, 0xfee0_0067)],
        },
        // 1G RW encrypted
        Case {
            iova: 0xfe_dcba_c000_0000,
            phys: 0x4000_0000,
            size: 0x4000_0000,
            prot: "RW",
            words: &[word(0x4000_2000, 0xeb, 0x8000_4000_00e7)],
        },
    ];
    check::<X86_64>(BASE, &cfg, CASES);
}
