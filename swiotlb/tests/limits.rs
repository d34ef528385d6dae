//! The longest mapping that a pool promises: it is there wherever the original is, and one byte more is not.

mod common;

use common::{Host, Original, SEGMENT, pool, trusted};
use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use proptest::prelude::*;
use swiotlb::Swiotlb;

/// Maps and unmaps `len` bytes at an address that ends in these bits.
fn map(
    pool: &Swiotlb,
    parms: &DeviceParms,
    low_bits: usize,
    len: usize,
    alloc_align_mask: u64,
) -> Result<(), DmaError> {
    let (original, dir, attrs) =
        (Original::new(low_bits, &vec![0; len]), Direction::ToDevice, Attrs::empty());
    // SAFETY: the original outlives the mapping, which no device uses.
    let copy = unsafe { pool.map(parms, original.ptr(), len, alloc_align_mask, dir, attrs) }?;
    // SAFETY: mapped just now, ended once.
    unsafe { pool.unmap(copy, len, dir, attrs) };
    Ok(())
}

fn masks(kept: u64, boundary: u64) -> DeviceParms {
    let parms = trusted();
    parms.set_min_align_mask(kept);
    parms.set_segment_boundary(boundary);
    parms
}

#[test]
fn bits_to_keep_as_wide_as_the_device_s_window_leave_one_byte() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let parms = masks(0xfff, 0xfff);
    assert_eq!(pool.max_mapping_size(&parms), 1);
    // The last byte of a page stays there: whatever follows is beyond the window.
    map(&pool, &parms, 0xfff, 1, 0).unwrap();
    let refused = map(&pool, &parms, 0xfff, 2, 0);
    assert_eq!(refused, Err(DmaError::TooLargeForBounce { size: 2, max: 1 }));
    // A page's whole window is there for who begins at its first byte.
    map(&pool, &parms, 0, 0x1000, 0).unwrap();
}

#[test]
fn more_bits_to_keep_than_a_segment_has_are_refused_by_name() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let parms = masks(0xf_ffff, 0xffff_ffff);
    assert_eq!(pool.max_mapping_size(&parms), 0);
    // Somewhere in it each value of the two bits above a segment's.
    let original = Original::new(0, &vec![0; 4 * SEGMENT + 8]);
    let mut answers = [0; 2];
    for quarter in 0..4 {
        // SAFETY: in bounds.
        let at = unsafe { original.ptr().add(quarter * SEGMENT) };
        // SAFETY: the original outlives the mapping, which no device uses.
        match unsafe { pool.map(&parms, at, 8, 0, Direction::ToDevice, Attrs::empty()) } {
            Ok(copy) => {
                assert_eq!(copy.get() & 0xf_ffff, at.addr().get() as u64 & 0xf_ffff);
                answers[0] += 1;
            }
            Err(error) => {
                assert_eq!(error, DmaError::InvalidAlignment(0xf_ffff));
                answers[1] += 1;
            }
        }
    }
    assert_eq!(answers, [1, 3], "a pool of one segment has one value of those bits");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_longest_mapping_is_there_everywhere_and_one_byte_more_is_not(
        kept_bits in 0..18_u32,
        kept_holes in any::<u64>(),
        contiguous in any::<bool>(),
        boundary_bits in 0..64_u32,
        align_bits in prop_oneof![Just(0), Just(10), Just(12), Just(14), Just(18)],
        low_bits in 0..SEGMENT,
    ) {
        let kept = ((1 << kept_bits) - 1) & if contiguous { u64::MAX } else { kept_holes };
        let (boundary, align_mask) = (u64::MAX >> boundary_bits, (1 << align_bits) - 1);
        let host = Host::new();
        let pool = pool(&host, SEGMENT, 1);
        let parms = masks(kept, boundary);
        let max = pool.max_mapping_size(&parms);
        prop_assert!(max >= 1);
        for low_bits in [low_bits, SEGMENT - 1] {
            prop_assert_eq!(map(&pool, &parms, low_bits, max, align_mask), Ok(()));
        }
        // At the worst address.
        let refused = Err(DmaError::TooLargeForBounce { size: max + 1, max });
        prop_assert_eq!(map(&pool, &parms, SEGMENT - 1, max + 1, align_mask), refused);
    }
}
