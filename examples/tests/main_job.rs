//! The main job as a stranger runs it: its exit code, what it prints, and what it leaves alone.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_main-job");
const CANNOT_BE_USED: i32 = 2;

const MAP_CHAIN: [&str; 6] = [
    "dma_map_single",
    "iommu_dma_map_page",
    "__iommu_dma_map",
    "iommu_map",
    "amd_iommu_map",
    "io_pgtable_ops.map_pages",
];
const UNMAP_CHAIN: [&str; 7] = [
    "dma_unmap_single",
    "iommu_dma_unmap_page",
    "__iommu_dma_unmap",
    "iommu_unmap",
    "amd_iommu_unmap",
    "io_pgtable_ops.unmap_pages",
    "amd_iommu_iotlb_sync",
];
const ALLOC_CHAIN: [&str; 6] = [
    "dma_alloc_coherent",
    "iommu_dma_alloc",
    "__iommu_dma_map",
    "iommu_map",
    "amd_iommu_map",
    "io_pgtable_ops.map_pages",
];

/// A folder with a disk of `len` bytes in it.
fn disk(len: usize) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk");
    let bytes: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn run(disk: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).arg("--disk").arg(disk).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs, expects success without a word on standard error, and returns what was printed.
fn succeeds(disk: &Path, arguments: &[&str]) -> String {
    let output = run(disk, arguments);
    let said = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{said:?}");
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout).into()
}

fn json(disk: &Path, arguments: &[&str]) -> Value {
    let printed = succeeds(disk, &[arguments, &["--json"]].concat());
    let value: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(value["ok"], true, "{value:#}");
    value
}

/// What must be so for every disk and machine.
fn check_facts(value: &Value, disk: &Path) {
    let bytes = fs::read(disk).unwrap();
    let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(value["sha256"]["driver"], sha256);
    assert_eq!(value["sha256"]["host"], sha256);
    assert_eq!(value["sha256"]["match"], true);
    assert_eq!(value["disk"]["bytes"], bytes.len());
    assert_eq!(value["disk"]["blocks"], bytes.len().div_ceil(512));
    // Whole blocks are read.
    assert_eq!(value["read"]["bytes"], bytes.len().next_multiple_of(512));
    assert_eq!(value["free_memory_changed"], Value::Array(Vec::new()));
    assert_eq!(value["statistics"]["quarantined_bytes"], 0);
    // On every machine each request is a mapping, and each mapping has ended.
    let requests = ["read", "read_4k"].map(|tally| value[tally]["requests"].as_u64().unwrap());
    assert!(value["statistics"]["maps"].as_u64().unwrap() > requests[0] + requests[1]);
    assert_eq!(value["statistics"]["maps"], value["statistics"]["unmaps"]);
    assert_eq!(value["rogue"]["attempts"].as_array().unwrap().len(), 2);
}

/// The one line of standard error of a run that could not begin.
fn refusal(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(CANNOT_BE_USED), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("error: ") && said.ends_with('\n'), "{said}");
    said.trim_end().into()
}

fn refusal_of(disk: &Path) -> String {
    let mut command = Command::new(PROGRAM);
    command.arg("--disk").arg(disk);
    refusal(command)
}

#[test]
fn reads_the_disk_and_shows_that_the_rogue_gets_nowhere() {
    let (_folder, disk) = disk(1 << 20);
    let value = json(&disk, &[]);
    check_facts(&value, &disk);
    assert_eq!(value["backend"], "sim");
    assert_eq!(value["rogue"]["confinement"], "strict");
    for attempt in value["rogue"]["attempts"].as_array().unwrap() {
        assert_eq!(attempt["memory_unchanged"], true);
        let address = attempt["address"].as_str().unwrap();
        let [fault] = &attempt["faults"].as_array().unwrap()[..] else { panic!("not one fault: {attempt}") };
        let fault = fault.as_str().unwrap();
        assert!(fault.starts_with(&format!("page fault: write of 0000:04:00.0 at {address} in domain ")));
    }
    let statistics = &value["statistics"];
    assert_eq!(statistics["faults"], 2);
    assert_eq!(statistics["maps"], statistics["unmaps"]);
    assert!(statistics["invalidations"].as_u64() >= statistics["unmaps"].as_u64());
}

