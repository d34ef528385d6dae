//! Unmaps and frees that are not as what they end was made.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma_api::Direction::{Bidirectional, FromDevice as From, ToDevice as To};
use dma_api::{
    Attrs, CoherentMemory, DeviceBuilder, DmaDebug, MappingKind, Mistake, Quarantined, SgEntry, Streaming,
    ToDevice,
};
use platform::{DmaAddr, PhysAddr};

use crate::common::{Host, PAGE};
use crate::watch::{NAME, NONE, Placed, Watch, after, three_elements};

#[test]
fn ending_what_is_not_mapped_is_refused() {
    let watch = Watch::new();
    let buffer = watch.buffer(1);
    let address = watch.map(buffer.phys(), 100, To);
    let inside = address.wrapping_add(1);
    let refused = watch.unmap(inside, 99, To);
    assert_eq!(refused, Err(Quarantined { address: inside, len: 99 }));
    let single = |address, len| Mistake::NotMapped { kind: MappingKind::Single, address, len };
    assert_eq!(watch.said(), single(inside, 99));
    // Linux's value of a map that failed.
    let failed = DmaAddr::new(u64::MAX);
    assert!(watch.unmap(failed, 100, To).is_err());
    assert_eq!(watch.said(), single(failed, 100));
    assert!(watch.unmap_sg(&three_elements(&buffer), To).is_err());
    let kind = MappingKind::Scatter;
    assert_eq!(watch.said(), Mistake::NotMapped { kind, address: DmaAddr::new(0), len: 0 });
    let memory = CoherentMemory { cpu: NonNull::dangling(), dma: DmaAddr::new(u64::MAX), size: 1 };
    assert!(watch.free(memory).is_err());
    assert!(matches!(watch.said(), Mistake::NotMapped { kind: MappingKind::Coherent, .. }));
    assert_eq!(watch.ends_reached(), 0);
    watch.unmap(address, 100, To).unwrap();
    assert_eq!(watch.ends_reached(), 1);
    watch.silent();
}

#[test]
fn ending_a_mapping_twice_is_refused() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let address = watch.map(buffer.phys(), 100, To);
    watch.unmap(address, 100, To).unwrap();
    let mut list = three_elements(&buffer);
    watch.map_sg(&mut list, To);
    watch.unmap_sg(&list, To).unwrap();
    let memory = watch.alloc();
    watch.free(memory).unwrap();
    watch.silent();
    assert_eq!(watch.ends_reached(), 3);
    let twice = |end: Result<(), Quarantined>, at: DmaAddr| {
        assert!(end.is_err());
        assert!(matches!(watch.said(), Mistake::EndedTwice { mapping } if mapping.address == at));
    };
    twice(watch.unmap(address, 100, To), address);
    twice(watch.unmap_sg(&list, To), list[0].dma_address);
    twice(watch.free(memory), memory.dma);
    assert_eq!(watch.ends_reached(), 0);
}

#[test]
fn a_wrong_size_is_told_and_the_mapping_ended_whole() {
    let watch = Watch::new();
    let buffer = watch.buffer(1);
    let address = watch.map(buffer.phys(), 100, To);
    watch.unmap(address, 100, To).unwrap();
    watch.free(watch.alloc()).unwrap();
    watch.silent();
    let address = watch.map(buffer.phys(), 100, To);
    assert_eq!(watch.unmap(address, 99, To), Ok(()));
    assert!(matches!(watch.said(), Mistake::WrongSize { mapping, len: 99 } if mapping.len == 100));
    let memory = watch.alloc();
    assert_eq!(watch.free(CoherentMemory { size: 4096, ..memory }), Ok(()));
    assert!(matches!(watch.said(), Mistake::WrongSize { mapping, len: 4096 } if mapping.len == 100));
    assert_eq!(watch.mock.live(), 0);
}

#[test]
fn a_wrong_direction_is_told_and_the_mapping_ended_in_its_own() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let mut list = three_elements(&buffer);
    for dir in [To, From, Bidirectional] {
        watch.unmap(watch.map(buffer.phys(), 100, dir), 100, dir).unwrap();
        watch.map_sg(&mut list, dir);
        watch.unmap_sg(&list, dir).unwrap();
    }
    watch.silent();
    let address = watch.map(buffer.phys(), 100, From);
    assert_eq!(watch.unmap(address, 100, Bidirectional), Ok(()));
    let wrong = |mistake| matches!(mistake, Mistake::WrongDirection { mapping, dir: Bidirectional } if mapping.dir == From);
    assert!(wrong(watch.said()));
    let mut list = three_elements(&buffer);
    watch.map_sg(&mut list, From);
    assert_eq!(watch.unmap_sg(&list, Bidirectional), Ok(()));
    assert!(wrong(watch.said()));
    assert_eq!(watch.mock.live(), 0);
}

