//! What the cases of `compile_fail` are without their mistake: it compiles, so that none of them fails for another reason.
#![allow(dead_code)]

mod buffer_used_while_mapped;
mod device_dropped_while_mapped;
mod freed_while_mapped;
mod from_device_bool;
mod from_device_bool_scoped;
mod from_device_borrowed;
mod from_device_shared;
mod read_while_mapped;
mod scoped_sent_out;
mod scoped_slice_used;
mod shared_written;
mod to_device_padded;
mod to_device_uninitialised;
mod used_after_unmap;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// The cases in a folder, by name.
fn cases(folder: &str) -> BTreeSet<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()))
        .filter(|name| name != "main")
        .collect()
}

#[test]
fn each_case_differs_from_what_compiles_in_one_line() {
    let here = lines(Path::new("tests/compile_pass/main.rs"));
    let modules = here.iter().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let compiled: BTreeSet<_> = modules.map(str::to_owned).collect();
    assert_eq!(cases("tests/compile_fail"), compiled);
    assert_eq!(cases("tests/compile_pass"), compiled);
    for case in &compiled {
        let [mistaken, correct] = ["compile_fail", "compile_pass"]
            .map(|folder| lines(Path::new(&format!("tests/{folder}/{case}.rs"))));
        assert_eq!(mistaken.len(), correct.len(), "{case}");
        assert_eq!(mistaken.iter().zip(&correct).filter(|(a, b)| a != b).count(), 1, "{case}");
    }
}
