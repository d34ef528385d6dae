//! A drawn tree.

use std::fmt::{self, Write};

/// A line of a tree, and what hangs below it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Branch {
    /// What it is.
    pub label: String,
    /// What stands behind it, in a column of its own.
    pub note: String,
    /// What hangs below it.
    pub below: Vec<Branch>,
}

/// Where notes begin, in characters.
const NOTE_COLUMN: usize = 48;

/// Draws branches, each line behind `indent`.
///
/// # Errors
/// That of the writer.
pub fn draw(out: &mut dyn Write, branches: &[Branch], indent: &str) -> fmt::Result {
    for (index, branch) in branches.iter().enumerate() {
        let last = index + 1 == branches.len();
        let line = format!("{indent}{} {}", if last { "└─" } else { "├─" }, branch.label);
        if branch.note.is_empty() {
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{line:NOTE_COLUMN$} {}", branch.note)?;
        }
        let below = format!("{indent}{}", if last { "   " } else { "│  " });
        draw(out, &branch.below, &below)?;
    }
    Ok(())
}
