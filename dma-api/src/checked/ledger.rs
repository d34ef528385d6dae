//! What a device has mapped, and what is wrong with a call.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::ptr::NonNull;

use platform::{DmaAddr, PhysAddr};

use super::debug::DmaDebug;
use super::ranges::{Owner, Ranges, last};
use super::report::{Mapping, MappingKind, Mistake};
use super::watch::{SyncVerdict, Verdict};
use crate::{Attrs, CoherentMemory, DeviceParms, Direction, PageMemory, Segment, SgEntry};

/// How many mappings that have ended are remembered, to tell what is ended twice from what never was.
const ENDED: usize = 64;

/// A device that does not see the caches shares whole lines with its neighbours, in bytes (Linux: `L1_CACHE_BYTES`).
const CACHE_LINE: u64 = 64;

/// A live mapping with all its arguments.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) mapping: Mapping,
    pub(super) attrs: Attrs,
    pub(super) memory: Memory,
}

/// What was mapped.
#[derive(Clone, Debug)]
pub(super) enum Memory {
    Phys(PhysAddr),
    /// The process's, by address.
    Foreign(u64),
    Coherent(CoherentMemory),
    Pages(PageMemory),
    /// The list as its map left it, and how many segments it has.
    List(Box<[SgEntry]>, usize),
}

/// The arguments of an unmap or a free.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended<'a> {
    Single { address: DmaAddr, len: usize, dir: Direction },
    List { list: &'a [SgEntry], dir: Direction },
    Coherent { memory: CoherentMemory, attrs: Attrs },
    Pages { memory: &'a PageMemory, dir: Direction, attrs: Attrs },
}

/// A part of a record in the device's addresses.
struct Part {
    address: u64,
    len: usize,
    /// From physical to device addresses, where that is known.
    offset: Option<u64>,
}

impl Record {
    /// Its parts in the device's addresses: one, or a list's segments.
    fn parts(&self) -> Vec<Part> {
        let address = self.mapping.address.get();
        match &self.memory {
            Memory::List(list, segments) => {
                // Where each element is a segment of its own, it is known where each leads.
                let alone = list.iter().all(|entry| entry.len == entry.dma_len) && list.len() == *segments;
                let part = |entry: &SgEntry| {
                    let address = entry.dma_address.get();
                    let offset = alone.then(|| address.wrapping_sub(entry.phys.get()));
                    Part { address, len: entry.dma_len, offset }
                };
                list.iter().take(*segments).map(part).collect()
            }
            memory => {
                let offset = match memory {
                    Memory::Phys(phys) => Some(address.wrapping_sub(phys.get())),
                    _ => None,
                };
                Vec::from([Part { address, len: self.mapping.len, offset }])
            }
        }
    }

    /// The physical memory that is mapped, as starts and lengths.
    fn phys(&self) -> Vec<(u64, usize)> {
        match &self.memory {
            Memory::Phys(phys) => Vec::from([(phys.get(), self.mapping.len)]),
            Memory::List(list, _) => list.iter().map(|entry| (entry.phys.get(), entry.len)).collect(),
            Memory::Foreign(_) | Memory::Coherent(_) | Memory::Pages(_) => Vec::new(),
        }
    }

    /// The process's memory that is mapped.
    fn foreign(&self) -> Vec<(u64, usize)> {
        match self.memory {
            Memory::Foreign(at) => Vec::from([(at, self.mapping.len)]),
            _ => Vec::new(),
        }
    }

    /// How much of the ledger's room it takes: a list keeps all of its elements.
    fn entries(&self) -> usize {
        match &self.memory {
            Memory::List(list, _) => list.len(),
            _ => 1,
        }
    }

    /// Whether others may not have the same memory. What is not handed over by the map may, as in Linux.
    fn claims_memory(&self) -> bool {
        !self.attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO | Attrs::DEBUGGING_IGNORE_CACHELINES)
    }
}

