//! What every other test rests on: QEMU's IOMMU is in the way. With a wrong option QEMU passes DMA by it, and everything would
//! be green.

mod common;

use backend_qemu::Edu;
use common::{EDU, PAGE, pages, pattern, start, with_edu};
use iommu_core::Owner;
use platform::DmaAddr;

#[test]
fn a_blocked_device_is_blocked_and_an_unblocked_one_is_not() {
    let Some(machine) = start(with_edu()) else { return };
    let mut page = pages(&machine, 1);
    page.copy_from_slice(&pattern(1, PAGE));
    let at = DmaAddr::new(page.phys().get());
    let clock = &**machine.platform();
    let group = machine.group(EDU).unwrap();
    let edu = Edu::new(machine.function(EDU).unwrap()).unwrap();
    // Blocked: edu's buffer, which holds zeros, goes nowhere.
    let owner = Owner(1);
    group.claim_dma_owner(owner).unwrap();
    edu.write(clock, at, 0, PAGE).unwrap();
    assert!(
        page[..] == pattern(1, PAGE)[..],
        "a blocked device wrote to memory: the IOMMU is not in the way"
    );
    group.release_dma_owner(owner).unwrap();
    // Not blocked: the same command, to the same place.
    // SAFETY: the device does as this test says.
    unsafe { group.set_type_trusted(iommu_core::DomainType::Identity) }.unwrap();
    edu.write(clock, at, 0, PAGE).unwrap();
    assert!(page[..] == [0; PAGE], "an unblocked device wrote nothing");
}
