//! Taking devices: what stands in the way is said, with what would change it.

mod common;

use backend_vfio::{VfioError, parse_address};
use common::{AUDIO, BRIDGE, Bed, NIC, NVME};
use platform::pci::PciAddress;

fn refused(bed: &Bed, address: PciAddress) -> VfioError {
    bed.open(&[address]).expect_err("it was taken")
}

#[test]
fn a_group_is_in_a_container_while_it_is_open() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    assert!(bed.mock.is_placed(7));
    assert_eq!(bed.mock.maps(7).unwrap().len(), 0);
    drop(vfio);
    assert!(!bed.mock.is_placed(7));
}

#[test]
fn devices_of_one_kernel_group_share_a_group_for_that_reason() {
    let bed = Bed::new();
    let vfio = bed.open(&[AUDIO, NVME, NIC]).unwrap();
    let group = vfio.group(NIC).unwrap();
    assert_eq!(group.devices(), [NIC, AUDIO]);
    let why: Vec<_> = group.outline().iter().map(ToString::to_string).collect();
    assert_eq!(why, ["the system beneath has 0000:02:00.1 and 0000:02:00.0 in its group 9"]);
    assert_eq!(vfio.group(NVME).unwrap().devices(), [NVME]);
}

#[test]
fn a_function_that_is_not_there_is_named() {
    let address = PciAddress::new(0, 9, 0, 0);
    let error = refused(&Bed::new(), address);
    assert!(matches!(error, VfioError::NoSuchFunction(it) if it == address));
    let vfio = Bed::new().open(&[NVME]).unwrap();
    assert!(matches!(vfio.bind(NIC), Err(VfioError::NotOpened(NIC))));
}

#[test]
fn without_an_iommu_that_is_said() {
    let bed = Bed::empty();
    bed.add(NVME, None, Some("vfio-pci"), 0x01_08_02);
    assert!(matches!(refused(&bed, NVME), VfioError::NoIommu(NVME)));
}

#[test]
fn another_driver_is_named() {
    let bed = Bed::empty();
    bed.add(NVME, Some(7), Some("nvme"), 0x01_08_02);
    assert_eq!(refused(&bed, NVME).to_string(), "0000:01:00.0 is bound to nvme, not to vfio-pci");
    bed.add(NIC, Some(9), None, 0x02_00_00);
    assert_eq!(refused(&bed, NIC).to_string(), "0000:02:00.0 is bound to no driver, not to vfio-pci");
}

#[test]
fn who_holds_a_group_back_is_named() {
    let bed = Bed::empty();
    bed.add(NIC, Some(9), Some("vfio-pci"), 0x02_00_00);
    bed.add(AUDIO, Some(9), Some("snd_hda_intel"), 0x04_03_00);
    bed.add(BRIDGE, Some(9), Some("pcieport"), 0x06_04_00);
    bed.mock.knobs(|knobs| knobs.viable = false);
    let error = refused(&bed, NIC);
    assert_eq!(
        error.to_string(),
        "group 9 of 0000:02:00.0 is not viable: 0000:02:00.1 is with snd_hda_intel"
    );
}

#[test]
fn interrupts_that_are_not_isolated_are_explained() {
    let bed = Bed::new();
    bed.mock.knobs(|knobs| knobs.isolated_interrupts = false);
    let error = refused(&bed, NVME);
    assert!(matches!(error, VfioError::UnsafeInterrupts(7)), "{error}");
    assert!(error.to_string().contains("allow_unsafe_interrupts=1"));
    assert!(!bed.mock.is_placed(7), "the group was left in a container");
}

#[test]
fn a_kernel_that_is_too_old_or_too_new_is_refused() {
    let bed = Bed::new();
    bed.mock.knobs(|knobs| knobs.version = 1);
    assert!(matches!(refused(&bed, NVME), VfioError::Version(1)));
    let bed = Bed::new();
    bed.mock.knobs(|knobs| knobs.type1 = false);
    assert!(matches!(refused(&bed, NVME), VfioError::NoType1));
    let bed = Bed::new();
    bed.mock.knobs(|knobs| knobs.ranges.clear());
    assert!(matches!(refused(&bed, NVME), VfioError::NoRanges));
}

#[test]
fn a_file_that_does_not_open_says_which_and_what_to_do() {
    let bed = Bed::new();
    let path = bed.folder.path().join("dev/vfio/7");
    std::fs::remove_file(&path).unwrap();
    let error = refused(&bed, NVME).to_string();
    assert!(error.contains("dev/vfio/7") && error.contains("bind the device to vfio-pci"), "{error}");
}

#[test]
fn addresses_are_read_as_linux_writes_them() {
    assert_eq!(parse_address("0000:01:00.0"), Some(NVME));
    assert_eq!(parse_address("01:00.0"), Some(NVME));
    assert_eq!(parse_address("00ab:FF:1f.7"), Some(PciAddress::new(0xab, 0xff, 31, 7)));
    for wrong in ["", "01:00", "01:20.0", "01:00.8", "100:00.0", "10000:01:00.0", "a:01:00.+1", "1:2:3:4.5"] {
        assert_eq!(parse_address(wrong), None, "{wrong}");
    }
}
