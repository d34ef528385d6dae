//! Devices that ask for pages which are not there, wait, and go on.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backend_sim::sim_hardware::pri::Pri;
use backend_sim::sim_hardware::{Machine, iommu};
use backend_sim::{Config, SimMachine};
use common::engine::RawEngine;
use common::{boot, page};
use dma_api::DmaBuffer;
use iommu_core::{Domain, Group, IopfQueue, Owner, PagingFlags, ResponseCode, Trust};
use platform::pci::ConfigSpace;
use platform::{DmaAddr, Prot};

const IOVA: DmaAddr = DmaAddr::new(0x40_0000);
const MARK: [u8; 8] = *b"a visit!";
const PASID: u32 = 0x1_2345;
/// The control and status word of the engine's page requests: its third extended capability.
const PRI_CONTROL: u16 = 0x124;

fn with_page_requests(config: &mut Config) {
    config.iommu.as_mut().unwrap().efr |= iommu::Config::GUEST | iommu::Config::PAGE_REQUESTS;
    config.engines.ats = Some(2);
    config.engines.pasid_bits = Some(20);
    config.engines.page_requests = true;
    // SAFETY: simulated devices do DMA only when a test tells them to, on memory of the simulated machine.
    config.driver.ats = Some(unsafe { Trust::new() });
}

/// Says that something is done when it goes.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

// The machine goes last: what is in it takes leave of its IOMMU.
struct Bench {
    engine: RawEngine,
    group: Arc<Group>,
    /// The domain of [`PASID`].
    domain: Arc<Domain>,
    queue: Arc<IopfQueue>,
    machine: SimMachine,
}

impl Bench {
    /// An engine whose requests carry [`PASID`], with a domain for that and a queue for what it asks for.
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let machine = boot(|config| {
            with_page_requests(config);
            change(config);
        });
        let address = SimMachine::address(Machine::ENGINE);
        let (function, device) = machine.bind(address).unwrap();
        drop(device);
        let group = machine.group(address).unwrap();
        group.claim_dma_owner(Owner(1)).unwrap();
        let own = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
        group.attach(&own).unwrap();
        let domain = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
        let queue = Arc::new(IopfQueue::new());
        domain.set_iopf_queue(Arc::clone(&queue)).unwrap();
        group.attach_pasid(&domain, PASID).unwrap();
        let engine = RawEngine::new(&*function);
        engine.use_pasid(Some(PASID));
        Self { machine, engine, group, domain, queue }
    }

    fn pri(&self) -> &Arc<Pri> {
        self.machine.hardware().pci.pri(Machine::ENGINE).unwrap()
    }

    /// Maps a page where the engine asks for one.
    fn bring(&self, at: DmaAddr, page: &DmaBuffer<u8>) {
        // SAFETY: the page stays as long as the machine, and is looked at only when the engine is idle.
        unsafe { self.domain.map(at, page.phys(), 4096, Prot::READ | Prot::WRITE) }.1.unwrap();
    }

    /// Answers everything that is asked while `action` runs.
    fn answering<T>(
        &self,
        answer: impl Fn(&iommu_core::PageRequest) -> ResponseCode + Sync,
        action: impl FnOnce() -> T,
    ) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    match self.queue.pop() {
                        Some(group) => {
                            let code = answer(group.requests().last().unwrap());
                            group.respond(code);
                        }
                        None => std::thread::yield_now(),
                    }
                }
            });
            // Also when it panics.
            let _finish = Finish(&done);
            action()
        })
    }
}

#[test]
fn a_page_is_brought_when_it_is_asked_for() {
    let bench = Bench::new(|_| {});
    let page = page(&bench.machine);
    let asked = parking_lot::Mutex::new(Vec::new());
    let written = bench.answering(
        |request| {
            asked.lock().push(*request);
            bench.bring(request.address, &page);
            ResponseCode::Success
        },
        || bench.engine.write(IOVA.wrapping_add(0x128), MARK),
    );
    assert!(written);
    assert_eq!(page[0x128..0x130], MARK);
    let asked = asked.into_inner();
    let [request] = asked[..] else { panic!("{asked:?}") };
    assert_eq!((request.device, request.pasid), (SimMachine::address(Machine::ENGINE), Some(PASID)));
    assert_eq!((request.address, request.access, request.last), (IOVA, Prot::READ | Prot::WRITE, true));
    assert_eq!(bench.pri().unexpected(), 0);
    // Nothing of it was a fault.
    assert_eq!(bench.machine.take_faults(), []);
}

