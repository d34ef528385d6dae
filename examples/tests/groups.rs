//! The `groups` program as a stranger runs it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_groups");
const CANNOT_BE_USED: i32 = 2;

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs, expects success without a word on standard error, and returns what was printed.
fn succeeds(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    text(&output.stdout).into()
}

/// The one line of standard error of a run that could not begin.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(CANNOT_BE_USED), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    said.trim_end().into()
}

/// A file in a folder of its own.
struct File {
    _folder: TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("machine.tsv");
        fs::write(&path, text).unwrap();
        Self { _folder: folder, path }
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

const ALL: &str = "SrcValid+ReqRedir+CmpltRedir+UpstreamFwd";

/// An isolating port and one that is not, a bridge to conventional PCI, and a slot of two; `groups` are Linux's numbers.
fn machine(groups: [&str; 9]) -> File {
    let lines = [
        format!("0000:00:01.0\t-\tPCI bridge\tRoot Port\t01\t{ALL}\t{ALL}"),
        format!("0000:00:02.0\t-\tPCI bridge\tRoot Port\t02\t{ALL}\tSrcValid+UpstreamFwd"),
        format!("0000:00:03.0\t-\tPCI bridge\tRoot Port\t03\t{ALL}\t{ALL}"),
        "0000:01:00.0\t-\tEthernet controller\tEndpoint\t-\t-\t-".into(),
        "0000:02:00.0\t-\tVGA compatible controller\tLegacy Endpoint\t-\t-\t-".into(),
        "0000:02:00.1\t-\tAudio device\tEndpoint\t-\t-\t-".into(),
        "0000:03:00.0\t-\tPCI bridge\tPCI-Express to PCI/PCI-X Bridge\t04\t-\t-".into(),
        "0000:04:05.0\t-\tSound card\t-\t-\t-\t-".into(),
        "0000:04:06.0\t-\t-\t-\t-\t-\t-".into(),
    ];
    let lines: Vec<_> = lines.iter().zip(groups).map(|(line, group)| format!("{line}\t{group}\n")).collect();
    File::new(&lines.concat())
}

const UNKNOWN: [&str; 9] = ["-"; 9];

fn expected() -> Value {
    json!({ "groups": [
        ["0000:00:01.0"],
        ["0000:00:02.0", "0000:02:00.0", "0000:02:00.1"],
        ["0000:00:03.0"],
        ["0000:01:00.0"],
        ["0000:03:00.0", "0000:04:05.0", "0000:04:06.0"],
    ] })
}

fn groups(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeds(&[arguments, &["--json"]].concat())).unwrap()
}

#[test]
fn json_is_the_groups_and_nothing_else() {
    assert_eq!(groups(&[machine(UNKNOWN).name()]), expected());
}

#[test]
fn a_person_gets_a_tree_and_a_reason_for_each_shared_group() {
    let shown = succeeds(&[machine(UNKNOWN).name()]);
    let tree = "\
├─ 0000:00:01.0 PCI bridge                       group 0
│  └─ 0000:01:00.0 Ethernet controller           group 3
├─ 0000:00:02.0 PCI bridge                       group 1
│  ├─ 0000:02:00.0 VGA compatible controller     group 1
│  └─ 0000:02:00.1 Audio device                  group 1
└─ 0000:00:03.0 PCI bridge                       group 2
   └─ 0000:03:00.0 PCI bridge                    group 4
      ├─ 0000:04:05.0 Sound card                 group 4
      └─ 0000:04:06.0                            group 4

5 groups, 2 of them shared
";
    assert!(shown.starts_with(tree), "{shown}");
    let reasons = "\
group 1 is one for 3 functions because
  0000:00:02.0 has these Access Control Services (ACS) switched off: P2P Request Redirect, P2P Completion Redirect; what is \
below it can reach each other without passing the IOMMU: 0000:02:00.0, 0000:02:00.1
group 4 is one for 3 functions because
  0000:03:00.0 is a bridge to conventional PCI, and requests from behind it all bear its name 04:00.0: 0000:04:05.0, \
0000:04:06.0
";
    assert!(shown.ends_with(reasons), "{shown}");
}

#[test]
fn what_linux_formed_is_compared() {
    let same = succeeds(&[machine(["5", "6", "7", "8", "6", "6", "9", "9", "9"]).name()]);
    assert!(same.ends_with("\nLinux formed the same groups\n"), "{same}");
    let other = succeeds(&[machine(["5", "6", "7", "8", "6", "10", "9", "9", "9"]).name()]);
    let said = "\nLinux formed other groups:\n  Linux's group 6: 0000:00:02.0, 0000:02:00.0\n  Linux's group 10: 0000:02:00.1\n";
    assert!(other.ends_with(said), "{other}");
}

