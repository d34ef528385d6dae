//! AMD v1 page tables as QEMU's IOMMU reads them: every size of page, every height of table, every permission. What counts is
//! what is in memory.

mod common;

use backend_qemu::Config;
use common::{PAGE, RW, Rig, map, unmap, with_edu};
use platform::{DmaAddr, PhysAddr, Prot};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn words(first: u64) -> impl Iterator<Item = u64> {
    // Odd numbers times this never repeat and are never zero.
    (0..).map(move |index| (first + 2 * index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

/// Every size that the table has a page of: the sizes of its levels, and those between, which an entry of level 7 encodes.
#[test]
fn every_page_size_leads_where_it_should_and_no_further() {
    let Some(rig) = Rig::start(with_edu().memory(2 * GIB)) else { return };
    let domain = rig.attached();
    let mut values = words(0);
    let sizes = domain.page_sizes();
    let mut tried = 0;
    // Those beyond what RAM holds begin at its start.
    for size in (12..=46).map(|bits| 1_u64 << bits).filter(|&size| sizes.contains(size)) {
        // Never where an earlier page was, as far as its first frame goes.
        let phys = match size {
            _ if size < 512 * MIB => 512 * MIB + (size & (256 * MIB - 1)),
            _ if size <= GIB => 2 * GIB - size,
            _ => 0,
        };
        let iova = if size <= GIB { 0x41 * size } else { size };
        let before = rig.machine.platform().frames().bytes_in_use();
        map(&domain, DmaAddr::new(iova), PhysAddr::new(phys), size, RW);
        let tables = (rig.machine.platform().frames().bytes_in_use() - before) / PAGE as u64;
        assert!(tables <= 3, "a page of {size:#x} bytes took {tables} tables: it is none");
        // The first frame, one in the middle and the last, or whichever is free before that.
        let mut offsets = if size <= GIB {
            vec![0, (size / 2) & !(PAGE as u64 - 1), size - PAGE as u64]
        } else {
            vec![256 * MIB, GIB, 2 * GIB - PAGE as u64]
        };
        offsets.dedup();
        for offset in offsets {
            let frame = rig.frame_below(phys + offset + PAGE as u64 - 1);
            let offset = frame.get().checked_sub(phys).unwrap();
            assert!(offset < size);
            let at = DmaAddr::new(iova + offset + 8);
            let value = values.next().unwrap();
            rig.write(at, value);
            assert_eq!(rig.word(frame.wrapping_add(8)), value, "written at {offset:#x} of {size:#x} bytes");
            let value = values.next().unwrap();
            rig.put(frame.wrapping_add(8), &value.to_le_bytes());
            assert_eq!(rig.read(at), Some(value), "read at {offset:#x} of {size:#x} bytes");
            tried += 1;
        }
        for beside in [iova - 8, iova + size] {
            assert_eq!(
                rig.read(DmaAddr::new(beside)),
                None,
                "{beside:#x} beside {size:#x} bytes at {iova:#x}"
            );
        }
        unmap(&domain, DmaAddr::new(iova), size);
        assert_eq!(rig.read(DmaAddr::new(iova)), None, "{size:#x} bytes, unmapped");
    }
    // One frame of 4 KiB, two of 8 KiB, three of each larger size; there is none of 512 GiB.
    assert_eq!(tried, 1 + 2 + 3 * (35 - 2 - 1));
    rig.machine.health().unwrap();
}

#[test]
fn permissions_are_kept_at_every_page_size() {
    let Some(rig) = Rig::start(with_edu().memory(2 * GIB)) else { return };
    let domain = rig.attached();
    let mut values = words(1000);
    for size in [PAGE as u64, 64 << 10, 2 * MIB, 32 * MIB, GIB] {
        let phys = if size == GIB { GIB } else { 512 * MIB };
        let frame = rig.frame_below(phys + size - 1);
        let at = DmaAddr::new(0x100 * GIB + (frame.get() - phys));
        for (prot, reads, writes) in [(Prot::READ, true, false), (Prot::WRITE, false, true), (RW, true, true)]
        {
            map(&domain, DmaAddr::new(0x100 * GIB), PhysAddr::new(phys), size, prot);
            let (old, new) = (values.next().unwrap(), values.next().unwrap());
            rig.put(frame, &old.to_le_bytes());
            assert_eq!(rig.read(at), reads.then_some(old), "reading {size:#x} bytes with {prot:?}");
            rig.write(at, new);
            assert_eq!(
                rig.word(frame),
                if writes { new } else { old },
                "writing {size:#x} bytes with {prot:?}"
            );
            unmap(&domain, DmaAddr::new(0x100 * GIB), size);
        }
    }
}

/// Tables of 3 to 6 levels: the first and the last page of what each reaches, and nothing beyond it.
#[test]
fn tables_of_every_height_reach_as_far_as_they_should() {
    for levels in 3..=6_u8 {
        let driver = amd_vi::Config { levels, ..amd_vi::Config::default() };
        let Some(rig) = Rig::start(with_edu().driver(driver)) else { return };
        let domain = rig.attached();
        let last = domain.aperture().1.get();
        let reach = if levels == 6 { u64::MAX } else { (1 << (12 + 9 * levels)) - 1 };
        assert_eq!(last, reach, "{levels} levels");
        let mut values = words(2000 + u64::from(levels) * 100);
        // One page for each bit of the address.
        let bits = (13..64).map(|bit| 1_u64 << bit).filter(|&at| at <= last);
        for iova in bits.chain([last - (PAGE as u64 - 1)]).filter(|iova| !is_message(*iova)) {
            let frame = rig.frame();
            map(&domain, DmaAddr::new(iova), frame, PAGE as u64, RW);
            let value = values.next().unwrap();
            rig.write(DmaAddr::new(iova), value);
            assert_eq!(rig.word(frame), value, "{iova:#x} in {levels} levels");
            rig.put(frame, &(!value | 1).to_le_bytes());
            assert_eq!(rig.read(DmaAddr::new(iova)), Some(!value | 1), "{iova:#x} in {levels} levels");
        }
    }
}

/// Where hardware takes a write for an interrupt.
fn is_message(iova: u64) -> bool {
    (0xfee0_0000..=0xfeef_ffff).contains(&iova)
}

/// 10,000 pages in no order, each tried in both directions.
#[test]
fn ten_thousand_scattered_pages_are_each_in_their_place() {
    const PAGES: usize = 10_000;
    let Some(rig) = Rig::start(Config::memory(with_edu(), 256 * MIB)) else { return };
    let domain = rig.attached();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut frames: Vec<PhysAddr> = (0..PAGES).map(|_| rig.frame()).collect();
    for index in (1..PAGES).rev() {
        frames.swap(index, (next() % (index as u64 + 1)) as usize);
    }
    // Anywhere in 47 bits, each with neighbours of its own.
    let iovas: std::collections::BTreeSet<u64> = std::iter::repeat_with(|| (next() >> 17) & !0xfff)
        .filter(|it| *it > 0x1_0000_0000)
        .take(PAGES)
        .collect();
    let pages: Vec<(DmaAddr, PhysAddr)> = iovas.iter().map(|&it| DmaAddr::new(it)).zip(frames).collect();
    for &(iova, frame) in &pages {
        map(&domain, iova, frame, PAGE as u64, RW);
    }
    // What each holds is read by the device, a bufferful at a time.
    let values: Vec<u64> = words(10_000).take(pages.len()).collect();
    for (&(_, frame), value) in pages.iter().zip(&values) {
        rig.put(frame, &value.to_le_bytes());
    }
    for (pages, values) in pages.chunks(512).zip(values.chunks(512)) {
        for (index, &(iova, _)) in pages.iter().enumerate() {
            rig.fetch(iova, 8 * index, 8);
        }
        let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(rig.unload(8 * pages.len()) == expected, "the device read something else");
    }
    // And the other way.
    let values: Vec<u64> = words(50_000).take(pages.len()).collect();
    for (pages, values) in pages.chunks(512).zip(values.chunks(512)) {
        rig.load(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        for (index, &(iova, _)) in pages.iter().enumerate() {
            rig.store(iova.wrapping_add(16), 8 * index, 8);
        }
    }
    for (&(iova, frame), &value) in pages.iter().zip(&values) {
        assert_eq!(rig.word(frame.wrapping_add(16)), value, "{iova}");
    }
    rig.machine.health().unwrap();
}
