//! Linux has a mock of its own (`amdv1_mock`): AMD v1 with every address one place up and pages of half the size. Word by word as
//! Linux 7.3 writes it.

mod common;
mod walkers;

use common::BASE;
use common::image::{Case, check, word, words};
use io_pgtable::{AmdV1, CfgError, Decoded, Format, IoPgtableCfg, Shape, Upper};
use platform::{PageSizes, PhysAddr, Prot};

#[derive(Clone, Copy, Debug)]
struct LinuxMock(AmdV1);

fn up(phys: PhysAddr) -> PhysAddr {
    PhysAddr::new(phys.get() << 1)
}

fn down(phys: PhysAddr) -> PhysAddr {
    PhysAddr::new(phys.get() >> 1)
}

impl Format for LinuxMock {
    const GRANULE_SHIFT: u32 = 11;
    const INDEX_BITS: u32 = 9;
    const MAX_LEVEL: u32 = 5;
    const PAGE_SIZES: PageSizes = PageSizes::from_bits((1 << 51) - (1 << 11));
    const OUTPUT_BITS: u32 = 51;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        let (format, _) = AmdV1::new(&IoPgtableCfg::new(57))?;
        Ok((Self(format), Shape::of::<Self>(cfg.ias, Upper::Zero)?))
    }

    fn leaf(&self, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64 {
        self.0.leaf(up(phys), shift + 1, level, prot)
    }

    fn pointer(&self, phys: PhysAddr, level: u32) -> u64 {
        self.0.pointer(up(phys), level)
    }

    fn decode(&self, entry: u64, level: u32) -> Decoded {
        match self.0.decode(entry, level) {
            Decoded::Empty => Decoded::Empty,
            Decoded::Table(below) => Decoded::Table(down(below)),
            Decoded::Leaf { phys, shift, prot } => Decoded::Leaf { phys: down(phys), shift: shift - 1, prot },
        }
    }
}

const CASES: &[Case] = &[
    // 2K RW
    Case {
        iova: 0xfe_dcba_9876_5800,
        phys: 0x5_abcd_ef01_2800,
        size: 0x800,
        prot: "RW",
        words: &[
            word(0x4000_0000, 0x1fd, 0x6000_0000_8000_2801),
            word(0x4000_1000, 0x172, 0x6000_0000_8000_4601),
            word(0x4000_2000, 0x1d4, 0x6000_0000_8000_6401),
            word(0x4000_3000, 0x187, 0x6000_0000_8000_8201),
            word(0x4000_4000, 0xcb, 0x600b_579b_de02_5001),
        ],
    },
    // 2K RO
    Case {
        iova: 0xfe_dcba_9876_6000,
        phys: 0x5_abcd_ef01_3000,
        size: 0x800,
        prot: "R",
        words: &[word(0x4000_4000, 0xcc, 0x200b_579b_de02_6001)],
    },
    // 4K RW
    Case {
        iova: 0xfe_dcba_9876_7000,
        phys: 0x5_abcd_ef01_4000,
        size: 0x1000,
        prot: "RW",
        words: &[words(0x4000_4000, 0xce, 0x600b_579b_de02_8e01, 2, 0x0)],
    },
    // 1M RW
    Case {
        iova: 0xfe_dcba_9880_0000,
        phys: 0x5_abcd_ef10_0000,
        size: 0x10_0000,
        prot: "RW",
        words: &[word(0x4000_3000, 0x188, 0x600b_579b_de20_0001)],
    },
    // 512M RW
    Case {
        iova: 0xfe_dcba_a000_0000,
        phys: 0x5_abcd_e000_0000,
        size: 0x2000_0000,
        prot: "RW",
        words: &[word(0x4000_2000, 0x1d5, 0x600b_579b_c000_0001)],
    },
];

#[test]
fn golden_words() {
    check::<LinuxMock>(BASE, &IoPgtableCfg::new(56), CASES);
}
