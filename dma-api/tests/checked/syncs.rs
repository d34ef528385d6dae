//! Syncs that break a rule.

use dma_api::Direction::{Bidirectional, FromDevice as From, ToDevice as To};
use dma_api::{Mistake, SgEntry};

use crate::common::PAGE;
use crate::watch::{Watch, after, three_elements};

#[test]
fn syncing_what_is_not_mapped_is_refused() {
    let watch = Watch::new();
    let buffer = watch.buffer(1);
    let address = watch.map(buffer.phys(), 100, Bidirectional);
    watch.for_cpu(address, 100, Bidirectional);
    watch.for_device(address.wrapping_add(99), 1, Bidirectional);
    watch.silent();
    assert_eq!(watch.syncs_reached().len(), 2);
    let beyond = address.wrapping_add(100);
    watch.for_cpu(beyond, 1, Bidirectional);
    assert_eq!(watch.said(), Mistake::SyncNotMapped { address: beyond, len: 1 });
    watch.for_device(address.wrapping_add(99), 2, Bidirectional);
    assert!(
        matches!(watch.said(), Mistake::SyncOutside { mapping, len: 2, .. } if mapping.address == address)
    );
    watch.unmap(address, 100, Bidirectional).unwrap();
    watch.for_cpu(address, 100, Bidirectional);
    assert_eq!(watch.said(), Mistake::SyncNotMapped { address, len: 100 });
    assert_eq!(watch.syncs_reached(), []);
}

#[test]
fn each_segment_of_a_list_can_be_synced() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let mut list = three_elements(&buffer);
    watch.map_sg(&mut list, From);
    watch.for_cpu(list[0].dma_address, 2 * PAGE, From);
    watch.for_cpu(list[1].dma_address, PAGE, From);
    watch.silent();
    watch.for_cpu(list[1].dma_address, PAGE + 1, From);
    assert!(
        matches!(watch.said(), Mistake::SyncOutside { mapping, .. } if mapping.address == list[0].dma_address)
    );
    watch.unmap_sg(&list, From).unwrap();
}

#[test]
fn a_list_is_synced_with_all_its_elements() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let mut list = three_elements(&buffer);
    let segments = watch.map_sg(&mut list, From);
    let sync = |list: &[SgEntry]| {
        let (ops, parms) = (watch.device.ops(), watch.device.parms());
        // SAFETY: what breaks the contract does not reach the mock, which checks it.
        unsafe {
            ops.sync_sg_for_cpu(parms, list, From);
            ops.sync_sg_for_device(parms, list, From);
        }
    };
    sync(&list);
    watch.silent();
    assert_eq!(watch.sync_lists_reached(), 2);
    sync(&list[..segments]);
    let reports = watch.debug.take_reports();
    assert_eq!(reports.len(), 2, "for the CPU and for the device");
    for report in reports {
        let Mistake::SyncElements { mapping, elements: 3, synced_with: 2 } = report.mistake else { panic!() };
        assert_eq!(mapping.address, list[0].dma_address);
    }
    assert_eq!(watch.sync_lists_reached(), 0);
    watch.unmap_sg(&list, From).unwrap();
    sync(&list);
    assert!(matches!(watch.debug.take_reports()[0].mistake, Mistake::SyncNotMapped { .. }));
    assert_eq!(watch.sync_lists_reached(), 0);
}

#[test]
fn syncing_in_a_wrong_direction_is_told_and_done_in_the_right_one() {
    let watch = Watch::new();
    let buffer = watch.buffer(3);
    let both = watch.map(buffer.phys(), 100, Bidirectional);
    let to = watch.map(after(buffer.phys(), PAGE), 100, To);
    let from = watch.map(after(buffer.phys(), 2 * PAGE), 100, From);
    for (address, dir) in [(both, Bidirectional), (to, To), (from, From)] {
        watch.for_cpu(address, 100, dir);
        watch.for_device(address, 100, dir);
    }
    watch.silent();
    watch.syncs_reached();
    watch.for_cpu(both, 100, From);
    assert!(
        matches!(watch.said(), Mistake::SyncDirection { mapping, dir: From } if mapping.dir == Bidirectional)
    );
    watch.for_device(to, 100, Bidirectional);
    assert!(matches!(watch.said(), Mistake::SyncDirection { mapping, .. } if mapping.dir == To));
    watch.for_cpu(to, 100, From);
    assert!(matches!(watch.said(), Mistake::SyncReadOnlyForCpu { mapping, dir: From } if mapping.dir == To));
    watch.for_device(from, 100, To);
    assert!(
        matches!(watch.said(), Mistake::SyncWriteOnlyForDevice { mapping, dir: To } if mapping.dir == From)
    );
    assert_eq!(watch.syncs_reached(), [Bidirectional, To, To, From]);
}

#[test]
fn coherent_memory_is_not_synced() {
    let watch = Watch::new();
    let memory = watch.alloc();
    watch.for_cpu(memory.dma, 100, Bidirectional);
    assert!(matches!(watch.said(), Mistake::SyncCoherent { mapping } if mapping.address == memory.dma));
    assert_eq!(watch.syncs_reached(), []);
    // What is mapped beside it is.
    let buffer = watch.buffer(1);
    let mapped = watch.map(buffer.phys(), 100, Bidirectional);
    watch.for_cpu(mapped, 100, Bidirectional);
    watch.unmap(mapped, 100, Bidirectional).unwrap();
    watch.free(memory).unwrap();
    watch.silent();
}