#[test]
fn what_is_behind_no_iommu_is_in_no_group() {
    let file = machine(["5", "6", "7", "-", "6", "6", "9", "9", "9"]);
    let groups = groups(&[file.name()]);
    assert!(!groups.to_string().contains("0000:01:00.0"), "{groups}");
    assert!(succeeds(&[file.name()]).contains("0000:01:00.0 Ethernet controller           no group\n"));
    assert_eq!(
        refusal(&[file.name(), "--why", "01:00.0", "02:00.0"]),
        "error: 0000:01:00.0 is behind no IOMMU, so it is in no group"
    );
}

#[test]
fn why_answers_for_a_pair() {
    let file = machine(UNKNOWN);
    let why = |one, other| succeeds(&[file.name(), "--why", one, other]);
    let below = why("02:00.1", "00:02.0");
    assert!(below.starts_with(
        "0000:00:02.0 and 0000:02:00.1 share a group because 0000:02:00.1 is below 0000:00:02.0"
    ));
    assert_eq!(
        why("00:01.0", "00:02.0"),
        "0000:00:01.0 and 0000:00:02.0 share no group: 0000:00:01.0 is in group 0, 0000:00:02.0 in group 1\n"
    );
    assert_eq!(why("00:01.0", "00:01.0"), "0000:00:01.0 is in group 0\n");
    assert_eq!(
        refusal(&[file.name(), "--why", "00:01.0", "09:00.0"]),
        "error: 0000:09:00.0 is not in this machine"
    );
}

#[test]
fn files_that_cannot_be_used_are_refused_in_a_line() {
    assert_eq!(refusal(&["/nowhere/x.tsv"]), "error: /nowhere/x.tsv: No such file or directory (os error 2)");
    let broken = File::new("bdf\n00:01.0\t-\n");
    let said = refusal(&[broken.name()]);
    assert!(said.ends_with(
        "line 2: 2 fields instead of 8, with tabs between them (groups --help describes the format)"
    ));
    let empty = File::new("bdf\n");
    assert!(refusal(&[empty.name()]).contains("has no function"));
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("x"), [0xff, 0xfe]).unwrap();
    assert!(refusal(&[folder.path().join("x").to_str().unwrap()]).ends_with("is no text in UTF-8"));
    assert!(refusal(&["--sysfs", folder.path().to_str().unwrap()]).contains("bus/pci/devices: No such file"));
}

