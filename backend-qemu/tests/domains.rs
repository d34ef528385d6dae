//! Devices in domains: many of them, moves between them, and what the IOMMU remembers.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backend_qemu::Defect;
use common::{EDU, PAGE, RW, Rig, map, unmap, with_edu};
use iommu_core::{DomainType, Owner};
use platform::{DmaAddr, PhysAddr};

/// An I/O address that means something else in every domain.
const AT: DmaAddr = DmaAddr::new(0x7000_0000_0000);
const OLD: u64 = 0x0123_4567_89ab_cdef;
const NEW: u64 = 0x0fed_cba9_8765_4321;

/// A frame that holds a word.
fn frame_with(rig: &Rig, value: u64) -> PhysAddr {
    let frame = rig.frame();
    rig.put(frame, &value.to_le_bytes());
    frame
}

#[test]
fn what_is_unmapped_is_refused_and_what_is_mapped_anew_is_found() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domain = rig.attached();
    map(&domain, AT, frame_with(&rig, OLD), PAGE as u64, RW);
    assert_eq!(rig.read(AT), Some(OLD));
    unmap(&domain, AT, PAGE as u64);
    assert_eq!(rig.read(AT), None, "the IOMMU remembers what was flushed");
    // What was not there may be remembered too.
    map(&domain, AT, frame_with(&rig, NEW), PAGE as u64, RW);
    assert_eq!(rig.read(AT), Some(NEW), "the IOMMU remembers that nothing was there");
}

/// The test above can fail: without the flush the IOMMU does remember.
#[test]
fn without_a_flush_the_old_translation_is_seen() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domain = rig.attached();
    let frame = frame_with(&rig, OLD);
    map(&domain, AT, frame, PAGE as u64, RW);
    assert_eq!(rig.read(AT), Some(OLD));
    let mut gather = domain.gather();
    // SAFETY: nobody else is in this domain.
    assert_eq!(unsafe { domain.unmap(AT, PAGE as u64, &mut gather) }, PAGE as u64);
    assert_eq!(domain.iova_to_phys(AT), None);
    assert_eq!(rig.read(AT), Some(OLD), "the IOMMU remembers nothing: then no test of flushes can fail");
    rig.write(AT, NEW);
    assert_eq!(rig.word(frame), NEW);
    let _ = domain.sync(gather).unwrap();
    assert_eq!(rig.read(AT), None);
}

#[test]
fn flushing_a_whole_domain_forgets_all_of_it() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domain = rig.attached();
    let places = [AT, AT.wrapping_add(1 << 30), AT.wrapping_add(1 << 40)];
    places.iter().for_each(|&at| map(&domain, at, frame_with(&rig, OLD), PAGE as u64, RW));
    // Not before: an IOMMU that remembers absence is told of each new mapping, and QEMU's then forgets the domain.
    places.iter().for_each(|&at| assert_eq!(rig.read(at), Some(OLD)));
    let mut gather = domain.gather();
    for at in places {
        // SAFETY: nobody else is in this domain.
        assert_eq!(unsafe { domain.unmap(at, PAGE as u64, &mut gather) }, PAGE as u64);
        assert_eq!(rig.read(at), Some(OLD));
    }
    let _ = domain.flush_all().unwrap();
    for at in places {
        assert_eq!(rig.read(at), None);
    }
    let _ = domain.sync(gather).unwrap();
}

/// What QEMU cannot show: whether the range of a flush is right.
#[test]
fn a_flush_of_one_page_forgets_its_whole_domain_in_qemu() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domain = rig.attached();
    let far = AT.wrapping_add(1 << 40);
    [AT, far].iter().for_each(|&at| map(&domain, at, frame_with(&rig, OLD), PAGE as u64, RW));
    [AT, far].iter().for_each(|&at| assert_eq!(rig.read(at), Some(OLD)));
    let mut kept = domain.gather();
    // SAFETY: nobody else is in this domain.
    assert_eq!(unsafe { domain.unmap(far, PAGE as u64, &mut kept) }, PAGE as u64);
    unmap(&domain, AT, PAGE as u64);
    let forgotten = rig.machine.version().has(Defect::InvalidatesWholeDomain);
    assert_eq!(rig.read(far), (!forgotten).then_some(OLD));
    let _ = domain.sync(kept).unwrap();
}

#[test]
fn a_flush_of_one_domain_leaves_another_alone() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let (one, other) = (rig.domain(), rig.attached());
    map(&other, AT, frame_with(&rig, OLD), PAGE as u64, RW);
    assert_eq!(rig.read(AT), Some(OLD));
    // A device must be in a domain for a flush of it to be sent at all; this one has been in the other first.
    map(&one, AT, frame_with(&rig, NEW), PAGE as u64, RW);
    rig.group.replace(&one).unwrap();
    assert_eq!(rig.read(AT), Some(NEW), "the IOMMU remembers the domain that the device has left");
    rig.group.replace(&other).unwrap();
    assert_eq!(rig.read(AT), Some(OLD));
}

