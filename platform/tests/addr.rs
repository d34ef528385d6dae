//! Arithmetic on addresses.

use platform::{DmaAddr, PhysAddr};

#[test]
fn a_span_covers_whole_blocks_and_no_more() {
    let at = PhysAddr::new(0x1ffe);
    assert_eq!(at.span_in(1, 0x1000), Some(0x1000));
    assert_eq!(at.span_in(2, 0x1000), Some(0x1000), "up to the block's last byte");
    assert_eq!(at.span_in(3, 0x1000), Some(0x2000), "a byte of the next one");
    assert_eq!(DmaAddr::new(0x2000).span_in(0x1000, 0x1000), Some(0x1000));
    assert_eq!(DmaAddr::new(0x2000).span_in(0, 0x1000), Some(0));
    assert_eq!(at.span_in(7, 1), Some(7), "blocks of one byte");
}

#[test]
fn a_span_past_the_last_address_is_none() {
    let at = DmaAddr::new(u64::MAX);
    assert_eq!(at.span_in(u64::MAX, 0x1000), None);
    assert_eq!(at.span_in(u64::MAX - 0x1ffe, 0x1000), Some(u64::MAX - 0xfff));
    assert_eq!(at.span_in(u64::MAX - 0x1ffd, 0x1000), None);
    assert_eq!(at.span_in(1, 1 << 63), Some(1 << 63));
}
