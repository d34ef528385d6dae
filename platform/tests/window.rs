//! What a window knows of RAM: whole ranges in it, and nothing about what is outside.

use platform::{PhysAddr, Window};

fn at(address: usize) -> *const u8 {
    std::ptr::without_provenance(address)
}

#[test]
fn what_lies_in_the_ram_as_a_whole_is_translated() {
    // Physical 0x10_0000 to 0x18_0000 is seen at 0x7010_0000.
    // SAFETY: nothing is accessed.
    let window = unsafe { Window::new(0x7000_0000).with_ram(PhysAddr::new(0x10_0000), 0x8_0000) };
    let phys = |address, len| window.translate(at(address), len).map(PhysAddr::get);
    assert_eq!(phys(0x7010_0000, 0x8_0000), Some(0x10_0000), "all of it");
    assert_eq!(phys(0x7012_3456, 1), Some(0x12_3456));
    assert_eq!(phys(0x7017_ffff, 1), Some(0x17_ffff), "the last byte");
    assert_eq!(phys(0x7017_ffff, 2), None, "one byte more");
    assert_eq!(phys(0x7018_0000, 1), None);
    assert_eq!(phys(0x700f_ffff, 2), None, "one byte before");
    assert_eq!(phys(0x7012_0000, usize::MAX), None, "the end wraps");
    assert_eq!(phys(1, usize::MAX), None);
}

#[test]
fn a_window_that_was_told_nothing_knows_nothing() {
    // SAFETY: nothing is accessed.
    let window = unsafe { Window::new(0) };
    assert_eq!(window.translate(at(0x1000), 1), None);
    assert_eq!(window.translate(at(0), 0), None);
}
