//! Who looks an address up owns nothing: no table page that he may be in goes back to the platform before he is done.

mod common;

use std::sync::{Arc, Barrier};
use std::thread;

use common::{Bench, NIC, PAGE, Setup, map_page, unmap_page};
use iommu_core::{Domain, PagingFlags};
use platform::{DmaAddr, FrameRequest, Frames, Prot};

const AT: DmaAddr = DmaAddr::new(0x10_0000);

/// A domain of somebody's own that can say what was written.
fn domain(bench: &Bench) -> Arc<Domain> {
    bench.group(NIC).alloc_unmanaged(PagingFlags::DIRTY_TRACKING).unwrap()
}

/// The next unmap takes a table page out.
fn prepare(bench: &Bench) {
    bench.toy.next_unmap_takes_out(bench.host.window(), bench.host.alloc(FrameRequest::ONE).unwrap());
}

/// An unmap in `domain` that takes a table page out, and its invalidation.
fn take_a_table_out(bench: &Bench, domain: &Domain) {
    prepare(bench);
    let mut gather = domain.gather();
    // SAFETY: nobody else maps or unmaps here.
    unsafe { domain.unmap(AT.wrapping_add(16 * PAGE), PAGE, &mut gather) };
    let _flushed = domain.sync(gather).unwrap();
}

#[test]
fn a_table_page_goes_back_at_once_when_nobody_looks_anything_up() {
    let bench = Setup::default().bench();
    let domain = domain(&bench);
    let live = bench.host.live();
    assert_eq!(domain.iova_to_phys(AT), None);
    take_a_table_out(&bench, &domain);
    assert_eq!(bench.host.live(), live);
}

#[test]
fn a_table_page_waits_for_a_lookup_that_is_under_way() {
    let bench = Setup::default().bench();
    let domain = domain(&bench);
    let live = bench.host.live();
    let barrier = Arc::new(Barrier::new(2));
    bench.toy.hold_lookup(&barrier);
    thread::scope(|scope| {
        scope.spawn(|| domain.iova_to_phys(AT));
        barrier.wait();
        take_a_table_out(&bench, &domain);
        let meanwhile = bench.host.live();
        // Before anything can fail: the scope waits for the lookup.
        barrier.wait();
        assert_eq!(meanwhile, live + PAGE as usize);
    });
    assert_eq!(bench.host.live(), live);
}

#[test]
fn a_lookup_of_written_pages_counts_as_well_and_may_unmap_itself() {
    let bench = Setup::default().bench();
    let domain = domain(&bench);
    // SAFETY: devices of the toy IOMMU touch nothing by themselves.
    unsafe { domain.map(AT, 0x7000.into(), PAGE, Prot::WRITE) }.1.unwrap();
    bench.group(NIC).claim_dma_owner(iommu_core::Owner(1)).unwrap();
    bench.group(NIC).attach(&domain).unwrap();
    domain.set_dirty_tracking(true).unwrap();
    bench.toy.reach(NIC, AT, true).unwrap();
    let live = bench.host.live();
    let mut seen = 0;
    domain
        .read_and_clear_dirty(AT, PAGE, false, &mut |_, _| {
            seen += 1;
            take_a_table_out(&bench, &domain);
            assert_eq!(bench.host.live(), live + PAGE as usize);
        })
        .unwrap();
    assert_eq!((seen, bench.host.live()), (1, live));
}

#[test]
fn a_table_page_waits_in_a_lazy_domain_too() {
    let bench = Setup::default().lazy().bench();
    let device = bench.bind_trusted(NIC);
    let domain = bench.group(NIC).domain().unwrap();
    let at = map_page(&device).unwrap();
    let live = bench.host.live();
    let barrier = Arc::new(Barrier::new(2));
    bench.toy.hold_lookup(&barrier);
    thread::scope(|scope| {
        scope.spawn(|| domain.iova_to_phys(at));
        barrier.wait();
        prepare(&bench);
        unmap_page(&device, at).unwrap();
        bench.tick();
        let meanwhile = bench.host.live();
        barrier.wait();
        assert_eq!(meanwhile, live + PAGE as usize);
    });
    assert_eq!(bench.host.live(), live);
}

#[test]
fn a_table_page_waits_for_no_lookup_that_began_later() {
    let bench = Setup::default().bench();
    let domain = domain(&bench);
    let live = bench.host.live();
    let [early, late] = [(); 2].map(|()| Arc::new(Barrier::new(2)));
    thread::scope(|scope| {
        bench.toy.hold_lookup(&early);
        let first = scope.spawn(|| domain.iova_to_phys(AT));
        early.wait();
        take_a_table_out(&bench, &domain);
        bench.toy.hold_lookup(&late);
        scope.spawn(|| domain.iova_to_phys(AT));
        late.wait();
        early.wait();
        first.join().unwrap();
        let meanwhile = bench.host.live();
        late.wait();
        assert_eq!(meanwhile, live);
    });
}
