//! The list on a machine that is right, and on machines that are wrong in one way each: exactly the checks that this breaks
//! fail.

mod common;

use common::Machine::{self, Bounces, Maps};
use common::{Fault, Toy};
use conformance::{Bench, CHECKS, Outcome, Report, run};

fn failed(report: &Report) -> Vec<&'static str> {
    let bad = |outcome: &Outcome| !matches!(outcome, Outcome::Passed);
    report.outcomes.iter().filter(|(_, outcome)| bad(outcome)).map(|(name, _)| *name).collect()
}

/// Machines that are wrong in one way each, and the checks that this breaks.
const BROKEN: &[(Machine, Fault, &[&str])] = &[
    (Maps, Fault::IgnoresDirection, &["to_device_refuses_writes", "from_device_refuses_reads"]),
    (Maps, Fault::WritesWhatIsReadOnly, &["to_device_refuses_writes"]),
    (Maps, Fault::KeepsTranslations, &["just_unmapped_is_refused"]),
    (Maps, Fault::KeepsTranslationsForReads, &["just_unmapped_is_refused"]),
    (Maps, Fault::IgnoresMask, &["mask_is_kept"]),
    (Maps, Fault::IgnoresMaskOfCoherentMemory, &["mask_is_kept"]),
    (
        Maps,
        Fault::HandsOutPhysicalAddresses,
        &[
            "unmapped_is_refused",
            "just_unmapped_is_refused",
            "to_device_refuses_writes",
            "from_device_refuses_reads",
            "mask_is_kept",
            "exhaustion_recovers",
        ],
    ),
    (Maps, Fault::LetsUnmappedThrough, &["unmapped_is_refused"]),
    (Maps, Fault::NeverRunsOut, &["exhaustion_recovers"]),
    (Maps, Fault::MisnamesRunningOut, &["exhaustion_recovers"]),
    (Maps, Fault::NeverGivesAddressesBack, &["exhaustion_recovers"]),
    (Maps, Fault::SplitsCoherentMemory, &["coherent_is_seen_by_both"]),
    (Maps, Fault::CutsTheLastPage, &["heap_buffers_round_trip", "scatter_list_round_trip"]),
    (Maps, Fault::MixesSegmentsUp, &["scatter_list_round_trip"]),
    (Bounces, Fault::SyncDoesNothing, &["sync_shows_both_sides"]),
    (Bounces, Fault::SyncForDeviceDoesNothing, &["sync_shows_both_sides"]),
    (
        Bounces,
        Fault::LosesWhatTheCpuWrote,
        &[
            "to_device_round_trip",
            "bidirectional_round_trip",
            "heap_buffers_round_trip",
            "scatter_list_round_trip",
            "to_device_refuses_writes",
            "mask_is_kept",
            "exhaustion_recovers",
        ],
    ),
    (
        Bounces,
        Fault::LosesWhatTheDeviceWrote,
        &[
            "from_device_round_trip",
            "bidirectional_round_trip",
            "heap_buffers_round_trip",
            "scatter_list_round_trip",
        ],
    ),
    (Bounces, Fault::DoesNotFillTheCopy, &["from_device_round_trip"]),
];

#[test]
fn a_machine_that_is_right_keeps_every_rule() {
    for machine in [Maps, Bounces] {
        let toy = Toy::new(machine, None);
        let masks = || (toy.device().parms().streaming_mask(), toy.device().parms().coherent_mask());
        toy.device().set_streaming_mask(u64::MAX >> 8).unwrap();
        let before = masks();
        let report = run(&toy);
        assert!(report.passed(), "{machine:?}\n{report}");
        assert!(report.outcomes.iter().map(|(name, _)| *name).eq(CHECKS.iter().map(|check| check.name)));
        assert_eq!(failed(&report), [""; 0]);
        assert_eq!(toy.left(), (0, 0), "nothing stays mapped or taken");
        assert_eq!(masks(), before, "the device is as it was");
        assert!(run(&toy).passed(), "and again");
    }
}

#[test]
fn each_fault_breaks_its_checks_and_no_other() {
    for &(machine, fault, checks) in BROKEN {
        let report = run(&Toy::new(machine, Some(fault)));
        assert_eq!(failed(&report), checks, "{fault:?}\n{report}");
        assert!(!report.passed(), "{fault:?}");
    }
}

#[test]
fn each_check_can_fail() {
    let breakable: Vec<_> = BROKEN.iter().flat_map(|(_, _, checks)| checks.iter()).collect();
    for check in CHECKS {
        assert!(breakable.contains(&&check.name), "no fault here breaks {}", check.name);
    }
}
