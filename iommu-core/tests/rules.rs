//! The table of Linux's rules names tests and files that exist.

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("LINUX.md")).unwrap();
    let words = || table.split('`').skip(1).step_by(2);
    let mut named = 0;
    for (file, test) in words().filter_map(|word| word.split_once("::")) {
        // `PageSizes::pick` is no test.
        if !file.starts_with(|letter: char| letter.is_lowercase()) {
            continue;
        }
        let source = fs::read_to_string(root.join("tests").join(file).with_extension("rs"));
        let source = source.unwrap_or_else(|_| panic!("there is no tests/{file}.rs"));
        assert!(source.contains(&format!("#[test]\nfn {test}(")), "tests/{file}.rs has no {test}");
        named += 1;
    }
    assert!(named > 80, "{named} tests are named");
    for file in words().filter(|word| word.ends_with(".rs") && !word.starts_with("tests/")) {
        assert!(root.join("src").join(file).exists(), "there is no src/{file}");
    }
}