#[test]
fn the_text_says_what_the_object_says() {
    let (_folder, disk) = disk(1 << 20);
    let (text, value) = (succeeds(&disk, &["--queues", "1"]), json(&disk, &["--queues", "1"]));
    let says = |what: &str| assert!(text.contains(what), "{what:?} is not in\n{text}");
    let string = |value: &Value| value.as_str().unwrap().to_owned();
    says(&format!("SHA-256 through the driver  {}", string(&value["sha256"]["driver"])));
    says(&format!("SHA-256 as the host reads   {}", string(&value["sha256"]["host"])));
    says("they match");
    says(&format!("{} bytes", value["disk"]["bytes"]));
    says(&format!("{} blocks of {} bytes", value["disk"]["blocks"], value["disk"]["block_size"]));
    says("1 queues of depth 32");
    for iommu in value["machine"]["iommus"].as_array().unwrap() {
        says(&string(iommu));
    }
    let groups = value["machine"]["groups"].as_array().unwrap();
    assert!(!groups.is_empty());
    for group in groups {
        let line_end = format!("group {}, {}\n", group["id"], string(&group["domain_type"]));
        says(&line_end);
        for device in group["devices"].as_array().unwrap() {
            let device = string(device);
            let line = text.lines().find(|line| line.contains(&format!("─ {device} "))).unwrap();
            assert!(line.ends_with(line_end.trim_end()), "{line}");
        }
        for why in group["why"].as_array().unwrap() {
            says(&string(why));
        }
    }
    for attempt in value["rogue"]["attempts"].as_array().unwrap() {
        says(&format!("to {}, ", string(&attempt["what"])));
        for fault in attempt["faults"].as_array().unwrap() {
            says(&string(fault));
        }
    }
    let row = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no row {name}"));
        line[name.len()..].split_whitespace().map(String::from).collect::<Vec<_>>()
    };
    for (name, tally) in [("read, 128 KiB", "read"), ("read, 4 KiB", "read_4k")] {
        let expected = [value[tally]["requests"].to_string(), value[tally]["bytes"].to_string()];
        assert_eq!(row(name)[..2], expected);
    }
    for (name, key) in
        [("maps", "maps"), ("unmaps", "unmaps"), ("bounced maps", "bounces"), ("faults", "faults")]
    {
        assert_eq!(row(name), [value["statistics"][key].to_string()], "{name}");
    }
    assert!(row("IOTLB hit rate")[0].ends_with('%'));
    assert!(text.ends_with("\nAll is well.\n"));
}

#[test]
fn a_disk_may_have_any_size_from_one_block_on() {
    for len in [512, 513, 4097, 300_001] {
        let (_folder, disk) = disk(len);
        check_facts(&json(&disk, &[]), &disk);
    }
}

#[test]
fn without_a_disk_a_seeded_image_is_made_the_same_each_time() {
    let output = |domain| Command::new(PROGRAM).args(["--json", "--domain", domain]).output().unwrap();
    let [first, second] = ["dma-fq", "identity"].map(|domain| {
        let output = output(domain);
        assert_eq!(output.status.code(), Some(0));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    });
    assert_eq!(first["disk"]["bytes"], 64 << 20);
    assert_eq!(first["sha256"], second["sha256"]);
    assert_eq!(first["sha256"]["match"], true);
}

