//! The documentation's table of what each backend keeps is the code's.

use std::fmt::Write;

use conformance::CHECKS;
use conformance::modes::MODES;

fn table() -> String {
    let mut table = String::from("| check |");
    MODES.iter().for_each(|mode| write!(table, " {} |", mode.name).unwrap());
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(MODES.len()));
    for check in CHECKS {
        write!(table, "\n| `{}` |", check.name).unwrap();
        for mode in MODES {
            let waived = mode.waivers.iter().any(|waiver| waiver.check == check.name);
            table.push_str(if waived { " no |" } else { " yes |" });
        }
    }
    table.push('\n');
    for mode in MODES {
        for waiver in mode.waivers {
            write!(table, "\n- {}, `{}`: {}.", mode.name, waiver.check, waiver.reason).unwrap();
        }
    }
    table
}

#[test]
fn the_table_of_the_documentation_is_right() {
    let table = table();
    assert!(include_str!("../README.md").contains(&table), "README.md has another table than:\n{table}");
}

#[test]
fn waivers_are_of_checks_that_there_are() {
    let waivers = MODES.iter().flat_map(|mode| mode.waivers);
    for waiver in waivers {
        assert!(CHECKS.iter().any(|check| check.name == waiver.check), "{}", waiver.check);
    }
}
