//! What stands between a device and VFIO, in words and commands.

mod common;

use std::fs;

use backend_vfio::{Candidate, Obstacle, survey};
use common::{AUDIO, BRIDGE, Bed, NIC, NVME};
use platform::pci::PciAddress;

fn look(bed: &Bed, address: PciAddress) -> Candidate {
    let all = survey(&bed.host()).unwrap();
    all.into_iter().find(|candidate| candidate.address == address).expect("it is in the list")
}

#[test]
fn what_can_be_taken_has_nothing_in_its_way() {
    let bed = Bed::new();
    let found = look(&bed, NVME);
    assert_eq!(found.obstacles, []);
    assert_eq!((found.id, found.class, found.group), ((0x1b36, 0x0010), 0x01_08_02, Some(7)));
    assert_eq!(found.driver.as_deref(), Some("vfio-pci"));
    assert_eq!(found.domain_type.as_deref(), Some("DMA-FQ"));
    // And it can: what the list says and what happens agree.
    bed.open(&[NVME]).unwrap();
}

#[test]
fn everything_is_in_the_list_in_order() {
    let bed = Bed::new();
    let all: Vec<_> = survey(&bed.host()).unwrap().into_iter().map(|it| it.address).collect();
    assert_eq!(all, [NVME, NIC, AUDIO]);
}

#[test]
fn another_driver_is_named_with_the_way_from_it() {
    let bed = Bed::new();
    fs::remove_file(bed.folder.path().join(format!("sys/bus/pci/devices/{NVME}/driver"))).unwrap();
    let obstacles = look(&bed, NVME).obstacles;
    assert_eq!(obstacles, [Obstacle::NotBound { address: NVME, driver: None }]);
    assert_eq!(
        obstacles[0].remedy(),
        [
            "echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override",
            "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"
        ]
    );
    let bed = Bed::empty();
    bed.add(NIC, Some(3), Some("vfio-pci"), 0x02_00_00);
    bed.add(NVME, Some(7), Some("nvme"), 0x01_08_02);
    let obstacles = look(&bed, NVME).obstacles;
    assert_eq!(obstacles, [Obstacle::NotBound { address: NVME, driver: Some("nvme".into()) }]);
    assert_eq!(obstacles[0].to_string(), "the driver nvme has it");
    assert_eq!(
        obstacles[0].remedy(),
        [
            "echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override",
            "echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind",
            "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"
        ]
    );
}

#[test]
fn who_shares_a_group_and_does_not_stand_back_is_named() {
    let bed = Bed::empty();
    bed.add(NIC, Some(9), Some("vfio-pci"), 0x02_00_00);
    bed.add(AUDIO, Some(9), Some("snd_hda_intel"), 0x04_03_00);
    bed.add(BRIDGE, Some(9), Some("pcieport"), 0x06_04_00);
    bed.add(NVME, Some(9), None, 0x01_08_02);
    let held = Obstacle::HeldBy { address: AUDIO, driver: "snd_hda_intel".into() };
    assert_eq!(look(&bed, NIC).obstacles, [held]);
    assert_eq!(look(&bed, BRIDGE).obstacles, [Obstacle::Bridge]);
}

#[test]
fn without_an_iommu_or_without_vfio_that_comes_first() {
    let bed = Bed::empty();
    bed.add(NIC, None, Some("e1000"), 0x02_00_00);
    assert_eq!(look(&bed, NIC).obstacles, [Obstacle::NoIommu]);
    bed.add(NVME, Some(7), Some("nvme"), 0x01_08_02);
    let obstacles = look(&bed, NVME).obstacles;
    assert_eq!(obstacles[0], Obstacle::NotLoaded);
    assert_eq!(obstacles[0].remedy(), ["modprobe -a vfio_iommu_type1 vfio-pci"]);
    assert_eq!(obstacles.len(), 2);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let bed = Bed::new();
    let path = bed.folder.path().join("dev/vfio/7");
    fs::remove_file(&path).unwrap();
    let obstacles = look(&bed, NVME).obstacles;
    assert!(
        matches!(&obstacles[..], [Obstacle::DoesNotOpen { path: named, .. }] if *named == path),
        "{obstacles:?}"
    );
    let denied = Obstacle::NotPermitted(path.clone());
    assert_eq!(denied.remedy(), [format!("chown $USER {}", path.display())]);
}

#[test]
fn a_system_without_pci_is_an_error() {
    let bed = Bed::new();
    fs::remove_dir_all(bed.folder.path().join("sys/bus/pci")).unwrap();
    assert!(survey(&bed.host()).is_err());
}