#[test]
fn every_answer_reaches_the_device() {
    let bench = Bench::new(|_| {});
    assert!(!bench.answering(|_| ResponseCode::Invalid, || bench.engine.write(IOVA, MARK)));
    assert!(bench.pri().is_enabled());
    assert!(!bench.answering(|_| ResponseCode::Failure, || bench.engine.write(IOVA, MARK)));
    assert!(!bench.pri().is_enabled(), "it need not ask again");
    assert_eq!((bench.pri().unexpected(), bench.pri().waiting()), (0, 0));
}

#[test]
fn nobody_who_brings_pages_answers_at_once() {
    let bench = Bench::new(|_| {});
    let other = bench.group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    bench.group.attach_pasid(&other, 7).unwrap();
    let start = Instant::now();
    // A domain without a queue; and a PASID without a domain.
    for pasid in [7, 8] {
        bench.engine.use_pasid(Some(pasid));
        assert!(!bench.engine.write(IOVA, MARK));
    }
    // Requests without a PASID are not served, and answered.
    bench.engine.use_pasid(None);
    assert!(!bench.engine.write(IOVA, MARK));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(bench.pri().is_enabled());
}

#[test]
fn page_requests_are_on_only_where_something_can_be_brought() {
    let bench = Bench::new(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    let control = || bench.machine.hardware().pci.read32(address, PRI_CONTROL);
    let entry = || {
        let table = bench.machine.driver().unwrap().units()[0].registers().read(0) & 0x000f_ffff_ffff_f000;
        bench.machine.hardware().ram.read64(table + 32 * u64::from(Machine::ENGINE.get())).unwrap()
    };
    // Enable, and 32 requests at most; PPR in the entry.
    assert_eq!(control() & 1, 1);
    assert_eq!(bench.machine.hardware().pci.read32(address, PRI_CONTROL + 8), 32);
    assert_eq!(entry() >> 52 & 1, 1);
    bench.group.detach_pasid(PASID).unwrap();
    bench.group.detach().unwrap();
    assert_eq!((control() & 1, entry() >> 52 & 1), (0, 0));
    let v1 = bench.group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    bench.group.attach(&v1).unwrap();
    assert_eq!((control() & 1, entry() >> 52 & 1), (0, 0));
    // Without trust, or without the unit's part.
    type Change = fn(&mut Config);
    let without: [Change; 2] =
        [|config| config.driver.ats = None, |config| config.iommu.as_mut().unwrap().efr &= !(1 << 1)];
    for change in without {
        let bench = Bench::new(change);
        assert!(!bench.pri().is_enabled());
        assert!(!bench.engine.write(IOVA, MARK));
    }
}

#[test]
fn a_log_that_overflows_loses_nobody() {
    let bench = Bench::new(|config| config.driver.log2_page_requests = 8);
    let registers = bench.machine.driver().unwrap().units()[0].registers();
    assert_ne!(registers.read(0x2020) >> 7 & 1, 0, "PPRLogRun");
    // From now on requests are lost, and the unit answers them itself: try again.
    let page = page(&bench.machine);
    let written = bench.answering(
        |request| {
            bench.bring(request.address, &page);
            ResponseCode::Success
        },
        || {
            bench.machine.hardware().iommu.as_ref().unwrap().overflow_page_requests();
            bench.engine.write(IOVA, MARK)
        },
    );
    assert!(written);
    assert_eq!(page[..8], MARK);
    let log = bench.machine.driver().unwrap().units()[0].page_requests().unwrap();
    assert!(log.statistics().overflows >= 1);
    assert_eq!(registers.read(0x2020) >> 5 & 1, 0, "PPROverflow");
}

#[test]
fn many_pages_come_one_by_one() {
    let bench = Bench::new(|_| {});
    let pages: Vec<_> = (0..40).map(|_| page(&bench.machine)).collect();
    bench.answering(
        |request| {
            let number = (request.address.get() - IOVA.get()) / 4096;
            bench.bring(request.address, &pages[number as usize]);
            ResponseCode::Success
        },
        || {
            for number in 0..40_u64 {
                assert!(bench.engine.write(IOVA.wrapping_add(number * 4096), number.to_le_bytes()));
            }
        },
    );
    assert!((0_u64..).zip(&pages).all(|(number, page)| page[..8] == number.to_le_bytes()));
    assert_eq!(bench.pri().unexpected(), 0);
}
