//! Syncs that break a rule.

use dma_api::Direction::{Bidirectional, FromDevice as From, ToDevice as To};
use dma_api::Mistake;

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