#[test]
fn every_domain_type_reads_right() {
    let (_folder, disk) = disk(1 << 20);
    let kinds = [("dma", "DMA", "strict"), ("dma-fq", "DMA-FQ", "lazy"), ("identity", "identity", "none")];
    for (option, kind, confinement) in kinds {
        let value = json(&disk, &["--domain", option]);
        check_facts(&value, &disk);
        for group in value["machine"]["groups"].as_array().unwrap() {
            assert_eq!(group["domain_type"], kind);
        }
        assert_eq!(value["rogue"]["confinement"], confinement);
        // What nobody mapped is refused wherever there is a table.
        assert_eq!(value["rogue"]["attempts"][1]["memory_unchanged"], option != "identity");
    }
}

#[test]
fn without_an_iommu_data_bounces_and_nothing_stops_the_rogue() {
    let (_folder, disk) = disk(1 << 20);
    let value = json(&disk, &["--backend", "swiotlb"]);
    check_facts(&value, &disk);
    assert_eq!(value["backend"], "swiotlb");
    assert_eq!(value["machine"]["iommus"], Value::Array(Vec::new()));
    assert_eq!(value["rogue"]["confinement"], "none");
    assert_eq!(value["rogue"]["attempts"][1]["memory_unchanged"], false);
    let requests = ["read", "read_4k"].map(|tally| value[tally]["requests"].as_u64().unwrap());
    assert!(value["statistics"]["bounces"].as_u64().unwrap() >= requests[0] + requests[1]);
    assert_eq!(value["statistics"]["iotlb_hit_rate"], Value::Null);
    assert!(succeeds(&disk, &["--backend", "swiotlb"]).contains("no IOMMU"));
}

#[test]
fn writing_is_checked_and_leaves_the_users_file_alone() {
    for backend in ["sim", "swiotlb"] {
        let (folder, disk) = disk((1 << 20) + 100);
        let before = fs::read(&disk).unwrap();
        fs::set_permissions(&disk, Permissions::from_mode(0o444)).unwrap();
        let value = json(&disk, &["--write", "--backend", backend]);
        check_facts(&value, &disk);
        assert_eq!(value["write"]["read_back"], true);
        assert_eq!(value["write"]["on_host"], true);
        assert_eq!(value["write"]["transfer"]["bytes"], 1 << 20);
        assert!(fs::read(&disk).unwrap() == before);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [disk]);
    }
}

#[test]
fn the_scratch_copy_is_removed() {
    let (_folder, disk) = disk(1 << 20);
    let scratch = TempDir::new().unwrap();
    let mut command = Command::new(PROGRAM);
    command.env("TMPDIR", scratch.path()).arg("--disk").arg(&disk).arg("--write");
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_a_disk_gets_one_clear_line() {
    let (folder, disk) = disk(511);
    let here = |name: &str| folder.path().join(name);
    let said = refusal_of(&here("missing"));
    assert_eq!(
        said,
        format!("error: cannot read {}: No such file or directory (os error 2)", here("missing").display())
    );
    let said = refusal_of(folder.path());
    assert_eq!(said, format!("error: {} is a directory; --disk wants a file", folder.path().display()));
    let said = refusal_of(&disk);
    assert_eq!(
        said,
        format!("error: {} is too small to be a disk: 511 bytes, and a block has 512", disk.display())
    );
    symlink(here("missing"), here("dangling")).unwrap();
    assert!(refusal_of(&here("dangling")).contains("No such file"));
    assert!(refusal_of(&disk.join("below a file")).contains("Not a directory"));
    assert!(refusal_of(Path::new("/dev/zero")).contains("no regular file"));
}

/// A copy of the program that user 65534 ("nobody") may run, and a command that runs it so; everybody but root just runs it.
fn as_somebody_who_may_not(folder: &Path, file: &Path) -> Command {
    if File::open(file).is_err() {
        return Command::new(PROGRAM);
    }
    // Root may read everything.
    let program = folder.join("main-job");
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program);
    command.uid(65534).gid(65534);
    command
}

