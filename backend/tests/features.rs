//! The door: names, order, and what each feature brings along.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use backend::{Backend, BackendError, Disk, DomainType, Options};
use platform::pci::PciAddress;

const ALL: [(&str, bool); 4] = [
    ("sim", cfg!(feature = "sim")),
    ("swiotlb", cfg!(feature = "swiotlb")),
    ("qemu", cfg!(feature = "qemu")),
    ("vfio", cfg!(feature = "vfio")),
];

fn built_in() -> Vec<&'static str> {
    ALL.into_iter().filter(|&(_, built_in)| built_in).map(|(name, _)| name).collect()
}

/// A disk of one block, and options for it.
fn options(domain_type: Option<DomainType>) -> (tempfile::NamedTempFile, Options) {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(512).unwrap();
    let options = Options { disk: common::file(&disk, false), queues: 1, domain_type };
    (disk, options)
}

fn open(name: Option<&str>, domain_type: Option<DomainType>) -> Result<Box<dyn Backend>, BackendError> {
    let (_disk, options) = options(domain_type);
    backend::open(name, &options)
}

/// The packages that `backend` links with these features.
fn linked(features: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "backend", "--no-default-features", "--features", features])
        .args(["--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let package = |line: &str| line.split(' ').next().map(String::from);
    String::from_utf8(output.stdout).unwrap().lines().filter_map(package).collect()
}

#[test]
fn names_are_in_the_documented_order() {
    assert_eq!(backend::names().collect::<Vec<_>>(), built_in());
}

#[test]
fn the_first_name_is_the_default() {
    let first = built_in().first().copied();
    match open(None, None) {
        Ok(machine) => assert_eq!(Some(machine.name()), first),
        Err(BackendError::Unknown { .. }) => assert_eq!(first, None),
        Err(BackendError::Absent(_)) => assert_eq!(first, Some("qemu")),
        Err(BackendError::Disk { backend, .. }) => assert_eq!(Some(backend), first),
        Err(error) => panic!("{first:?}: {error}"),
    }
}

#[test]
fn each_name_opens_the_machine_of_that_name() {
    for name in common::names() {
        let machine = open(Some(name), None).unwrap();
        assert_eq!(machine.name(), name);
        assert_eq!(machine.description().iommus.len(), usize::from(name != "swiotlb"));
    }
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let Err(error) = open(Some("abacus"), None) else { panic!("there is an abacus") };
    let known = built_in().join(", ");
    assert_eq!(error.to_string(), format!("no backend \"abacus\" in this build; there are: {known}"));
}

#[test]
fn domain_types_are_for_machines_that_have_them() {
    for name in common::names() {
        for domain_type in [DomainType::Dma, DomainType::DmaFq, DomainType::Identity] {
            match open(Some(name), Some(domain_type)) {
                Ok(machine) => {
                    let groups = machine.description().groups;
                    assert!(!groups.is_empty());
                    assert!(groups.iter().all(|group| group.domain_type == Some(domain_type)));
                }
                Err(BackendError::NoDomains(_) | BackendError::DomainType(_)) => {
                    assert!(!common::has_domain_type(name, domain_type), "{name}, {domain_type:?}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
        for domain_type in [DomainType::Blocked, DomainType::Unmanaged] {
            assert!(open(Some(name), Some(domain_type)).is_err());
        }
    }
}

#[test]
fn a_disk_that_is_not_there_is_no_machine() {
    let (disk, options) = options(None);
    drop(disk);
    for name in common::names() {
        assert!(matches!(backend::open(Some(name), &options), Err(BackendError::Start(_))));
    }
}

#[test]
fn a_controller_of_the_host_is_no_disk_of_an_emulated_machine() {
    let (_file, options) = options(None);
    let options = Options { disk: Disk::Controller(PciAddress::new(0, 0, 4, 0)), ..options };
    for name in common::names() {
        let Err(BackendError::Disk { backend, wanted }) = backend::open(Some(name), &options) else {
            panic!("{name} takes a controller of the host");
        };
        assert_eq!((backend, wanted), (name, "a file"));
    }
}

#[test]
#[cfg(feature = "vfio")]
fn the_host_has_controllers_and_no_files() {
    let (_file, options) = options(None);
    let Err(error) = backend::open(Some("vfio"), &options) else { panic!("a file is a controller") };
    let said = "the disk of the machine \"vfio\" is the PCI address of an NVMe controller";
    assert_eq!(error.to_string(), said);
    // A bus that no host has.
    let nowhere = PciAddress::new(0xffff, 0xff, 31, 7);
    let options = Options { disk: Disk::Controller(nowhere), ..options };
    assert!(
        matches!(backend::open(Some("vfio"), &options), Err(BackendError::NoSuchFunction(address)) if address == nowhere)
    );
    for domain_type in [DomainType::DmaFq, DomainType::Identity] {
        let options = Options { domain_type: Some(domain_type), ..options.clone() };
        assert!(
            matches!(backend::open(Some("vfio"), &options), Err(BackendError::DomainType(wrong)) if wrong == domain_type)
        );
    }
}

#[test]
fn without_a_feature_no_machine_is_linked() {
    const MACHINES: [&str; 6] =
        ["backend-sim", "backend-qemu", "backend-vfio", "sim-hardware", "amd-vi", "io-pgtable"];
    let bare = linked("");
    assert!(bare.iter().any(|package| package == "iommu-core"), "{bare:?}");
    let machines = |features: &str| {
        let linked: BTreeSet<String> = linked(features).into_iter().collect();
        linked.into_iter().filter(|package| MACHINES.contains(&package.as_str())).collect::<Vec<_>>()
    };
    assert!(machines("").is_empty());
    // The two features are two ways to switch on one machine.
    for feature in ["sim", "swiotlb"] {
        assert_eq!(machines(feature), ["amd-vi", "backend-sim", "io-pgtable", "sim-hardware"]);
    }
    assert_eq!(machines("qemu"), ["amd-vi", "backend-qemu", "io-pgtable"]);
    // On the host's own devices the kernel has the page tables.
    assert_eq!(machines("vfio"), ["backend-vfio"]);
}
