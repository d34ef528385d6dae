//! What the kernel says of an IOMMU, read from bytes as include/uapi/linux/vfio.h lays them out.

use backend_vfio::IommuInfo;
use platform::{DmaAddr, PageSizes};

/// Header (24 bytes), then the ranges of an AMD machine (id 1) and the room that is left (id 3).
const AMD: [u8; 104] = {
    let mut bytes = [0; 104];
    // argsz 104, flags: page sizes and capabilities.
    bytes[0] = 104;
    bytes[4] = 3;
    // Page sizes: 4 KiB and 2 MiB.
    bytes[8 + 1] = 0x10;
    bytes[8 + 2] = 0x20;
    // The first capability is at 24.
    bytes[16] = 24;
    // id 1, version 1, next at 88; three ranges, not in order.
    bytes[24] = 1;
    bytes[26] = 1;
    bytes[28] = 88;
    bytes[32] = 3;
    // 0 to 0xfedf_ffff
    bytes[48] = 0xff;
    bytes[49] = 0xff;
    bytes[50] = 0xdf;
    bytes[51] = 0xfe;
    // 0x100_0000_0000 to 0x1ff_ffff_ffff
    bytes[56 + 5] = 0x01;
    let mut at = 64;
    while at < 69 {
        bytes[at] = 0xff;
        at += 1;
    }
    bytes[69] = 0x01;
    // 0xfef0_0000 to 0xfc_ffff_ffff
    bytes[72 + 2] = 0xf0;
    bytes[72 + 3] = 0xfe;
    bytes[80] = 0xff;
    bytes[81] = 0xff;
    bytes[82] = 0xff;
    bytes[83] = 0xff;
    bytes[84] = 0xfc;
    // id 3, version 1, the last; 65,535 mappings. (The second half of the count's word is padding.)
    bytes[88] = 3;
    bytes[90] = 1;
    bytes[96] = 0xff;
    bytes[97] = 0xff;
    bytes
};

#[test]
fn ranges_page_sizes_and_room_are_what_the_kernel_says() {
    let info = IommuInfo::parse(&AMD).unwrap();
    assert_eq!(info.page_sizes, PageSizes::from_bits(0x20_1000));
    assert_eq!(
        info.ranges,
        [0..=0xfedf_ffff, 0xfef0_0000..=0xfc_ffff_ffff, 0x100_0000_0000..=0x1ff_ffff_ffff]
    );
    assert_eq!(info.available, Some(65_535));
    assert_eq!(info.aperture(), (DmaAddr::new(0), DmaAddr::new(0x1ff_ffff_ffff)));
}

#[test]
fn holes_between_the_ranges_are_reserved() {
    let reserved = IommuInfo::parse(&AMD).unwrap().reserved();
    let holes: Vec<_> = reserved.iter().map(|region| (region.start.get(), region.len)).collect();
    assert_eq!(holes, [(0xfee0_0000, 0x10_0000), (0xfd_0000_0000, 0x3_0000_0000)]);
}

#[test]
fn an_answer_without_ranges_is_refused_not_guessed() {
    let mut without = AMD;
    without[4] = 1;
    assert_eq!(IommuInfo::parse(&without), None, "no capabilities");
    let mut other = AMD;
    other[24] = 9;
    assert_eq!(IommuInfo::parse(&other), None, "no ranges");
    let mut pages = AMD;
    pages[8..16].fill(0);
    assert_eq!(IommuInfo::parse(&pages), None, "no page sizes");
}

#[test]
fn a_chain_that_leaves_the_answer_or_goes_round_ends() {
    for len in 0..AMD.len() {
        let _ = IommuInfo::parse(&AMD[..len]);
    }
    let mut round = AMD;
    round[88 + 4] = 24;
    let info = IommuInfo::parse(&round).unwrap();
    assert_eq!(info.aperture().1, DmaAddr::new(0x1ff_ffff_ffff));
    let mut beyond = AMD;
    beyond[28..32].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(IommuInfo::parse(&beyond).unwrap().available, None);
    let mut many = AMD;
    many[32..36].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(IommuInfo::parse(&many), None);
}
