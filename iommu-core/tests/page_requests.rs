//! A device's page requests reach whoever brings pages in the domain that they are for, group by group, and each group is
//! answered once, whatever becomes of it.

mod common;

use std::sync::Arc;

use common::{Bench, Did, NIC, Setup};
use iommu_core::{
    DomainError, Group, IopfQueue, Owner, PageRequest, PageResponse, PagingFlags, ResponseCode, UnknownDevice,
};
use platform::pci::PciAddress;
use platform::{DmaAddr, Prot};

fn request(pasid: Option<u32>, group: u16, address: u64, last: bool) -> PageRequest {
    PageRequest { device: NIC, pasid, group, address: DmaAddr::new(address), access: Prot::READ, last }
}

/// A claimed group in a domain with a queue.
fn bench() -> (Bench, Arc<Group>, Arc<IopfQueue>) {
    let mut setup = Setup::default();
    setup.knobs.max_pasids.insert(NIC, 16);
    let bench = setup.bench();
    let group = bench.group(NIC);
    group.claim_dma_owner(Owner(1)).unwrap();
    let (domain, queue) = with_queue(&group);
    group.attach(&domain).unwrap();
    (bench, group, queue)
}

fn with_queue(group: &Group) -> (Arc<iommu_core::Domain>, Arc<IopfQueue>) {
    let domain = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    let queue = Arc::new(IopfQueue::new());
    domain.set_iopf_queue(Arc::clone(&queue)).unwrap();
    (domain, queue)
}

fn report(bench: &Bench, request: PageRequest) {
    bench.iommu.report_page_request(request).unwrap();
}

fn answers(bench: &Bench) -> Vec<(u16, ResponseCode)> {
    let answer = |did| match did {
        Did::Response { response, .. } => Some((response.group, response.code)),
        _ => None,
    };
    bench.toy.take_log().into_iter().filter_map(answer).collect()
}

#[test]
fn a_group_is_complete_with_its_last_request() {
    let (bench, _group, queue) = bench();
    report(&bench, request(None, 1, 0x1000, false));
    report(&bench, request(None, 2, 0x7000, false));
    report(&bench, request(None, 1, 0x2000, false));
    assert!(queue.pop().is_none());
    report(&bench, request(None, 1, 0x3000, true));
    let group = queue.pop().unwrap();
    let addresses: Vec<u64> = group.requests().iter().map(|request| request.address.get()).collect();
    assert_eq!(addresses, [0x1000, 0x2000, 0x3000]);
    assert!(queue.pop().is_none());
    report(&bench, request(None, 2, 0x8000, true));
    assert_eq!(queue.pop().unwrap().requests().len(), 2, "the other has kept its own");
}

#[test]
fn the_device_hears_what_was_answered_once() {
    let (bench, _group, queue) = bench();
    report(&bench, request(None, 7, 0x1000, true));
    bench.toy.take_log();
    queue.pop().unwrap().respond(ResponseCode::Success);
    let response = PageResponse { pasid: None, group: 7, code: ResponseCode::Success };
    assert_eq!(bench.toy.take_log(), [Did::Response { device: NIC, response }]);
}

#[test]
fn a_group_that_nobody_answers_is_answered_all_the_same() {
    let (bench, group, queue) = bench();
    report(&bench, request(None, 7, 0x1000, true));
    bench.toy.take_log();
    drop(queue.pop().unwrap());
    assert_eq!(answers(&bench), [(7, ResponseCode::Invalid)]);
    // Those that wait when the queue goes, too.
    report(&bench, request(None, 8, 0x1000, true));
    group.release_dma_owner(Owner(1)).unwrap();
    drop(queue);
    assert_eq!(answers(&bench), [(8, ResponseCode::Invalid)]);
}

#[test]
fn where_nobody_brings_pages_the_answer_is_invalid() {
    let (bench, group, queue) = bench();
    group.detach().unwrap();
    report(&bench, request(None, 7, 0x1000, true));
    assert_eq!(answers(&bench), [(7, ResponseCode::Invalid)]);
    assert!(queue.pop().is_none());
}

#[test]
fn a_pasid_has_the_queue_of_its_domain() {
    let (bench, group, queue) = bench();
    let (domain, of_pasid) = with_queue(&group);
    group.attach_pasid(&domain, 5).unwrap();
    report(&bench, request(Some(5), 1, 0x1000, true));
    assert!(queue.pop().is_none());
    assert_eq!(of_pasid.pop().unwrap().requests()[0].pasid, Some(5));
    bench.toy.take_log();
    group.detach_pasid(5).unwrap();
    report(&bench, request(Some(5), 2, 0x1000, true));
    assert_eq!(answers(&bench), [(2, ResponseCode::Invalid)]);
}

#[test]
fn what_a_full_queue_does_not_take_is_answered() {
    let (bench, _group, queue) = bench();
    for _ in 0..IopfQueue::CAPACITY {
        report(&bench, request(None, 1, 0x1000, true));
    }
    assert_eq!(answers(&bench), []);
    report(&bench, request(None, 2, 0x1000, true));
    assert_eq!(answers(&bench), [(2, ResponseCode::Invalid)]);
    assert!(queue.pop().is_some());
}

#[test]
fn a_device_that_finishes_nothing_takes_no_more_memory() {
    let (bench, _group, queue) = bench();
    for _ in 0..10_000 {
        report(&bench, request(None, 1, 0x1000, false));
    }
    report(&bench, request(None, 1, 0x1000, true));
    assert_eq!(queue.pop().unwrap().requests().len(), 513);
}

#[test]
fn after_a_lost_request_what_is_not_finished_is_forgotten() {
    let (bench, _group, queue) = bench();
    report(&bench, request(None, 1, 0x1000, false));
    bench.iommu.discard_partial_page_requests();
    report(&bench, request(None, 1, 0x2000, true));
    assert_eq!(queue.pop().unwrap().requests(), [request(None, 1, 0x2000, true)]);
}

#[test]
fn a_driver_is_told_of_devices_that_nobody_has() {
    let (bench, ..) = bench();
    let stranger = PciAddress::new(0, 9, 0, 0);
    let unknown = PageRequest { device: stranger, ..request(None, 1, 0, true) };
    assert_eq!(bench.iommu.report_page_request(unknown), Err(UnknownDevice(stranger)));
    bench.iommu.remove(NIC);
    assert_eq!(bench.iommu.report_page_request(request(None, 1, 0, true)), Err(UnknownDevice(NIC)));
}

#[test]
fn the_domains_of_the_dma_api_have_no_queue() {
    let bench = Setup::default().bench();
    let queue = Arc::new(IopfQueue::new());
    let default = bench.group(NIC).default_domain().unwrap();
    assert_eq!(default.set_iopf_queue(queue), Err(DomainError::InUse));
    let (domain, other) = with_queue(&bench.group(NIC));
    assert_eq!(domain.set_iopf_queue(other), Err(DomainError::InUse), "one is enough");
}
