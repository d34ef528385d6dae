//! Guest tables: who is told what a domain has unmapped, and in which words.

mod common;

use common::*;
use iommu_core::{AttachError, DomainOps, IommuOps, PagingFlags};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, IotlbGather, LeakCounter, PhysAddr, Prot};

const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0100) };
const OTHER: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0010) };
/// GTSup, GIoSup, PASmax for 20 bits; GATS for four levels, one level of GCR3 tables.
const GUEST: u64 = FEATURES | 1 << 4 | 19 << 32 | 1 << 48;

fn unmap(domain: &dyn DomainOps, iova: u64) {
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    // SAFETY: nobody else uses the domain, and no device does DMA.
    unsafe {
        domain.map_pages(DmaAddr::new(iova), PhysAddr::new(0x10_0000), 4096, 1, Prot::READ).1.unwrap();
        domain.unmap(DmaAddr::new(iova), 4096, &mut gather);
    }
    domain.iotlb_sync(&gather).unwrap();
}

#[test]
fn a_domain_tells_who_uses_it_and_nobody_else() {
    let setup = bring_up_with(false, GUEST, &[ivhd(0x11, 2, BASE, ENTRIES)]);
    for dev in [DEV, OTHER] {
        setup.driver.probe_device(dev).unwrap();
    }
    let domain = setup.driver.domain_alloc_paging_flags(DEV, PagingFlags::PASID).unwrap();
    let told = |iova: u64| {
        setup.unit.take_commands();
        unmap(&*domain, iova);
        setup.unit.take_invalidations()
    };
    assert_eq!(told(0x5000), []);
    attach(&*domain, DEV, None).unwrap();
    attach(&*domain, OTHER, None).unwrap();
    let tag = |dev: PciAddress| setup.unit.entry(dev.id.get())[1] & 0xffff;
    assert_ne!(tag(DEV), tag(OTHER), "each has its own PASID 0");
    // GN and PDE, PASID 0, under each device's tag.
    let command = |tag: u64| (3 << 60 | tag << 32, 0x5006);
    assert_eq!(told(0x5000), [command(tag(DEV)), command(tag(OTHER))]);
    let blocked = setup.driver.blocked_domain().unwrap();
    let gone = tag(DEV);
    setup.unit.take_commands();
    attach(&*blocked, DEV, Some(&*domain)).unwrap();
    let forgotten = (3 << 60 | gone << 32, 0x7fff_ffff_ffff_f006 | 1);
    assert_eq!(setup.unit.take_invalidations().last(), Some(&forgotten));
    assert_eq!(told(0x5000), [command(tag(OTHER))]);
    // A device without the capability has no PASIDs, whatever its unit can do.
    // SAFETY: there is no core that has the device, and it does no DMA.
    let refused = unsafe { domain.set_dev_pasid(OTHER, 1, None) };
    assert_eq!(refused, Err(AttachError::Unsupported));
}
