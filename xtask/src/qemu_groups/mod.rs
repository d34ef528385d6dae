//! `cargo xtask qemu-groups`: the groups that Linux forms on generated PCI trees, against those that the program `groups` makes of
//! the same configuration spaces.

mod compare;
mod dump;
mod tree;

use std::fs::{self, File};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Args;

use self::compare::Groups;
use self::dump::Dump;
use self::tree::Tree;
use crate::debian::{make, remove};
use crate::guest::{self, Guest, IOMMUS};
use crate::workspace::target;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// The number of the first tree; it alone is made, and shown, unless there is a count
    #[arg(long)]
    seed: Option<u64>,
    /// How many trees [default: 20, numbers 0 to 19]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// How many trees there are when nobody asks for others.
const COUNT: u64 = 20;
/// MiB.
const MEMORY: u32 = 256;

/// Why groups are shared, and what a line of `groups` has in it that says so.
const CAUSES: [(&str, [&str; 2]); 6] = [
    ("a port without ACS", ["has no Access Control Services", "; what is below it"]),
    ("a port with ACS switched off", ["switched off", "; what is below it"]),
    ("the name that a bridge gives", ["is a bridge to conventional PCI", "bear its name"]),
    ("functions of one slot without ACS", ["are functions of one slot", "has no Access Control Services"]),
    ("ports of one slot with ACS switched off", ["are functions of one slot", "switched off"]),
    ("conventional functions of one slot", ["are functions of one slot", "is conventional PCI"]),
];

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let first = options.seed.unwrap_or(0);
    let count = options.count.unwrap_or(if options.seed.is_some() { 1 } else { COUNT });
    let guest = Guest::new()?;
    let groups = Groups::build()?;
    println!("{} trees in {}", count, guest.versions());
    let next = AtomicU64::new(0);
    let (said, failed) = (Mutex::new(String::new()), Mutex::new(Vec::new()));
    let one_after_the_other = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&index| index < count) {
            let seed = first.wrapping_add(seed);
            match one(&guest, &groups, seed) {
                Ok(text) => lock(&said).push_str(&text),
                Err(why) => {
                    println!("tree {seed}: FAILED: {why}");
                    lock(&failed).push(seed);
                }
            }
        }
    };
    // An emulated machine keeps one CPU busy.
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(one_after_the_other);
        }
    });
    let (said, mut failed) = (lock(&said), lock(&failed));
    failed.sort_unstable();
    if !failed.is_empty() {
        return Err(format!("{} of {count} trees failed: {failed:?}", failed.len()));
    }
    match count {
        1 => println!("\n{said}"),
        _ => println!("Linux formed the same groups on {count} trees"),
    }
    if options.seed.is_none() && count >= COUNT { every_cause(&said) } else { Ok(()) }
}

/// Trees of which none shares a group for some cause would say nothing of it.
fn every_cause(said: &str) -> Result<(), String> {
    let has = |line: &str, words: &[&str]| words.iter().all(|word| line.contains(word));
    for (cause, words) in CAUSES {
        match said.lines().filter(|line| has(line, &words)).count() {
            0 => return Err(format!("no group of these trees is shared because of {cause}")),
            times => println!("shared because of {cause}: {times} times"),
        }
    }
    Ok(())
}

/// Boots one tree and compares; what `groups` says of it.
fn one(guest: &Guest, groups: &Groups, seed: u64) -> Result<String, String> {
    let start = Instant::now();
    let tree = Tree::generate(seed);
    let folder = target().join(format!("qemu-groups/{seed}"));
    // What an earlier run has left.
    remove(&folder)?;
    make(&folder)?;
    let iommu = &IOMMUS[(seed % IOMMUS.len() as u64) as usize];
    let mut machine = guest.machine(iommu, MEMORY, &format!("{} -- pci-tree", tree.parameters));
    machine.args(tree.devices.iter().flat_map(|device| ["-device", device]));
    let errors = folder.join("qemu.txt");
    machine.stderr(File::create(&errors).map_err(|error| format!("{}: {error}", errors.display()))?);
    let mut dump = Dump::default();
    let mut read = Ok(());
    let ended = guest::run(&mut machine, |line| {
        if read.is_ok() {
            read = dump.line(line);
        }
    });
    let with_qemu = |why: String| format!("{why}\nQEMU: {machine:?}");
    ended.map_err(|why| with_qemu(why + "\n" + &fs::read_to_string(&errors).unwrap_or_default()))?;
    read.map_err(with_qemu)?;
    let linux = dump.groups().map_err(with_qemu)?;
    let sysfs = folder.join("sys");
    dump.write(&sysfs)?;
    let said = groups.compare(&sysfs, &linux).map_err(with_qemu)?;
    let shared = linux.iter().filter(|group| group.len() > 1).count();
    println!(
        "tree {seed}: {} functions behind {}, {} groups, {shared} of them shared ({:.1} s)",
        dump.len(),
        iommu.name,
        linux.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(said)
}

fn lock<T>(it: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    it.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
