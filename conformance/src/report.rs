//! Running the list.

use alloc::vec::Vec;
use core::fmt;

use crate::bench::{Bench, Waiver};
use crate::checks::{CHECKS, Failure};

/// How a check ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold, as the backend said.
    Waived(Waiver),
    /// It does not hold.
    Failed(Failure),
    /// It holds, though the backend said that it does not: the waiver is wrong.
    WaivedButHolds(Waiver),
    /// There is no such check: the waiver is wrong.
    WaivedButUnknown(Waiver),
}

/// How all checks ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Each check by its name, in the order of the list.
    pub outcomes: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Whether every check holds or is rightly waived.
    pub fn passed(&self) -> bool {
        let good = |outcome: &Outcome| matches!(outcome, Outcome::Passed | Outcome::Waived(_));
        self.outcomes.iter().all(|(_, outcome)| good(outcome))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.outcomes {
            match outcome {
                Outcome::Passed => writeln!(f, "{name}: passed")?,
                Outcome::Waived(waiver) => writeln!(f, "{name}: waived: {}", waiver.reason)?,
                Outcome::Failed(failure) => writeln!(f, "{name}: FAILED: {failure}")?,
                Outcome::WaivedButHolds(waiver) => {
                    writeln!(f, "{name}: FAILED: it holds, though it is waived: {}", waiver.reason)?;
                }
                Outcome::WaivedButUnknown(waiver) => {
                    writeln!(
                        f,
                        "{name}: FAILED: no check has this name, but it is waived: {}",
                        waiver.reason
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Runs every check of the list, one after the other, waived or not.
pub fn run(bench: &dyn Bench) -> Report {
    let mut report = Report::default();
    for check in CHECKS {
        let waiver = bench.waivers().iter().find(|waiver| waiver.check == check.name).copied();
        let outcome = match ((check.run)(bench), waiver) {
            (Ok(()), None) => Outcome::Passed,
            (Ok(()), Some(waiver)) => Outcome::WaivedButHolds(waiver),
            (Err(_), Some(waiver)) => Outcome::Waived(waiver),
            (Err(failure), None) => Outcome::Failed(failure),
        };
        report.outcomes.push((check.name, outcome));
    }
    for waiver in bench.waivers() {
        if !CHECKS.iter().any(|check| check.name == waiver.check) {
            report.outcomes.push((waiver.check, Outcome::WaivedButUnknown(*waiver)));
        }
    }
    report
}
