//! A device that comes into a domain while one of its pages is unmapped. Either its unit finds the table as it is afterwards, or
//! the flush goes to that unit too: otherwise the unit goes on using a page that was given back. And one that comes while the
//! table grows: its entry has the new top.

#![cfg(loom)]

mod common;
mod loom_common;

use iommu_core::IommuOps;
use loom::thread;
use loom_common::{DEV, Machine};
use platform::sync::atomic::Ordering;
use platform::{DmaAddr, IotlbGather, LeakCounter, PhysAddr, Prot};

const PAGE: u64 = 0x1000;
const AT: DmaAddr = DmaAddr::new(PAGE);

#[test]
fn a_unit_on_its_way_in_sees_an_unmap_or_is_told_of_it() {
    let mut model = loom::model::Builder::new();
    // One is enough for the fault; an attach is long, and a third takes a minute.
    model.preemption_bound = Some(2);
    model.check(|| {
        let machine = Machine::boot();
        machine.driver.probe_device(DEV).unwrap();
        let domain = machine.driver.domain_alloc_paging(DEV).unwrap();
        // SAFETY: there is no device that could touch anything.
        let (_, mapped) = unsafe { domain.map_pages(AT, PhysAddr::new(0x5000), PAGE, 1, Prot::READ) };
        mapped.unwrap();
        let attacher = {
            let domain = domain.clone();
            // SAFETY: nobody else moves the device, and it touches nothing.
            thread::spawn(move || unsafe { domain.attach_dev(DEV, None) }.unwrap())
        };
        let device = {
            let machine = machine.clone();
            thread::spawn(move || machine.unit().access(AT.get()))
        };
        let leaks = LeakCounter::new();
        let mut gather = IotlbGather::new(&leaks);
        // SAFETY: mapped above, unmapped once.
        assert_eq!(unsafe { domain.unmap(AT, PAGE, &mut gather) }, PAGE);
        domain.iotlb_sync(&gather).unwrap();
        attacher.join().unwrap();
        device.join().unwrap();
        // The page is somebody else's by now.
        assert!(machine.unit().cached.iter().all(|page| !page.load(Ordering::Relaxed)));
        // SAFETY: synced.
        let _flushed = unsafe { gather.flushed(machine.frames()) };
        drop(domain);
        machine.finish();
    });
}

#[test]
fn a_device_that_comes_while_the_table_grows_walks_from_the_new_top() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let machine = Machine::boot();
        machine.driver.probe_device(DEV).unwrap();
        let domain = machine.driver.domain_alloc_paging(DEV).unwrap();
        let attacher = {
            let domain = domain.clone();
            // SAFETY: nobody else moves the device, and it touches nothing.
            thread::spawn(move || unsafe { domain.attach_dev(DEV, None) }.unwrap())
        };
        // SAFETY: there is no device that could touch anything.
        let (_, mapped) =
            unsafe { domain.map_pages(DmaAddr::new(1 << 39), PhysAddr::new(0x5000), PAGE, 1, Prot::READ) };
        mapped.unwrap();
        attacher.join().unwrap();
        let entry = machine.driver.device_table(0).unwrap().entry(0);
        assert_eq!(entry.translation.mode(), 4);
        drop(domain);
        machine.finish();
    });
}
