//! The machine's PCI tree, drawn, with the group of each function.

use std::fmt;

use backend::{Description, FunctionDescription, GroupDescription};
use platform::pci::PciAddress;

/// A machine to be drawn.
pub(crate) struct Tree<'a>(pub(crate) &'a Description);

/// Where the groups begin, in characters.
const GROUP_COLUMN: usize = 48;

impl Tree<'_> {
    fn behind(&self, bridge: Option<PciAddress>) -> Vec<&FunctionDescription> {
        self.0.functions.iter().filter(|function| function.bridge == bridge).collect()
    }

    fn group(&self, function: &FunctionDescription) -> Option<&GroupDescription> {
        self.0.groups.iter().find(|group| group.members.contains(&function.address))
    }

    /// Draws what is behind a bridge. `indent` is what stands before it.
    fn draw(&self, f: &mut fmt::Formatter<'_>, bridge: Option<PciAddress>, indent: &str) -> fmt::Result {
        let functions = self.behind(bridge);
        for (index, function) in functions.iter().enumerate() {
            let last = index + 1 == functions.len();
            let line =
                format!("{indent}{} {} {}", if last { "└─" } else { "├─" }, function.address, function.what);
            match self.group(function) {
                Some(group) => {
                    let kind = group.domain_type.map_or_else(|| "none".into(), |kind| kind.to_string());
                    writeln!(f, "{line:GROUP_COLUMN$} group {}, {kind}", group.id)?;
                }
                None => writeln!(f, "{line}")?,
            }
            let below = format!("{indent}{}", if last { "   " } else { "│  " });
            self.draw(f, Some(function.address), &below)?;
        }
        Ok(())
    }
}

impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.draw(f, None, "  ")?;
        for group in &self.0.groups {
            for why in &group.why {
                writeln!(f, "  group {} is one because {why}", group.id)?;
            }
        }
        Ok(())
    }
}