#[test]
fn a_disk_that_may_not_be_read_gets_one_clear_line() {
    let (folder, disk) = disk(1 << 20);
    fs::set_permissions(&disk, Permissions::from_mode(0o000)).unwrap();
    let mut command = as_somebody_who_may_not(folder.path(), &disk);
    command.arg("--disk").arg(&disk);
    assert_eq!(
        refusal(command),
        format!("error: cannot read {}: Permission denied (os error 13)", disk.display())
    );
}

#[test]
fn what_the_machine_does_not_have_is_refused() {
    let (_folder, disk) = disk(1 << 20);
    let mut command = Command::new(PROGRAM);
    command.arg("--disk").arg(&disk).args(["--backend", "swiotlb", "--domain", "dma"]);
    assert_eq!(refusal(command), "error: the machine \"swiotlb\" has no IOMMU, so it has no domain types");
    let output = run(&disk, &["--backend", "abacus"]);
    assert_eq!(output.status.code(), Some(CANNOT_BE_USED));
    let known = format!("[possible values: {}]", backend::names().collect::<Vec<_>>().join(", "));
    assert!(text(&output.stderr).contains(&known));
}

fn chains(value: &Value) -> Vec<Vec<String>> {
    let names = |chain: &Value| {
        chain["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    value["trace"].as_array().unwrap().iter().map(names).collect()
}

#[test]
fn the_trace_shows_each_layer_that_an_operation_passed() {
    let (_folder, disk) = disk(1 << 20);
    let value = json(&disk, &["--trace", "1000"]);
    let chains = chains(&value);
    let of = |entry: &str| chains.iter().filter(|chain| chain[0] == entry).collect::<Vec<_>>();
    for (entry, expected) in [
        ("dma_map_single", &MAP_CHAIN[..]),
        ("dma_unmap_single", &UNMAP_CHAIN),
        ("dma_alloc_coherent", &ALLOC_CHAIN),
    ] {
        let chains = of(entry);
        assert!(!chains.is_empty(), "{entry} is not in the trace");
        assert!(chains.iter().all(|chain| *chain == expected), "{chains:?}");
    }
    // The driver identifies the controller and its namespace, and reads one block: maps and unmaps come in pairs.
    assert_eq!(of("dma_map_single").len(), of("dma_unmap_single").len());
    assert_eq!(of("dma_map_single").len(), 3);
}

#[test]
fn the_trace_is_printed_as_arrows_and_is_as_long_as_asked() {
    let (_folder, disk) = disk(1 << 20);
    let printed = succeeds(&disk, &["--trace", "3"]);
    let traced: Vec<&str> = printed
        .lines()
        .skip_while(|line| *line != "Trace of the first operations")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .collect();
    let expected = [
        format!("  {} (2048 bytes)", ALLOC_CHAIN.join(" → ")),
        format!("  {} (512 bytes)", ALLOC_CHAIN.join(" → ")),
        format!("  {} (4096 bytes)", MAP_CHAIN.join(" → ")),
    ];
    assert_eq!(traced, expected);
    assert!(!succeeds(&disk, &[]).contains('→'));
}

#[test]
fn without_an_iommu_the_trace_names_none_of_its_layers() {
    let (_folder, disk) = disk(1 << 20);
    let chains = chains(&json(&disk, &["--trace", "1000", "--backend", "swiotlb"]));
    let map = ["dma_map_single", "dma_direct_map_phys", "swiotlb_map", "dma_direct_sync_single_for_device"];
    let map = map.map(String::from);
    assert!(chains.contains(&map.to_vec()), "{chains:?}");
    assert!(chains.iter().flatten().all(|name| !name.contains("iommu") && !name.contains("pgtable")));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let (_folder, disk) = disk(1 << 20);
    let mut command = Command::new(PROGRAM);
    command.arg("--disk").arg(&disk).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn a_result_that_cannot_be_printed_is_a_failure() {
    let (_folder, disk) = disk(1 << 20);
    let mut command = Command::new(PROGRAM);
    command.arg("--disk").arg(&disk).stdout(File::create("/dev/full").unwrap());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "error: cannot print the result: No space left on device (os error 28)\n"
    );
}
