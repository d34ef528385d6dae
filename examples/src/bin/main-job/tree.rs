//! The machine's PCI tree, drawn, with the group of each function.

use std::fmt;

use backend::{Description, FunctionDescription, GroupDescription};
use examples::tree::{Branch, draw};
use platform::pci::PciAddress;

/// A machine to be drawn.
pub(crate) struct Tree<'a>(pub(crate) &'a Description);

impl Tree<'_> {
    fn group(&self, function: &FunctionDescription) -> Option<&GroupDescription> {
        self.0.groups.iter().find(|group| group.members.contains(&function.address))
    }

    fn behind(&self, bridge: Option<PciAddress>) -> Vec<Branch> {
        let functions = self.0.functions.iter().filter(|function| function.bridge == bridge);
        let branch = |function: &FunctionDescription| {
            let note = self.group(function).map(|group| {
                let kind = group.domain_type.map_or_else(|| "none".into(), |kind| kind.to_string());
                format!("group {}, {kind}", group.id)
            });
            Branch {
                label: format!("{} {}", function.address, function.what),
                note: note.unwrap_or_default(),
                below: self.behind(Some(function.address)),
            }
        };
        functions.map(branch).collect()
    }
}

impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        draw(f, &self.behind(None), "  ")?;
        for group in &self.0.groups {
            for why in &group.why {
                writeln!(f, "  group {} is one because {why}", group.id)?;
            }
        }
        Ok(())
    }
}
