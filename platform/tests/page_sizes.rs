//! The choice of page sizes, against the rule of Linux's `iommu_pgsize` spelled out the slow way.

#![cfg(not(loom))]

use platform::PageSizes;
use platform::page_sizes::Run;
use proptest::prelude::*;

/// Try every size from the largest; then count pages one by one until the next larger size would fit.
fn naive(sizes: u64, iova: u64, phys: u64, len: u64) -> Option<Run> {
    let fits = |size: u64, at: u64, left: u64| {
        sizes & size != 0
            && (iova + at).is_multiple_of(size)
            && (phys + at).is_multiple_of(size)
            && left >= size
    };
    let page_size = (0..63).rev().map(|bit| 1u64 << bit).find(|&size| fits(size, 0, len))?;
    let next = (0..63).map(|bit| 1u64 << bit).find(|&size| size > page_size && sizes & size != 0);
    let mut count = 0;
    let mut at = 0;
    while len - at >= page_size {
        if let Some(next) = next
            && count > 0
            && fits(next, at, len - at)
        {
            break;
        }
        at += page_size;
        count += 1;
    }
    Some(Run { page_size, count })
}

proptest! {
    #[test]
    fn pick_is_iommu_pgsize(
        sizes in prop_oneof![Just(0x4020_1000u64), Just(0x1ff_f000), Just(0x20_1000), Just(0x1000), 0u64..1 << 26],
        iova_page in 0u64..1 << 14,
        phys_page in 0u64..1 << 14,
        same_offset: bool,
        len_pages in 0u64..3000,
        odd_bytes in prop_oneof![4 => Just(0u64), 1 => 1u64..4096],
    ) {
        let iova = iova_page << 12;
        let phys = if same_offset { iova + (1 << 30) } else { phys_page << 12 };
        let len = (len_pages << 12) + odd_bytes;
        prop_assert_eq!(PageSizes::from_bits(sizes).pick(iova, phys, len), naive(sizes, iova, phys, len));
    }
}

#[test]
fn nothing_fits_an_address_below_the_smallest_page() {
    let sizes = PageSizes::from_bits(0x1000);
    assert_eq!(sizes.pick(0x800, 0, 0x1000), None);
    assert_eq!(sizes.pick(0, 0, 0xfff), None);
    assert_eq!(sizes.pick(0, 0, 0x1fff), Some(Run { page_size: 0x1000, count: 1 }));
    assert_eq!(sizes.smallest(), 0x1000);
    assert_eq!(PageSizes::from_bits(0).smallest(), 0);
}
