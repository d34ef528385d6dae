//! Whatever a unit writes into its event log, it decodes, prints and becomes a fault or none.

#![no_main]

use amd_vi::event::Event;
use amd_vi::fault;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|entry: [u64; 2]| {
    let event = Event::from_words(entry[0], entry[1]);
    assert!(event.to_string().contains(event.code().name()));
    // An address is the device's or a structure's, never both.
    assert!(event.iova().is_none() || event.structure().is_none());
    if let Some(fault) = fault(7, event) {
        assert_eq!(Some(fault.requester.id), event.device());
        assert_eq!(fault.requester.segment, 7);
        assert_eq!(fault.pasid, event.pasid());
        assert!(!fault.to_string().is_empty());
        assert!(!event.halts_commands());
    }
});
