//! README.md says how many lines of code a kernel brings: it must stay true.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const README: &str = include_str!("../README.md");

/// Lines that are neither empty nor comments alone.
fn count(path: &Path) -> usize {
    let text = fs::read_to_string(path).unwrap();
    let code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    text.lines().filter(code).count()
}

#[test]
fn the_lines_that_a_kernel_brings_are_as_many_as_the_readme_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernel");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let counted: BTreeMap<String, usize> = files
        .map(|path| (format!("`src/kernel/{}`", path.file_name().unwrap().display()), count(&path)))
        .collect();
    // Rows of the table: the file, the count, what it is.
    let said: BTreeMap<String, usize> = README
        .lines()
        .filter(|line| line.starts_with("| `src/kernel/"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (cells[1].to_owned(), cells[2].parse().unwrap())
        })
        .collect();
    assert_eq!(said, counted);
    let sum: usize = counted.values().sum();
    assert!(README.contains(&format!("| together | {sum} | |")), "together they are {sum}");
}
