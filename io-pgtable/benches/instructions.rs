//! How many instructions an operation takes, counted by callgrind: the same on any machine of one kind, however busy it is.
//! Compared with `instructions.txt`: more than 5 % above it fails. With `IO_PGTABLE_INSTRUCTIONS=write` the file is written
//! anew. Without valgrind, or on other processors than x86-64, nothing is counted, and it says so.

mod frames;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::{env, fs};

use frames::Pool;
use io_pgtable::{IoPgtableCfg, IoPgtableFmt, Parts, Quirks, alloc_io_pgtable_ops};
use platform::{IotlbGather, LeakCounter, Prot};

const KIB4: u64 = 1 << 12;
const MIB2: u64 = 1 << 21;
const GIB1: u64 = 1 << 30;
const PHYS: u64 = 0x1_4000_0000;
const BASE: u64 = 0x12_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Name, pages of so many bytes, so many of them in a call, and how often.
const ROWS: [(&str, u64, usize, u64); 6] = [
    ("1x4K", KIB4, 1, 256),
    ("256x4K", KIB4, 256, 1),
    ("1 MiB as one contiguous entry", 1 << 20, 1, 1),
    ("1x2M", MIB2, 1, 64),
    ("1x1G", GIB1, 1, 16),
    ("1 GiB as 4K, tables come and go", KIB4, 1 << 18, 1),
];

const FORMATS: [(&str, IoPgtableFmt); 3] =
    [("AMD v1", IoPgtableFmt::AmdV1), ("x86-64", IoPgtableFmt::X86_64), ("RISC-V Sv48", IoPgtableFmt::RiscV)];

/// What callgrind counts: it is switched on by this name.
#[inline(never)]
fn counted<T>(operation: impl FnOnce() -> T) -> T {
    black_box(operation())
}

/// Runs one operation as often as its row says. `unmap` and `lookup` count those instead of the maps.
fn run(format: usize, row: usize, what: &str) {
    let pool = Arc::new(Pool::default());
    let mut cfg = IoPgtableCfg::new(48);
    if FORMATS[format].1 == IoPgtableFmt::X86_64 {
        cfg = cfg.with_quirks(Quirks::SIGN_EXTEND);
    }
    let parts = Parts { frames: pool.clone(), cache: None, change_top: None };
    let table = alloc_io_pgtable_ops(FORMATS[format].1, parts, &cfg).expect("a table");
    let (_, size, count, times) = ROWS[row];
    let len = size * count as u64;
    // Neighbours keep the tables above all places.
    for at in [BASE + 2 * MIB2 - KIB4, BASE + GIB1 - KIB4, BASE + 129 * GIB1] {
        // SAFETY: nothing walks the table, and there is one thread.
        assert_eq!(unsafe { table.map_range(at.into(), PHYS.into(), KIB4, RW) }.1, Ok(()));
    }
    let first = match size {
        GIB1 => BASE + GIB1,
        MIB2 => BASE + 2 * MIB2,
        _ if len > MIB2 => BASE + 128 * GIB1,
        _ => BASE + MIB2,
    };
    let leaks = LeakCounter::new();
    for at in (0..times).map(|n| first + n * len) {
        // SAFETY: as above.
        let map = || unsafe { table.map_pages(black_box(at).into(), PHYS.into(), size, count, RW) };
        let (done, result) = if what == "map" { counted(map) } else { map() };
        assert_eq!((done, result), (len, Ok(())));
        if what == "lookup" {
            assert!(counted(|| table.iova_to_phys((black_box(at) + 0x123).into())).is_some());
        }
    }
    for at in (0..times).map(|n| first + n * len) {
        let mut gather = IotlbGather::new(&leaks);
        // SAFETY: as above.
        let mut unmap = || unsafe { table.unmap_range(black_box(at).into(), len, &mut gather) };
        assert_eq!(if what == "unmap" { counted(unmap) } else { unmap() }, len);
        // SAFETY: there is no IOMMU.
        let _flushed = unsafe { gather.flushed(&*pool) };
    }
}

/// Instructions of one call, by running this program again under callgrind.
fn count(format: usize, row: usize, what: &str) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted*"])
        .arg(env::current_exe().ok()?)
        .env("IO_PGTABLE_RUN", format!("{format} {row} {what}"))
        .output()
        .ok()?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let total = told.lines().find_map(|line| line.split("Collected :").nth(1))?.trim().parse::<u64>().ok()?;
    Some(total / ROWS[row].3)
}

fn main() -> ExitCode {
    if let Ok(operation) = env::var("IO_PGTABLE_RUN") {
        let mut words = operation.split(' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (format, row) = (number(), number());
        run(format, row, words.next().expect("an operation"));
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
        .filter_map(|line| {
            line.rsplit_once(' ').and_then(|(name, count)| Some((name.trim(), count.parse().ok()?)))
        })
        .collect();
    let (mut table, mut failed) = (String::new(), false);
    for (format, (format_name, _)) in FORMATS.iter().enumerate() {
        for (row, (row_name, size, ..)) in ROWS.iter().enumerate() {
            if *size == 1 << 20 && *format_name != "AMD v1" {
                continue;
            }
            for what in ["map", "unmap", "lookup"] {
                let name = format!("{format_name}: {row_name}: {what}");
                let counted = count(format, row, what).expect("callgrind says a number");
                let limit = expected.get(&*name).map(|count| count + count / 20);
                let above = limit.is_none_or(|limit| counted > limit);
                failed |= above;
                println!("{name}: {counted}{}", if above { " (more than it was)" } else { "" });
                table += &format!("{name} {counted}\n");
            }
        }
    }
    if env::var("IO_PGTABLE_INSTRUCTIONS").is_ok_and(|value| value == "write") {
        fs::write(path, table).expect("the table can be written");
        return ExitCode::SUCCESS;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