#[test]
fn help_has_the_format() {
    let help = succeeds(&["--help"]);
    for word in [
        "acs_cap",
        "DirectTrans",
        "linux_group",
        "PCI-Express to PCI/PCI-X Bridge",
        "--why",
        "--sysfs",
        "--json",
    ] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn bridges_in_circles_are_shown_once() {
    let line = |address, bus| format!("{address}\t-\tPCI bridge\tRoot Port\t{bus}\t-\t-\t-\n");
    let file = File::new(&(line("03:00.0", "04") + &line("04:00.0", "03") + &line("05:00.0", "05")));
    let shown = succeeds(&[file.name()]);
    for address in ["0000:03:00.0", "0000:04:00.0", "0000:05:00.0"] {
        assert_eq!(shown.lines().filter(|line| line.contains(&format!("─ {address}"))).count(), 1, "{shown}");
    }
}

/// A machine's sysfs, by hand.
struct Sysfs(TempDir);

impl Sysfs {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("bus/pci/devices")).unwrap();
        Self(folder)
    }

    fn name(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// A function below `place`, with its configuration space cut to `len` bytes.
    fn function(&self, place: &str, words: &[(usize, u32)], len: usize) -> PathBuf {
        let folder = self.0.path().join("devices").join(place);
        fs::create_dir_all(&folder).unwrap();
        let mut config = vec![0; 4096];
        for &(at, word) in words {
            config[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        fs::write(folder.join("config"), &config[..len]).unwrap();
        let name = Path::new(place).file_name().unwrap();
        symlink(&folder, self.0.path().join("bus/pci/devices").join(name)).unwrap();
        folder
    }
}

/// A root port to bus 1 with all services on, an Ethernet controller.
const PORT: [(usize, u32); 9] = [
    (0x00, 0x1483_1022),
    (0x04, 1 << 20),
    (0x08, 0x0604_0000),
    (0x0c, 0x0001_0000),
    (0x18, 0x0001_0100),
    (0x34, 0x40),
    (0x40, 4 << 20 | 0x10),
    (0x100, 0x1_000d),
    (0x104, 0b001_1101 << 16 | 0b001_1101),
];
const NIC: [(usize, u32); 5] =
    [(0x00, 0x1521_8086), (0x04, 1 << 20), (0x08, 0x0200_0000), (0x34, 0x40), (0x40, 0x10)];

#[test]
fn sysfs_is_read() {
    let sysfs = Sysfs::new();
    sysfs.function("pci0000:00/0000:00:01.0", &PORT, 4096);
    sysfs.function("pci0000:00/0000:00:01.0/0000:01:00.0", &NIC, 4096);
    // A virtual function: the machine says nothing of it in its configuration space.
    let virtual_function = sysfs.function("pci0000:00/0000:00:01.0/0000:01:10.1", &[(0, u32::MAX)], 4096);
    symlink("../0000:01:00.0", virtual_function.join("physfn")).unwrap();
    assert_eq!(
        groups(&["--sysfs", sysfs.name()]),
        json!({ "groups": [["0000:00:01.0"], ["0000:01:00.0"], ["0000:01:10.1"]] })
    );
    let shown = succeeds(&["--sysfs", sysfs.name()]);
    assert!(shown.starts_with(
        "└─ 0000:00:01.0 PCI bridge                       group 0\n   ├─ 0000:01:00.0 Ethernet controller"
    ));
}

#[test]
fn without_root_groups_are_larger_and_it_is_said() {
    let sysfs = Sysfs::new();
    sysfs.function("pci0000:00/0000:00:01.0", &PORT, 64);
    sysfs.function("pci0000:00/0000:00:01.0/0000:01:00.0", &NIC, 64);
    let output = run(&["--sysfs", sysfs.name(), "--json"]);
    let value: Value = serde_json::from_str(text(&output.stdout)).unwrap();
    assert_eq!(value, json!({ "groups": [["0000:00:01.0", "0000:01:00.0"]] }));
    assert!(text(&output.stderr).starts_with("note: 2 of 2 functions show only the first 64 bytes"));
    let shown = succeeds(&["--sysfs", sysfs.name()]);
    assert!(shown.contains("\nnote: 2 of 2 functions") && shown.contains("take root to be read"), "{shown}");
}

#[test]
fn a_machine_that_reaches_256_bytes_says_so() {
    let sysfs = Sysfs::new();
    sysfs.function("pci0000:00/0000:00:01.0", &PORT, 256);
    let folder = sysfs.function("pci0000:00/0000:00:02.0", &[(0, 0x1111_1111), (8, 0x0500_0000)], 256);
    fs::remove_file(folder.join("config")).unwrap();
    let shown = succeeds(&["--sysfs", sysfs.name()]);
    assert!(shown.contains("note: 1 PCI Express functions show only 256 bytes"), "{shown}");
    assert!(shown.contains("note: 1 functions are left out"), "{shown}");
}

#[test]
fn what_a_vmd_hides_is_in_its_group() {
    let sysfs = Sysfs::new();
    let vmd = sysfs.function("pci0000:00/0000:00:0e.0", &[(0, 0x9a0b_8086), (8, 0x0104_0000)], 4096);
    sysfs.function("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0", &PORT, 4096);
    sysfs.function("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0", &NIC, 4096);
    let group = sysfs.0.path().join("kernel/iommu_groups/3");
    fs::create_dir_all(&group).unwrap();
    symlink(&group, vmd.join("iommu_group")).unwrap();
    let expected = json!({ "groups": [["0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"]] });
    assert_eq!(groups(&["--sysfs", sysfs.name()]), expected);
    let shown = succeeds(&["--sysfs", sysfs.name()]);
    assert!(
        shown.contains("group 0 is one for 3 functions because\n  10000:e0:06.0 is behind a controller"),
        "{shown}"
    );
    assert!(shown.ends_with("\nLinux formed the same groups\n"), "{shown}");
}

#[test]
fn this_machine_is_read_or_refused_in_a_line() {
    let output = run(&["--json"]);
    match output.status.code() {
        Some(0) => assert!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["groups"].is_array()),
        code => assert_eq!((code, text(&output.stderr).lines().count()), (Some(CANNOT_BE_USED), 1)),
    }
}

/// Reports of real machines, where they are: the folder that `REAL_DATA` names, or `shared/real` beside the workspace.
#[test]
fn real_machines_have_the_groups_of_their_linux() {
    let real = std::env::var_os("REAL_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real")),
        PathBuf::from,
    );
    let Ok(reports) = fs::read_dir(real.join("groups")) else {
        println!("skipped: no reports of real machines in {}", real.display());
        return;
    };
    for report in reports {
        let path = report.unwrap().path();
        let shown = succeeds(&[path.to_str().unwrap()]);
        assert!(shown.ends_with("\nLinux formed the same groups\n"), "{}: {shown}", path.display());
    }
}
