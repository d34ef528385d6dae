//! What a backend may say that it does not keep, and when that is wrong.

mod common;

use common::Machine::Maps;
use common::{Fault, Toy};
use conformance::{Outcome, Report, run};

fn outcome<'a>(report: &'a Report, check: &str) -> &'a Outcome {
    let found: Vec<_> = report.outcomes.iter().filter(|(name, _)| *name == check).collect();
    assert_eq!(found.len(), 1, "{check}\n{report}");
    &found[0].1
}

#[test]
fn a_rule_that_does_not_hold_is_waived_by_name_alone() {
    let toy = Toy::new(Maps, Some(Fault::IgnoresDirection)).waiving("to_device_refuses_writes");
    let report = run(&toy);
    assert!(matches!(outcome(&report, "to_device_refuses_writes"), Outcome::Waived(_)));
    assert!(matches!(outcome(&report, "from_device_refuses_reads"), Outcome::Failed(_)));
    assert!(!report.passed());
    let report = run(&toy.waiving("from_device_refuses_reads"));
    assert!(report.passed(), "{report}");
    let shown = report.to_string();
    assert!(shown.contains("from_device_refuses_reads: waived: the test says so\n"), "{shown}");
    assert!(shown.contains("mask_is_kept: passed\n"), "{shown}");
}

#[test]
fn a_waived_rule_that_holds_is_a_failure() {
    let report = run(&Toy::new(Maps, None).waiving("mask_is_kept"));
    assert!(matches!(outcome(&report, "mask_is_kept"), Outcome::WaivedButHolds(_)));
    assert!(!report.passed());
    assert!(report.to_string().contains("mask_is_kept: FAILED: it holds, though it is waived"));
}

#[test]
fn a_waiver_of_no_rule_is_a_failure() {
    let report = run(&Toy::new(Maps, None).waiving("mask_is_kpet"));
    assert!(matches!(outcome(&report, "mask_is_kpet"), Outcome::WaivedButUnknown(_)));
    assert!(!report.passed());
    assert!(report.to_string().contains("mask_is_kpet: FAILED: no check has this name"));
}

#[test]
fn a_failure_says_why() {
    let report = run(&Toy::new(Maps, Some(Fault::NeverRunsOut)));
    assert!(report.to_string().contains("exhaustion_recovers: FAILED: nothing ever runs out\n"), "{report}");
    let report = run(&Toy::new(Maps, Some(Fault::MisnamesRunningOut)));
    let why = "exhaustion_recovers: FAILED: running out is reported as: out of memory\n";
    assert!(report.to_string().contains(why), "{report}");
}