impl Ended<'_> {
    fn kind(&self) -> MappingKind {
        match self {
            Self::Single { .. } => MappingKind::Single,
            Self::List { .. } => MappingKind::Scatter,
            Self::Coherent { .. } => MappingKind::Coherent,
            Self::Pages { .. } => MappingKind::Pages,
        }
    }

    fn address(&self) -> DmaAddr {
        match self {
            Self::Single { address, .. } => *address,
            Self::List { list, .. } => list.first().map_or(DmaAddr::new(0), |entry| entry.dma_address),
            Self::Coherent { memory, .. } => memory.dma,
            Self::Pages { memory, .. } => memory.dma,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Single { len, .. } => *len,
            Self::List { list, .. } => {
                list.iter().map(|entry| entry.dma_len).take_while(|&len| len != 0).sum()
            }
            Self::Coherent { memory, .. } => memory.size,
            Self::Pages { memory, .. } => memory.size,
        }
    }

    /// What differs from the mapping that it ends; its kind does not.
    fn compare(&self, record: &Record, mistakes: &mut Vec<Mistake>) {
        let mapping = record.mapping;
        match *self {
            Self::Single { len, dir, .. } => {
                if len != mapping.len {
                    mistakes.push(Mistake::WrongSize { mapping, len });
                }
                if dir != mapping.dir {
                    mistakes.push(Mistake::WrongDirection { mapping, dir });
                }
            }
            Self::List { list, dir } => {
                if dir != mapping.dir {
                    mistakes.push(Mistake::WrongDirection { mapping, dir });
                }
                let Memory::List(made, _) = &record.memory else { return };
                let differs = || made.iter().zip(list).position(|(made, ended)| made != ended);
                if list.len() != made.len() {
                    let (elements, ended_with) = (made.len(), list.len());
                    mistakes.push(Mistake::WrongElements { mapping, elements, ended_with });
                } else if let Some(element) = differs() {
                    mistakes.push(Mistake::ListChanged { mapping, element });
                }
            }
            Self::Pages { memory, dir, attrs } => {
                if memory.size != mapping.len {
                    mistakes.push(Mistake::WrongSize { mapping, len: memory.size });
                }
                if dir != mapping.dir {
                    mistakes.push(Mistake::WrongDirection { mapping, dir });
                }
                if attrs != record.attrs {
                    mistakes.push(Mistake::WrongAttrs { mapping, attrs: record.attrs, freed_with: attrs });
                }
            }
            Self::Coherent { memory, attrs } => {
                if memory.size != mapping.len {
                    mistakes.push(Mistake::WrongSize { mapping, len: memory.size });
                }
                if attrs != record.attrs {
                    mistakes.push(Mistake::WrongAttrs { mapping, attrs: record.attrs, freed_with: attrs });
                }
                let Memory::Coherent(made) = &record.memory else { return };
                if memory.cpu != made.cpu {
                    let [at, freed_at] = [made.cpu, memory.cpu].map(|cpu: NonNull<u8>| cpu.addr().get());
                    mistakes.push(Mistake::WrongCpuAddress { mapping, at, freed_at });
                }
            }
        }
    }
}

/// What a device has mapped.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    records: BTreeMap<u64, Record>,
    next: u64,
    /// What the records take, each as [`Record::entries`] says.
    entries: usize,
    mapped: Ranges,
    phys: Ranges,
    foreign: Ranges,
    ended: VecDeque<Mapping>,
    /// There was too much to remember.
    off: bool,
}

impl Ledger {
    /// Oldest first.
    pub(super) fn live(&self) -> Vec<Mapping> {
        self.records.values().map(|record| record.mapping).collect()
    }

    pub(super) fn made(&mut self, dev: &DeviceParms, record: Record, mistakes: &mut Vec<Mistake>) {
        if self.off {
            return;
        }
        let limit = DmaDebug::MAX_MAPPINGS;
        if self.entries + record.entries() > limit {
            *self = Self { off: true, ..Self::default() };
            mistakes.push(Mistake::TooMany { limit });
            return;
        }
        let parts = record.parts();
        let (phys, foreign) = (record.phys(), record.foreign());
        check_limits(dev, &record, &parts, mistakes);
        self.check_addresses(&record, &parts, mistakes);
        if record.claims_memory() {
            self.check_memory(dev, &record, &self.phys, &phys, mistakes);
            self.check_memory(dev, &record, &self.foreign, &foreign, mistakes);
        }
        let id = self.next;
        self.next += 1;
        let owner = |part| Owner { id, part };
        for (part, Part { address, len, .. }) in parts.into_iter().enumerate() {
            self.mapped.insert(address, len, owner(part));
        }
        if record.claims_memory() {
            for (part, (start, len)) in phys.into_iter().enumerate() {
                self.phys.insert(start, len, owner(part));
            }
            for (part, (start, len)) in foreign.into_iter().enumerate() {
                self.foreign.insert(start, len, owner(part));
            }
        }
        self.entries += record.entries();
        self.records.insert(id, record);
    }

