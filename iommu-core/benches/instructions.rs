//! How many instructions the core adds to an operation, counted by callgrind in the steady state: the same on any machine of one
//! kind, however busy it is. Compared with `instructions.txt`: more than 5 % above it fails. With `IOMMU_CORE_INSTRUCTIONS=write`
//! the file is written anew. Without valgrind, or on other processors than x86-64, nothing is counted, and it says so.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::ptr::NonNull;
use std::{env, fs};

use common::{Machine, PAGE, Random, boot, fragmented, take};
use dma_api::{Attrs, Device, Direction};
use iommu_core::iova::IovaDomain;
use platform::{DmaAddr, Flushed, FrameRequest};

const BOTH: Direction = Direction::Bidirectional;
const ROUNDS: u64 = 1000;
const ROWS: [&str; 4] = [
    "map and unmap 4 KiB, strict",
    "map and unmap 4 KiB, lazy",
    "take and give back a page",
    "take 1 to 16 pages from the tree",
];

/// What callgrind counts: it is switched on by this name.
#[inline(never)]
fn counted(mut operation: impl FnMut()) {
    (0..ROUNDS).for_each(|_| operation());
}

#[inline(never)]
fn single(device: &Device, at: NonNull<u8>) {
    // SAFETY: the page outlives the mapping, which no device uses, and is unmapped once.
    unsafe {
        let address = device.map_single(at, PAGE, BOTH, Attrs::empty()).expect("there are addresses");
        device.unmap_single(address, PAGE, BOTH, Attrs::empty()).expect("the IOMMU answers");
    }
}

fn run_single(lazy: bool) {
    let Machine { device, iommu: _iommu } = &boot(lazy);
    device.set_mask(u64::MAX).expect("any mask will do");
    let memory = device.platform().alloc(FrameRequest::ONE).expect("memory");
    let at = NonNull::new(device.window().ptr(memory)).expect("not null");
    (0..ROUNDS).for_each(|_| single(device, at));
    counted(|| single(device, black_box(at)));
    // SAFETY: allocated above, and every mapping has ended.
    unsafe { device.platform().free(memory, PAGE) };
}

fn run_pair() {
    let last = DmaAddr::new((1 << 48) - 1);
    let iovas = IovaDomain::new(PAGE as u64, DmaAddr::new(0), last, 2).expect("there is memory");
    let pair = || {
        let at = iovas.alloc(black_box(PAGE as u64), last).expect("there are addresses");
        // SAFETY: nothing is ever mapped.
        iovas.free(black_box(at), PAGE as u64, &unsafe { Flushed::assert() });
    };
    pair();
    counted(pair);
}

fn run_tree() {
    let mut random = Random::new();
    let iovas = fragmented(1000, &mut random);
    counted(|| {
        black_box(take(&iovas, 1 + random.below(16)));
    });
}

/// Instructions of one operation, by running this program again under callgrind.
fn count(row: usize) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted*"])
        .arg(env::current_exe().ok()?)
        .env("IOMMU_CORE_RUN", row.to_string())
        .output()
        .ok()?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let total = told.lines().find_map(|line| line.split("Collected :").nth(1))?.trim().parse::<u64>().ok()?;
    Some(total / ROUNDS)
}

fn main() -> ExitCode {
    if let Ok(row) = env::var("IOMMU_CORE_RUN") {
        match row.as_str() {
            "0" => run_single(false),
            "1" => run_single(true),
            "2" => run_pair(),
            _ => run_tree(),
        }
        return ExitCode::SUCCESS;
    }
    if !cfg!(target_arch = "x86_64") || Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions are not counted: that takes valgrind, on x86-64");
        return ExitCode::SUCCESS;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
    let expected = fs::read_to_string(path).unwrap_or_default();
    let expected: BTreeMap<&str, u64> = expected
        .lines()
        .filter_map(|line| line.rsplit_once(' ').and_then(|(name, n)| Some((name.trim(), n.parse().ok()?))))
        .collect();
    let (mut table, mut failed) = (String::new(), false);
    for (row, name) in ROWS.iter().enumerate() {
        let Some(now) = count(row) else { return ExitCode::FAILURE };
        let _ = writeln!(table, "{name:32} {now}");
        let most = expected.get(name).copied().unwrap_or_default();
        failed |= now * 100 > most * 105;
        println!("{name:32} {now:5} (expected {most})");
    }
    if env::var("IOMMU_CORE_INSTRUCTIONS").is_ok_and(|what| what == "write") {
        return fs::write(path, table).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