#[test]
fn identity_and_blocked_domains_take_effect_at_once() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let (frame, bystander) = (frame_with(&rig, OLD), frame_with(&rig, OLD));
    let domain = rig.attached();
    map(&domain, AT, frame, PAGE as u64, RW);
    rig.write(AT, NEW);
    assert_eq!(rig.word(frame), NEW);
    // edu's buffer still holds the word.
    rig.group.detach().unwrap();
    rig.group.claim_dma_owner(Owner(7)).unwrap();
    rig.put(frame, &OLD.to_le_bytes());
    for at in [AT, DmaAddr::new(frame.get()), DmaAddr::new(bystander.get())] {
        rig.store(at, 0, 8);
    }
    assert_eq!((rig.word(frame), rig.word(bystander)), (OLD, OLD), "a blocked device wrote");
    rig.group.release_dma_owner(Owner(7)).unwrap();
    // SAFETY: the device does as this test says.
    unsafe { rig.group.set_type_trusted(DomainType::Identity) }.unwrap();
    rig.store(AT, 0, 8);
    assert_eq!(rig.word(frame), OLD, "an identity domain translates");
    rig.store(DmaAddr::new(bystander.get()), 0, 8);
    assert_eq!(rig.word(bystander), NEW, "an identity domain refuses");
}

/// The domain identifier of `edu`, as the hardware finds it: bits 79:64 of the 32 bytes for its requester ID.
fn domain_id(rig: &Rig) -> u16 {
    let table = rig.machine.driver().unwrap().device_table(0).unwrap();
    table.entry(EDU.id.get()).to_words()[1] as u16
}

/// More domains than there are in 8 bits of an identifier, all with something else at the same address.
#[test]
fn many_domains_are_kept_apart() {
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domains: Vec<_> = (0..600_u64)
        .map(|index| {
            let (domain, value) = (rig.domain(), OLD ^ index << 32);
            let frame = frame_with(&rig, value);
            map(&domain, AT, frame, PAGE as u64, RW);
            (domain, frame, value)
        })
        .collect();
    let (mut ids, mut refused) = (std::collections::BTreeSet::new(), 0);
    // Each twice, so that each has been left once.
    for (domain, _, value) in domains.iter().chain(&domains) {
        rig.group.replace(domain).unwrap();
        let id = domain_id(&rig);
        ids.insert(id);
        let works = id & 1 << 8 == 0 || !rig.machine.version().has(Defect::DomainIdBit8);
        refused += usize::from(!works);
        if works {
            assert_eq!(rig.read(AT), Some(*value), "domain {id}");
        } else {
            rig.fetch(AT, 0, 8);
            // Nothing comes out of the device either.
            let staging = rig.unload(8);
            assert_ne!(staging, value.to_le_bytes(), "domain {id}, which this QEMU refuses");
        }
    }
    assert_eq!(ids.len(), domains.len());
    assert_eq!(refused != 0, rig.machine.version().has(Defect::DomainIdBit8));
}

/// A device that never stops writing, moved between two domains and out of both: whatever a move has left is left.
#[test]
fn a_device_that_is_moved_under_load_writes_only_where_it_is() {
    const MOVES: usize = 60;
    let Some(rig) = Rig::start(with_edu()) else { return };
    let domains = [rig.domain(), rig.domain()];
    let frames = [rig.frame(), rig.frame()];
    for (domain, &frame) in domains.iter().zip(&frames) {
        map(domain, AT, frame, PAGE as u64, RW);
    }
    rig.group.attach(&domains[0]).unwrap();
    rig.load(&NEW.to_le_bytes());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rig.store(AT, 0, 8);
            }
        });
        for turn in 0..MOVES {
            let (here, there) = (turn % 2, (turn + 1) % 2);
            rig.group.replace(&domains[here]).unwrap();
            frames.iter().for_each(|&frame| rig.put(frame, &OLD.to_le_bytes()));
            let start = Instant::now();
            while rig.word(frames[here]) != NEW {
                assert!(
                    start.elapsed() < Duration::from_secs(20),
                    "move {turn}: nothing is written where it is"
                );
                std::thread::yield_now();
            }
            assert_eq!(rig.word(frames[there]), OLD, "move {turn}: it still writes where it was");
            if turn % 3 == 0 {
                // Out of both.
                rig.group.detach().unwrap();
                frames.iter().for_each(|&frame| rig.put(frame, &OLD.to_le_bytes()));
                std::thread::sleep(Duration::from_millis(5));
                assert_eq!(
                    frames.map(|frame| rig.word(frame)),
                    [OLD; 2],
                    "move {turn}: it writes from nowhere"
                );
            }
        }
    });
    rig.machine.health().unwrap();
}

/// Ends the load even when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