    /// Two mappings may have the same addresses only where these lead both to the same memory.
    fn check_addresses(&self, record: &Record, parts: &[Part], mistakes: &mut Vec<Mistake>) {
        for part in parts {
            let last = last(part.address, part.len);
            let in_use = self.mapped.overlapping(part.address, last).find(|(owner, ..)| {
                let theirs = self.records.get(&owner.id).and_then(|other| other.parts()[owner.part].offset);
                part.offset.is_none() || part.offset != theirs
            });
            if let Some(other) = in_use.and_then(|(owner, ..)| self.records.get(&owner.id)) {
                mistakes.push(Mistake::AddressInUse { mapping: record.mapping, other: other.mapping });
                return;
            }
        }
    }

    /// The same memory may be mapped twice only where the device reads it both times.
    fn check_memory(
        &self,
        dev: &DeviceParms,
        record: &Record,
        ranges: &Ranges,
        memory: &[(u64, usize)],
        mistakes: &mut Vec<Mistake>,
    ) {
        let mapping = record.mapping;
        for &(start, len) in memory {
            let mut shared = (start, last(start, len));
            if !dev.is_coherent() {
                shared = (shared.0 & !(CACHE_LINE - 1), shared.1 | (CACHE_LINE - 1));
            }
            let others = ranges.overlapping(shared.0, shared.1);
            let mut others = others.filter_map(|(owner, ..)| self.records.get(&owner.id));
            let writes = |other: &&Record| mapping.dir.device_writes() || other.mapping.dir.device_writes();
            if let Some(other) = others.find(writes) {
                mistakes.push(Mistake::MemoryInUse { mapping, other: other.mapping });
                return;
            }
        }
    }

    pub(super) fn ends(&mut self, ended: Ended<'_>, mistakes: &mut Vec<Mistake>) -> Verdict {
        if self.off {
            return Verdict::Unknown;
        }
        let (kind, address, len) = (ended.kind(), ended.address(), ended.len());
        // Several may begin there: the one that fits best is meant.
        let faults = |record: &Record| {
            let mut mistakes = Vec::new();
            ended.compare(record, &mut mistakes);
            (!record.mapping.kind.ends_as(kind), mistakes.len())
        };
        let starting = self.mapped.starting(address.get());
        let found = starting.filter_map(|owner| self.records.get_key_value(&owner.id));
        let Some((&id, record)) = found.min_by_key(|(_, record)| faults(record)) else {
            let before = self.ended.iter().rev().find(|mapping| mapping.address == address);
            mistakes.push(match before {
                Some(&mapping) if mapping.kind.ends_as(kind) => Mistake::EndedTwice { mapping },
                _ => Mistake::NotMapped { kind, address, len },
            });
            return Verdict::Refused;
        };
        if !record.mapping.kind.ends_as(kind) {
            mistakes.push(Mistake::WrongKind { mapping: record.mapping, ended_as: kind });
            return Verdict::Refused;
        }
        ended.compare(record, mistakes);
        self.remove(id).map_or(Verdict::Refused, Verdict::Ends)
    }

