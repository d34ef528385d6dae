//! The program `groups` on a copy of a guest's sysfs, as a person runs it, against what the guest's kernel said.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::workspace::{cargo, target};

/// Groups by their members, in order.
pub(super) type Partition = BTreeSet<Vec<String>>;

/// The program.
pub(super) struct Groups(PathBuf);

impl Groups {
    pub(super) fn build() -> Result<Self, String> {
        let status = cargo().args(["build", "--package", "examples", "--bin", "groups"]).status();
        match status {
            Ok(status) if status.success() => Ok(Self(target().join("debug/groups"))),
            Ok(status) => Err(format!("building groups: {status}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What the program says to a person, when the groups that it forms are Linux's.
    ///
    /// # Errors
    /// Otherwise: both groupings as far as they differ, and what it says of a pair of each.
    pub(super) fn compare(&self, sysfs: &Path, linux: &Partition) -> Result<String, String> {
        let here = partition(&self.run(sysfs, &["--json"])?)?;
        if here == *linux {
            return self.run(sysfs, &[]);
        }
        let mut said = String::from("the groups differ");
        let sides =
            [("formed by Linux, not here", linux, &here), ("formed here, not by Linux", &here, linux)];
        for (title, one, other) in sides {
            for group in one.difference(other) {
                said.push_str(&format!("\n{title}: {}", group.join(" ")));
                if let Some((first, second)) = parted(group, other) {
                    said.push_str(&format!("\n  {}", self.run(sysfs, &["--why", first, second])?.trim_end()));
                }
            }
        }
        Err(said)
    }

    /// What the program prints. A word on standard error says that it could not read everything: then nothing is proven.
    fn run(&self, sysfs: &Path, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.0).arg("--sysfs").arg(sysfs).args(arguments).output();
        let output = output.map_err(|error| format!("{}: {error}", self.0.display()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || !complaint.is_empty() {
            return Err(format!("groups: {}, {}", output.status, complaint.trim_end()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Groups from `{"groups": [["0000:00:01.0", …], …]}`.
fn partition(json: &str) -> Result<Partition, String> {
    let value: Value = serde_json::from_str(json).map_err(|error| format!("groups --json: {error}"))?;
    serde_json::from_value(value["groups"].clone()).map_err(|error| format!("groups --json: {error}"))
}

/// Two of a group that are apart in another grouping.
fn parted<'a>(group: &'a [String], other: &Partition) -> Option<(&'a str, &'a str)> {
    let (first, rest) = group.split_first()?;
    let with_first = other.iter().find(|members| members.contains(first));
    let apart = rest.iter().find(|member| !with_first.is_some_and(|members| members.contains(member)))?;
    Some((first, apart))
}

#[cfg(test)]
mod tests {
    use super::{Partition, parted, partition};

    fn groups(groups: &[&[&str]]) -> Partition {
        groups.iter().map(|group| group.iter().map(|&member| member.into()).collect()).collect()
    }

    #[test]
    fn json_becomes_groups() {
        let read = partition(r#"{"groups": [["0000:00:01.0"], ["0000:00:02.0", "0000:01:00.0"]]}"#);
        assert_eq!(read, Ok(groups(&[&["0000:00:01.0"], &["0000:00:02.0", "0000:01:00.0"]])));
        assert!(partition("{}").is_err());
        assert!(partition("").is_err());
    }

    #[test]
    fn a_pair_shows_where_two_groupings_differ() {
        let other = groups(&[&["a", "b"], &["c"]]);
        assert_eq!(parted(&["a", "b", "c"].map(String::from), &other), Some(("a", "c")));
        assert_eq!(parted(&["a", "b"].map(String::from), &other), None);
        assert_eq!(parted(&["a"].map(String::from), &other), None);
        // Not even in the other one.
        assert_eq!(parted(&["d", "a"].map(String::from), &other), Some(("d", "a")));
    }
}