#[test]
fn ending_a_mapping_as_another_kind_is_refused_and_it_lives_on() {
    let watch = Watch::new();
    let buffer = watch.buffer(5);
    let single = watch.map(after(buffer.phys(), 4 * PAGE), 100, To);
    let mut list = three_elements(&buffer);
    assert_eq!(watch.map_sg(&mut list, To), 2);
    let memory = watch.alloc();
    let as_kind = |kind, end: Result<(), Quarantined>, ended_as| {
        assert!(end.is_err());
        let said = watch.said();
        assert!(
            matches!(said, Mistake::WrongKind { mapping, ended_as: e } if e == ended_as && mapping.kind == kind),
            "{said:?}"
        );
    };
    use MappingKind::{Coherent, Scatter, Single};
    let entry = |dma_address, len| SgEntry { dma_address, dma_len: len, ..SgEntry::new(buffer.phys(), len) };
    let coherent = |dma, size| CoherentMemory { dma, size, cpu: memory.cpu };
    as_kind(Single, watch.unmap_sg(&[entry(single, 100)], To), Scatter);
    as_kind(Single, watch.free(coherent(single, 100)), Coherent);
    as_kind(Scatter, watch.unmap(list[0].dma_address, 2 * PAGE, To), Single);
    as_kind(Scatter, watch.unmap(list[1].dma_address, PAGE, To), Single);
    as_kind(Scatter, watch.free(coherent(list[0].dma_address, 2 * PAGE)), Coherent);
    as_kind(Coherent, watch.unmap(memory.dma, 100, Bidirectional), Single);
    as_kind(Coherent, watch.unmap_sg(&[entry(memory.dma, 100)], Bidirectional), Scatter);
    assert_eq!(watch.ends_reached(), 0);
    watch.unmap(single, 100, To).unwrap();
    watch.unmap_sg(&list, To).unwrap();
    watch.free(memory).unwrap();
    watch.silent();
}

#[test]
fn what_was_bounced_is_unmapped_as_a_single_mapping_and_as_nothing_else() {
    let watch = Watch::new();
    let mut heap = [0u8; 100];
    let cpu = NonNull::from(&mut heap[0]);
    // SAFETY: the bytes outlive the mapping, and nobody touches them.
    let address = unsafe { watch.device.map_single(cpu, 100, To, NONE) }.unwrap();
    assert!(watch.free(CoherentMemory { cpu, dma: address, size: 100 }).is_err());
    let Mistake::WrongKind { mapping, ended_as: MappingKind::Coherent } = watch.said() else { panic!() };
    assert_eq!(mapping.kind, MappingKind::Foreign);
    watch.unmap(address, 100, To).unwrap();
    watch.silent();
}

#[test]
fn coherent_memory_freed_with_another_cpu_address_or_attributes_is_told() {
    let watch = Watch::new();
    let memory = watch.alloc();
    watch.free(memory).unwrap();
    let contiguous = || watch.device.alloc_coherent(100, Attrs::FORCE_CONTIGUOUS).unwrap();
    // SAFETY: it was allocated so.
    unsafe { watch.device.free_coherent(contiguous(), Attrs::FORCE_CONTIGUOUS) }.unwrap();
    watch.silent();
    let (memory, cpu) = (watch.alloc(), NonNull::<u64>::dangling().cast());
    assert_eq!(watch.free(CoherentMemory { cpu, ..memory }), Ok(()));
    let Mistake::WrongCpuAddress { at, freed_at, .. } = watch.said() else { panic!() };
    assert_eq!((at, freed_at), (memory.cpu.addr().get(), cpu.addr().get()));
    assert_eq!(watch.free(contiguous()), Ok(()));
    let Mistake::WrongAttrs { attrs, freed_with, .. } = watch.said() else { panic!() };
    assert_eq!((attrs, freed_with), (Attrs::FORCE_CONTIGUOUS, NONE));
    // The mock gives the frames back by the CPU's address.
    assert_eq!((watch.mock.live(), watch.host.live()), (0, 0));
}

#[test]
fn a_list_unmapped_with_its_segments_only_is_told_and_ended_whole() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let mut list = three_elements(&buffer);
    watch.map_sg(&mut list, To);
    watch.unmap_sg(&list, To).unwrap();
    watch.silent();
    let segments = watch.map_sg(&mut list, To);
    assert_eq!(watch.unmap_sg(&list[..segments], To), Ok(()));
    let Mistake::WrongElements { mapping, elements: 3, ended_with: 2 } = watch.said() else { panic!() };
    assert_eq!((mapping.kind, mapping.len), (MappingKind::Scatter, 3 * PAGE));
    assert_eq!(watch.mock.live(), 0);
}

#[test]
fn a_list_that_was_changed_is_told_and_ended_as_it_was() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let mut list = three_elements(&buffer);
    watch.map_sg(&mut list, To);
    watch.unmap_sg(&list, To).unwrap();
    watch.silent();
    watch.map_sg(&mut list, To);
    list[1].dma_len -= 1;
    assert_eq!(watch.unmap_sg(&list, To), Ok(()));
    assert!(matches!(watch.said(), Mistake::ListChanged { element: 1, .. }));
    assert_eq!(watch.mock.live(), 0);
}

#[test]
fn equal_mappings_at_one_address_end_each_as_it_was_made() {
    let host = Arc::new(Host::new());
    let debug = Arc::new(DmaDebug::new());
    let device = DeviceBuilder::new(NAME).build(Arc::new(Placed(PhysAddr::get)), host).checked(&debug);
    let lens = [0x100, 0x300, 0x200];
    for len in lens {
        // SAFETY: no device touches anything.
        unsafe { device.map_phys(PhysAddr::new(0x1000), len, To, NONE) }.unwrap();
    }
    for len in [lens[1], lens[2], lens[0]] {
        // SAFETY: it is mapped so.
        unsafe { device.unmap_single(DmaAddr::new(0x1000), len, To, NONE) }.unwrap();
    }
    assert_eq!(debug.take_reports(), []);
}

#[test]
fn an_unmap_that_fails_ends_the_driver_s_part() {
    let watch = Watch::new();
    let mapped = Streaming::<_, ToDevice>::map(&watch.device, watch.buffer(1)).unwrap();
    watch.mock.unmaps_fail.store(true, Ordering::Relaxed);
    mapped.unmap().unwrap_err();
    let Watch { device, debug, .. } = watch;
    drop(device);
    assert_eq!(debug.take_reports(), []);
}