    pub(super) fn unlinked(
        &mut self,
        address: DmaAddr,
        len: usize,
        within: usize,
        dir: Direction,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<Direction> {
        if self.off {
            return Some(dir);
        }
        let end = address.get().saturating_add(len as u64);
        let overlapping = self.mapped.overlapping(address.get(), last(address.get(), within));
        let found: Vec<_> = overlapping
            .filter_map(|(owner, first, last)| {
                let mapping = self.records.get(&owner.id)?.mapping;
                let inside = first >= address.get() && last < end;
                (mapping.kind == MappingKind::Linked).then_some((owner.id, mapping, inside))
            })
            .collect();
        let bytes: usize = found.iter().map(|(_, mapping, _)| mapping.len).sum();
        if bytes != len || found.iter().any(|&(.., inside)| !inside) {
            mistakes.push(Mistake::NotMapped { kind: MappingKind::Linked, address, len });
            return None;
        }
        let made = found.first().map_or(dir, |(_, mapping, _)| mapping.dir);
        for (id, mapping, _) in found {
            if mapping.dir != dir {
                mistakes.push(Mistake::WrongDirection { mapping, dir });
            }
            self.remove(id);
        }
        Some(made)
    }

    fn remove(&mut self, id: u64) -> Option<Record> {
        let record = self.records.remove(&id)?;
        self.entries -= record.entries();
        let owner = |part| Owner { id, part };
        for (part, Part { address, .. }) in record.parts().into_iter().enumerate() {
            self.mapped.remove(address, owner(part));
        }
        for (part, (start, _)) in record.phys().into_iter().enumerate() {
            self.phys.remove(start, owner(part));
        }
        for (part, (start, _)) in record.foreign().into_iter().enumerate() {
            self.foreign.remove(start, owner(part));
        }
        if self.ended.len() == ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(record.mapping);
        Some(record)
    }

    /// Whether a list that is synced has as many elements as the mapped one that begins there.
    pub(super) fn synced_whole(&self, list: &[SgEntry], mistakes: &mut Vec<Mistake>) -> bool {
        let Some(first) = list.first() else { return true };
        let starting = self.mapped.starting(first.dma_address.get());
        let lists = starting.filter_map(|owner| match self.records.get(&owner.id)? {
            Record { mapping, memory: Memory::List(made, _), .. } => Some((*mapping, made.len())),
            _ => None,
        });
        // Several may begin there: the one that fits is meant.
        let Some((mapping, elements)) = lists.min_by_key(|&(_, elements)| elements != list.len()) else {
            return true;
        };
        if elements != list.len() {
            mistakes.push(Mistake::SyncElements { mapping, elements, synced_with: list.len() });
        }
        elements == list.len()
    }

    pub(super) fn synced(
        &self,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        for_cpu: bool,
        mistakes: &mut Vec<Mistake>,
    ) -> SyncVerdict {
        if self.off {
            return SyncVerdict::In(dir);
        }
        let (start, end) = (address.get(), last(address.get(), len));
        let overlapping = self.mapped.overlapping(start, end);
        let found = overlapping.filter_map(|(owner, first, last)| {
            let mapping = self.records.get(&owner.id)?.mapping;
            Some((first <= start && end <= last, mapping))
        });
        // Several may be there: the one that holds it all, in this direction, is meant.
        let Some((whole, mapping)) = found.max_by_key(|(whole, mapping)| (*whole, mapping.dir == dir)) else {
            mistakes.push(Mistake::SyncNotMapped { address, len });
            return SyncVerdict::Refused;
        };
        if mapping.kind == MappingKind::Coherent {
            mistakes.push(Mistake::SyncCoherent { mapping });
            return SyncVerdict::Refused;
        }
        if !whole {
            mistakes.push(Mistake::SyncOutside { mapping, address, len });
            return SyncVerdict::Refused;
        }
        if dir != mapping.dir {
            mistakes.push(match mapping.dir {
                Direction::ToDevice if for_cpu => Mistake::SyncReadOnlyForCpu { mapping, dir },
                Direction::FromDevice if !for_cpu => Mistake::SyncWriteOnlyForDevice { mapping, dir },
                _ => Mistake::SyncDirection { mapping, dir },
            });
        }
        SyncVerdict::In(mapping.dir)
    }
}

/// What the device can say, and for a list which segments it takes.
fn check_limits(dev: &DeviceParms, record: &Record, parts: &[Part], mistakes: &mut Vec<Mistake>) {
    let mapping = record.mapping;
    let mask = match mapping.kind {
        MappingKind::Coherent | MappingKind::Pages => dev.coherent_mask(),
        _ => dev.streaming_mask(),
    };
    if parts.iter().any(|part| last(part.address, part.len) > mask) {
        mistakes.push(Mistake::BeyondMask { mapping, mask });
    }
    if mapping.kind != MappingKind::Scatter {
        return;
    }
    let (max, boundary) = (dev.max_segment_size(), dev.segment_boundary());
    for part in parts {
        let segment = Segment { address: DmaAddr::new(part.address), len: part.len };
        if part.len as u64 > max {
            mistakes.push(Mistake::SegmentTooLong { mapping, segment, max });
        }
        if (part.address ^ last(part.address, part.len)) & !boundary != 0 {
            mistakes.push(Mistake::SegmentCrossesBoundary { mapping, segment, boundary });
        }
    }
}
