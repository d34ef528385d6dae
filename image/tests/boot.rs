//! The image, built as its README says and booted in QEMU: what it says of itself, what it leaves on the disk, how it ends, and how
//! large it is.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backend_qemu::{Defect, Emulator, Program, ProgramError, Version};
use tempfile::NamedTempFile;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What only a run gives in which every check held.
const SUCCESS: i32 = 85;
/// It takes seconds where the machine is not busy.
const LIMIT: Duration = Duration::from_secs(240);
/// Bytes of machine code. The stack with the conformance kit; most of what is not the kit is map, sort and format code of
/// `alloc` and `core`, once for each type.
const LARGEST: u64 = 390_000;
const DISK: usize = 1 << 20;

/// Builds the image. Cargo makes it once, however many tests ask.
fn image() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare-metal");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--profile", "image"]);
    cargo.args(["-p", "bare-metal-image", "--target", TARGET, "--target-dir"]).arg(&target);
    // The flags of whoever runs this test are not for the image.
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "--cfg baremetal -Cpanic=abort");
    assert!(cargo.status().unwrap().success(), "the image does not build");
    target.join(TARGET).join("image").join("bare-metal-image")
}

/// The byte of the disk at a place; the image has the same rule.
fn byte(seed: u64, place: usize) -> u8 {
    ((place as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn bytes(seed: u64) -> Vec<u8> {
    (0..DISK).map(|place| byte(seed, place)).collect()
}

/// `None` where there is no QEMU, which is said, and which is a failure when one was asked for by name.
fn qemu() -> Option<Program> {
    match Program::find(Emulator::X86_64) {
        Err(why @ ProgramError::NotFound(_)) if !Program::is_demanded() => {
            // Not by `eprintln`, which the test harness swallows when a test passes.
            let _ = writeln!(std::io::stderr(), "not run: the image does not boot: {why}");
            None
        }
        program => Some(program.unwrap()),
    }
}

fn boot(qemu: &Program, image: &Path, disk: &Path) -> (Option<i32>, String) {
    let mut command = qemu.command();
    // Each instruction takes a microsecond of the machine's time, so that the pauses of edu are short; while the processor sleeps its time
    // is the host's, as the disk's is.
    command.args("-M q35 -accel tcg -icount shift=10 -m 256M -display none".split(' '));
    command.args("-nodefaults -no-user-config -no-reboot -serial stdio".split(' '));
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    // Without it QEMU emulates the IOMMU and passes DMA by.
    let remapping = if qemu.version() < Version::new(10, 2, 0) { "pt=off" } else { "dma-remap=on" };
    command.args(["-device", &format!("amd-iommu,{remapping}")]);
    command.arg("-drive").arg(format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display()));
    command.args(["-device", "nvme,drive=disk,serial=bare-metal,addr=4"]);
    for number in [5, 6] {
        command.args(["-device", &format!("edu,addr={number},dma_mask=0xffffffffffffffff")]);
    }
    let events = if qemu.version().has(Defect::NoEventLog) { "no-event-log" } else { "" };
    command.args(["-append", events]).arg("-kernel").arg(image);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let report = std::thread::spawn(move || {
        let mut said = String::new();
        stdout.read_to_string(&mut said).map(|_| said)
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if start.elapsed() > LIMIT => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    (status, report.join().unwrap().unwrap())
}

#[test]
fn the_image_boots_and_every_check_holds() {
    let Some(qemu) = qemu() else { return };
    let disk = NamedTempFile::new().unwrap();
    fs::write(disk.path(), bytes(1)).unwrap();
    let (code, report) = boot(&qemu, &image(), disk.path());
    println!("{report}");
    assert_eq!(code, Some(SUCCESS), "on QEMU {}", qemu.version());
    let held = report.lines().filter(|line| line.starts_with("ok: ")).count();
    assert!(held > 0 && report.ends_with(&format!("\n{held} checks, 0 failed\n")), "{held} checks held");
    assert!(fs::read(disk.path()).unwrap() == bytes(2), "the disk holds something else");
}

/// The length of a section of a 64-bit ELF file.
fn section(file: &[u8], name: &str) -> Option<u64> {
    let number = |at: usize, len: usize| {
        Some(file.get(at..at + len)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    let (headers, size) = (number(0x28, 8)?, number(0x3a, 2)?);
    let header = |index: u64| (headers + size * index) as usize;
    let names = number(header(number(0x3e, 2)?) + 0x18, 8)?;
    let is_it = |&index: &u64| {
        let at = number(header(index), 4).map(|offset| (names + offset) as usize);
        at.and_then(|at| file.get(at..)?.split(|&byte| byte == 0).next()) == Some(name.as_bytes())
    };
    (0..number(0x3c, 2)?).find(is_it).and_then(|index| number(header(index) + 0x20, 8))
}

#[test]
fn the_image_is_small() {
    let text = section(&fs::read(image()).unwrap(), ".text").unwrap();
    assert!((1..=LARGEST).contains(&text), "{text} bytes of machine code");
}
