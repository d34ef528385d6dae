//! Mistakes that do not compile, one a case; `compile_pass` has each without its mistake.
//!
//! What the compiler says stands beside the case. When it says it in other words,
//! `TRYBUILD=overwrite cargo test -p dma-api --test compile_fail` writes them again, to be read before they are kept.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use trybuild::TestCases;

const CASES: &str = "tests/compile_fail";

/// The compiler whose words stand beside the cases. Of what another one says only the codes of the errors are compared.
const WORDS_OF: &str = "rustc 1.95.0 ";

/// Names the folder to the child of a test that compiles copies.
const COPIES: &str = "DMA_API_COMPILE_FAIL_COPIES";

#[test]
fn mistakes_do_not_compile() {
    if compiler().starts_with(WORDS_OF) {
        TestCases::new().compile_fail(format!("{CASES}/*.rs"));
    } else {
        compare_codes(&copies("words"));
    }
}

/// So that a new compiler finds a test that works.
#[test]
fn with_another_compiler_the_codes_are_compared() {
    let copies = copies("codes");
    compare_codes(&copies);
    // This compiles.
    fs::copy("tests/compile_pass/used_after_unmap.rs", copies.join("used_after_unmap.rs")).unwrap();
    assert!(!compile_in_child(&copies));
}

/// What the others run in a process of its own, since `TRYBUILD` holds for a whole process.
#[test]
fn child() {
    if let Some(copies) = env::var_os(COPIES) {
        TestCases::new().compile_fail(Path::new(&copies).join("*.rs"));
    }
}

/// Whether no file of a folder compiles. What the compiler says is written beside them.
fn compile_in_child(folder: &Path) -> bool {
    let mut test = Command::new(env::current_exe().unwrap());
    test.args(["--exact", "child"]).env(COPIES, folder).env("TRYBUILD", "overwrite");
    test.output().unwrap().status.success()
}

fn compare_codes(copies: &Path) {
    assert!(compile_in_child(copies));
    let mut compared = 0;
    for case in sources(Path::new(CASES)) {
        let words = case.with_extension("stderr");
        assert_eq!(codes(&copies.join(words.file_name().unwrap())), codes(&words), "{}", case.display());
        compared += 1;
    }
    assert_ne!(compared, 0);
}

/// The codes of the errors that a compiler reported.
fn codes(words: &Path) -> BTreeSet<String> {
    let words = fs::read_to_string(words).unwrap();
    let code = |line: &str| Some(line.strip_prefix("error[")?.split_once(']')?.0.to_owned());
    let codes: BTreeSet<_> = words.lines().filter_map(code).collect();
    assert!(!codes.is_empty(), "{words}");
    codes
}

/// The cases alone, in a folder of their own.
fn copies(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile_fail").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    for case in sources(Path::new(CASES)) {
        fs::copy(&case, folder.join(case.file_name().unwrap())).unwrap();
    }
    folder
}

fn sources(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
}

fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    String::from_utf8(Command::new(rustc).arg("--version").output().unwrap().stdout).unwrap()
}
