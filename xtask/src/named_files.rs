//! The documents at the root name files and what is in them: both must be there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::workspace::root;

/// Checks every document in the root folder. A name is a code span that ends in `.rs` and has a folder (patterns with a star
/// are none). In a table, every other code span of the cell that names a file must be a word of one of the cell's files, or
/// a path of words of which the last one is. What follows `Linux:` is Linux's.
pub(crate) fn run() -> Result<(), String> {
    let root = root();
    let entries = std::fs::read_dir(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let mut documents: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    let (mut named, mut wrong) = (0, Vec::new());
    for document in &documents {
        let text = std::fs::read_to_string(document);
        let text = text.map_err(|error| format!("{}: {error}", document.display()))?;
        let name = document.file_name().unwrap_or_default().to_string_lossy();
        let found = check(&root, &text);
        named += found.named;
        wrong.extend(found.wrong.into_iter().map(|(line, what)| format!("{name}:{line}: {what}")));
    }
    wrong.iter().for_each(|what| println!("{what}"));
    println!("{named} names of files in {} documents", documents.len());
    match (named, wrong.len()) {
        (0, _) => Err("no document names a file".into()),
        (_, 0) => Ok(()),
        (_, count) => Err(format!("{count} names of what is not there")),
    }
}

#[derive(Default)]
struct Found {
    named: usize,
    /// Line and what is wrong with it.
    wrong: Vec<(usize, String)>,
}

fn check(root: &Path, text: &str) -> Found {
    let mut found = Found::default();
    let mut files = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let table = line.starts_with('|');
        let cells: Vec<&str> = if table { line.split('|').collect() } else { vec![line] };
        for cell in cells {
            let ours = cell.split("Linux:").next().unwrap_or(cell);
            let paths = code_spans(cell).filter(|span| is_file(span));
            let items = code_spans(ours).filter(|span| is_item(span));
            let mut contents = Vec::new();
            for path in paths {
                found.named += 1;
                let content = files
                    .entry(path.to_string())
                    .or_insert_with(|| std::fs::read_to_string(root.join(path)).ok());
                match content {
                    Some(content) => contents.push(content.clone()),
                    None => found.wrong.push((number + 1, format!("there is no file {path}"))),
                }
            }
            if !table || contents.is_empty() {
                continue;
            }
            for item in items {
                let word = item.rsplit("::").next().unwrap_or(item);
                if !contents.iter().any(|content| has_word(content, word)) {
                    found.wrong.push((number + 1, format!("none of the cell's files has {item}")));
                }
            }
        }
    }
    found
}

fn code_spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn is_file(span: &str) -> bool {
    span.ends_with(".rs") && span.contains('/') && !span.contains('*')
}

fn is_item(span: &str) -> bool {
    span.chars().all(|letter| is_letter(letter) || letter == ':')
}

fn is_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_letter) && !after.is_some_and(is_letter)
    })
}

#[cfg(test)]
mod tests {
    use super::{check, root};

    fn wrong(text: &str) -> Vec<String> {
        check(&root(), text).wrong.into_iter().map(|(line, what)| format!("{line}: {what}")).collect()
    }

    #[test]
    fn a_file_that_is_not_there_is_found() {
        assert_eq!(wrong("see `xtask/src/named_files.rs` and `tests/loom_*.rs`"), Vec::<String>::new());
        assert_eq!(wrong("first\nsee `xtask/src/gone.rs`"), ["2: there is no file xtask/src/gone.rs"]);
    }

    #[test]
    fn an_item_that_is_not_in_its_cells_file_is_found() {
        assert_eq!(wrong("| `elsewhere` | `Steps::run`, `xtask/src/steps.rs` |"), Vec::<String>::new());
        assert_eq!(
            wrong("| x | `Steps::ru`, `xtask/src/steps.rs` |"),
            ["1: none of the cell's files has Steps::ru"]
        );
    }
}
