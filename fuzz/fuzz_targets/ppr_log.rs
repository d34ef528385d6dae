//! Whatever a unit writes into its log of page requests, it decodes, prints and becomes a request or none.

#![no_main]

use amd_vi::ppr::PprEntry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|entry: [u64; 2]| {
    let entry = PprEntry::from_words(entry[0], entry[1]);
    assert!(entry.to_string().starts_with("PPR logged ["));
    if let Some(request) = entry.request(7) {
        assert_eq!((request.device.segment, request.device.id), (7, entry.device()));
        // Only what names a PASID that is one can be answered with a page.
        assert_eq!(request.pasid, entry.pasid());
        assert!(request.pasid.is_some_and(|pasid| pasid != 0 && pasid >> 20 == 0));
        assert!(request.group < 1 << 9);
        assert_eq!(request.address.get() & 0xfff, 0);
    }
});
