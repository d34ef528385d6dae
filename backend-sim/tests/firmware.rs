//! Machines as firmware describes them, several IOMMUs and segments included: the driver comes up on each, and every unit
//! confines the devices behind it. Tables of real machines, and one by hand.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use amd_vi::{AmdVi, Config, Hardware, IrqRemapConfig, MsiMessage};
use backend_sim::SimPlatform;
use backend_sim::sim_hardware::bus::{MessageSink, Remapper};
use backend_sim::sim_hardware::dma_engine::DmaEngine;
use backend_sim::sim_hardware::interrupts::InterruptController;
use backend_sim::sim_hardware::iommu::{self, AmdIommu, Units};
use backend_sim::sim_hardware::pci::{Acs, Builder, IommuFunction, PciTree};
use backend_sim::sim_hardware::ram::Ram;
use common::engine::RawEngine;
use iommu_core::{FaultKind, IommuOps, IrqRemapError, IrqSource, IrqTarget, ResvType};
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use platform::sync::pair;
use platform::{DmaAddr, Mmio, PhysAddr, Prot};

/// An IOMMU as the table describes it, read here a second time: the test does not believe the driver's parser.
#[derive(Debug, Default)]
struct Described {
    kind: u8,
    segment: u16,
    id: u16,
    capability: u16,
    base: u64,
    efr: u64,
    ranges: Vec<(u16, u16)>,
    /// First device and the name that its requests carry.
    aliases: Vec<(u16, u16)>,
    /// Variety (1 IO-APIC, 2 HPET), handle, and the name that its messages carry.
    specials: Vec<(u8, u8, u16)>,
}

impl Described {
    fn io_apics(&self) -> impl Iterator<Item = u16> + '_ {
        self.specials.iter().filter(|(variety, ..)| *variety == 1).map(|(_, _, name)| *name)
    }
}

/// Memory of one device: segment, device, start, length.
type Memory = (u16, u16, u64, u64);

/// The blocks that count, and the memory blocks.
fn read(table: &[u8]) -> (Vec<Described>, Vec<Memory>) {
    let word = |at: usize| u16::from_le_bytes(table[at..at + 2].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(table[at..at + 8].try_into().unwrap());
    let (mut units, mut memory) = (BTreeMap::<(u16, u16), Described>::new(), Vec::new());
    let mut at = 48;
    while at < table.len() {
        let (kind, len) = (table[at], usize::from(word(at + 2)));
        match kind {
            0x10 | 0x11 | 0x40 => {
                let key = (word(at + 16), word(at + 4));
                let images = kind != 0x10 && table[36] & 1 != 0;
                let mut unit = Described {
                    kind,
                    segment: key.0,
                    id: key.1,
                    capability: word(at + 6),
                    base: long(at + 8),
                    efr: if images { long(at + 24) } else { 0 },
                    ..Described::default()
                };
                let mut entry = at + if kind == 0x10 { 24 } else { 40 };
                while entry < at + len {
                    let device = word(entry + 1);
                    let end = |from: usize| {
                        assert_eq!(table[from], 0x04, "a range ends with the next entry");
                        word(from + 1)
                    };
                    entry += match table[entry] {
                        0x02 => {
                            unit.ranges.push((device, device));
                            4
                        }
                        0x03 => {
                            unit.ranges.push((device, end(entry + 4)));
                            8
                        }
                        0x42 => {
                            unit.aliases.push((device, word(entry + 5)));
                            8
                        }
                        0x43 => {
                            end(entry + 8);
                            unit.aliases.push((device, word(entry + 5)));
                            12
                        }
                        0x48 => {
                            unit.specials.push((table[entry + 7], table[entry + 4], word(entry + 5)));
                            8
                        }
                        0xf0 => 22 + usize::from(table[entry + 21]),
                        0x00 => 4,
                        other => panic!("an entry of type {other:#x}"),
                    };
                }
                if units.get(&key).is_none_or(|old| old.kind <= kind) {
                    units.insert(key, unit);
                }
            }
            0x21 => memory.push((word(at + 8), word(at + 4), long(at + 16), long(at + 24))),
            _ => {}
        }
        at += len;
    }
    (units.into_values().collect(), memory)
}

/// A function that does DMA, behind one of the units.
struct Placed {
    address: PciAddress,
    engine: RawEngine,
}

/// The machine that a table describes, with a DMA engine behind each unit and one for each alias.
struct Board {
    ram: Arc<Ram>,
    trees: BTreeMap<u16, Arc<PciTree>>,
    behind: BTreeMap<u16, Arc<Units>>,
    units: Vec<(u64, Arc<AmdIommu>)>,
    engines: Vec<Placed>,
}

impl Board {
    fn new(described: &[Described]) -> Self {
        /// XTSup, IASup, GASup, HATS.
        const MODELLED: u64 = 1 << 2 | 1 << 6 | 1 << 7 | 3 << 10;
        let ram = Ram::new(&[(1 << 20, 63 << 20)]).unwrap();
        let interrupts = InterruptController::new();
        let sink = || interrupts.clone() as Arc<dyn MessageSink>;
        let mut board = Self {
            ram: Arc::clone(&ram),
            trees: BTreeMap::new(),
            behind: BTreeMap::new(),
            units: Vec::new(),
            engines: Vec::new(),
        };
        let segments: std::collections::BTreeSet<u16> = described.iter().map(|unit| unit.segment).collect();
        for segment in segments {
            let mut behind = Units::new();
            let mut builder = Builder::new().segment(segment);
            let mut placed = Vec::new();
            for it in described.iter().filter(|it| it.segment == segment) {
                let config = iommu::Config { efr: it.efr & MODELLED, ..iommu::Config::default() };
                let unit = AmdIommu::new(config, Arc::clone(&ram), sink());
                let id = RequesterId::new;
                for &(first, last) in &it.ranges {
                    behind.add(id(first), id(last), &unit);
                }
                let specials = it.specials.iter().map(|(.., name)| *name);
                for name in it.aliases.iter().map(|(_, name)| *name).chain(specials) {
                    behind.add(id(name), id(name), &unit);
                }
                let msi = Arc::clone(&unit);
                let changed = move |address, data, on| msi.set_msi(address, data, on);
                let function = IommuFunction {
                    id: id(it.id),
                    capability: it.capability,
                    base: it.base,
                    np_cache: false,
                    iotlb_sup: true,
                };
                builder = builder.iommu(function, Box::new(changed));
                // Something at the start of its first range, and what speaks for the devices with an alias.
                let first = (it.ranges[0].0..).find(|&device| device != 0 && device != it.id).unwrap();
                for device in it.aliases.iter().map(|(_, name)| *name).chain([first]) {
                    builder = builder.endpoint(
                        id(device),
                        DmaEngine::new(Default::default()) as _,
                        true,
                        Acs::Absent,
                    );
                    placed.push(PciAddress { segment, id: id(device) });
                }
                board.units.push((it.base, unit));
            }
            let behind = Arc::new(behind);
            let tree = builder.build(Arc::clone(&ram), Some(behind.clone() as _), sink());
            for address in placed {
                tree.write32(address, 0x04, 0x6);
                board
                    .engines
                    .push(Placed { address, engine: RawEngine::of(tree.mmio(address.id, 0).unwrap()) });
            }
            board.trees.insert(segment, tree);
            board.behind.insert(segment, behind);
        }
        board
    }

    fn engine(&self, segment: u16, device: u16) -> &RawEngine {
        let address = PciAddress { segment, id: RequesterId::new(device) };
        &self.engines.iter().find(|placed| placed.address == address).expect("an engine").engine
    }

    /// What becomes of a message, if anything.
    fn message(&self, segment: u16, device: u16, address: u64, data: u32) -> Option<(u64, u32)> {
        let mut delivered = None;
        let deliver = &mut |address, data| delivered = Some((address, data));
        let sent = self.behind[&segment].interrupt(RequesterId::new(device), address, data, deliver);
        assert_eq!(sent.is_ok(), delivered.is_some());
        delivered
    }

    fn message_passes(&self, segment: u16, device: u16) -> bool {
        self.message(segment, device, 0xfee0_0000, 0x41).is_some()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.trees.values().for_each(|tree| tree.shutdown());
        self.units.iter().for_each(|(_, unit)| unit.shutdown());
    }
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.trees.fmt(f)
    }
}

impl ConfigSpace for Board {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.trees.get(&function.segment).map_or(u32::MAX, |tree| tree.read32(function, offset))
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.trees[&function.segment].write32(function, offset, value);
    }
}

impl Hardware for Board {
    fn map_mmio(&self, base: PhysAddr, _len: u64) -> Option<Arc<dyn Mmio>> {
        let unit = self.units.iter().find(|(at, _)| *at == base.get())?;
        Some(unit.1.clone())
    }

    fn config_space(&self) -> &dyn ConfigSpace {
        self
    }

    fn msi_message(&self, _unit: PciAddress) -> Option<MsiMessage> {
        None
    }
}

const IOVA: DmaAddr = DmaAddr::new(0x1234_5000);

/// Brings the driver up on the machine that the table describes, and lets something behind every unit try its luck.
fn check(table: &[u8], what: &str) {
    let (described, memory) = read(table);
    let board = Board::new(&described);
    let platform = Arc::new(SimPlatform::new(Arc::clone(&board.ram)));
    let driver = AmdVi::init(platform, table, &board, Config::default())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(driver.units().len(), described.len(), "{what}");
    let faults = || {
        let mut faults = Vec::new();
        assert_eq!(driver.handle_interrupt(&mut |fault| faults.push(fault)).failures, 0, "{what}");
        faults
    };
    for it in &described {
        let segment = it.segment;
        let at = |device| PciAddress { segment, id: RequesterId::new(device) };
        let first = (it.ranges[0].0..).find(|&device| device != 0 && device != it.id).unwrap();
        assert!(driver.probe_device(at(it.id)).is_err(), "{what}: the unit does not translate for itself");
        // A device, and the name that its requests carry.
        let devices = it.aliases.iter().copied().chain([(first, first)]);
        for (device, name) in devices {
            let engine = board.engine(segment, name);
            let target = 0x60_0000;
            board.ram.write64(target, 0).unwrap();
            // Nothing passes before the device has a domain, and its own unit says so.
            assert!(!engine.write(DmaAddr::new(target), *b"too soon"), "{what}");
            let fault = faults();
            assert_eq!(fault.len(), 1, "{what}: {fault:?}");
            assert_eq!((fault[0].requester, fault[0].kind), (at(name), FaultKind::Page), "{what}");
            assert!(
                it.io_apics().any(|io_apic| io_apic == name) || !board.message_passes(segment, name),
                "{what}"
            );
            faults();
            // In a domain it reaches what is mapped, and nothing else.
            driver.probe_device(at(device)).unwrap();
            let domain = driver.domain_alloc_paging(at(device)).unwrap();
            let page = PhysAddr::new(target);
            // SAFETY: the frame is nobody else's: the test has it by its address, and the allocator takes from the other end.
            unsafe {
                let (_, mapped) = domain.map_pages(IOVA, page, 4096, 1, Prot::READ | Prot::WRITE);
                mapped.unwrap();
                domain.attach_dev(at(device), None).unwrap();
            }
            assert!(engine.write(IOVA, *b"in time!"), "{what}");
            assert_eq!(board.ram.read64(target).unwrap().to_le_bytes(), *b"in time!", "{what}");
            assert!(!engine.write(DmaAddr::new(target), *b"outside!"), "{what}");
            let fault = faults();
            assert_eq!((fault.len(), fault[0].address.get()), (1, target), "{what}");
            driver.release_device(at(device));
            assert!(!engine.write(IOVA, *b"too late"), "{what}");
            faults();
        }
        // Interrupts of IO-APICs pass: nobody attaches those.
        for io_apic in it.io_apics() {
            assert!(board.message_passes(segment, io_apic), "{what}: IO-APIC at {io_apic:#x}");
        }
    }
    // Memory that firmware wants kept is reserved for its device.
    for &(segment, device, start, len) in &memory {
        let address = PciAddress { segment, id: RequesterId::new(device) };
        let regions = driver.resv_regions(address);
        let found = regions.iter().find(|region| region.kind == ResvType::Direct);
        assert_eq!(found.map(|region| (region.start.get(), region.len)), Some((start, len)), "{what}");
    }
    // SAFETY: the engines are idle.
    unsafe { driver.shutdown(&board) }.unwrap();
}

/// Brings the driver up with interrupt remapping, which must be there unless firmware forgot the southbridge's IO-APIC, and has
/// everything that the table names send messages. Whether it was there.
fn check_interrupts(table: &[u8], what: &str) -> bool {
    let (described, _) = read(table);
    let board = Board::new(&described);
    let platform = Arc::new(SimPlatform::new(Arc::clone(&board.ram)));
    let config = Config { irq_remap: Some(IrqRemapConfig { x2apic: true, madt: None }), ..Config::default() };
    let driver = AmdVi::init(platform, table, &board, config).unwrap();
    let southbridge = described.iter().flat_map(Described::io_apics).any(|io_apic| io_apic == 0x00a0);
    let remap = driver.irq_remap();
    assert_eq!(remap.is_ok(), southbridge, "{what}: {:?}", remap.err());
    let Ok(remap) = driver.irq_remap() else { return false };
    // XTSup and GASup of every unit, and a processor that changes 16 bytes at once.
    let wide =
        pair::is_available() && described.iter().all(|it| it.efr & (1 << 2 | 1 << 7) == 1 << 2 | 1 << 7);
    assert_eq!(remap.last_destination(), if wide { u32::MAX } else { 0xff }, "{what}");
    let mut vector = 0x30;
    for it in &described {
        let first = (it.ranges[0].0..).find(|&device| device != 0 && device != it.id).unwrap();
        let function = |device| PciAddress { segment: it.segment, id: RequesterId::new(device) };
        let msi = |device| IrqSource::Msi { function: function(device), aliases: &[] };
        // Of two with one number the first counts.
        let first_of = |special: &&(u8, u8, u16)| {
            let mut all = described.iter().flat_map(|it| &it.specials);
            all.find(|other| (other.0, other.1) == (special.0, special.1)) == Some(*special)
        };
        let specials = it.specials.iter().filter(first_of).map(|&(variety, handle, name)| match variety {
            1 => (IrqSource::IoApic { id: handle, pin: 9 }, name),
            _ => (IrqSource::Hpet { number: handle }, name),
        });
        let devices = it.aliases.iter().map(|&(device, name)| (msi(device), name));
        for (source, name) in devices.chain(specials).chain([(msi(first), first)]) {
            let what = format!("{what}: {source:?}");
            // A pin is somebody's already where two IO-APICs have one name, or one is named twice.
            let irqs = match remap.alloc(source, 1) {
                Err(IrqRemapError::Busy) => continue,
                irqs => irqs.unwrap_or_else(|error| panic!("{what}: {error}")),
            };
            let message = irqs.message(0).unwrap();
            let send = || board.message(it.segment, name, message.address, message.data);
            assert_eq!(send(), None, "{what}: nobody has said where to");
            irqs.set_target(0, IrqTarget::fixed(vector, 7)).unwrap();
            assert_eq!(send(), Some((0xfee0_7000, vector.into())), "{what}");
            drop(irqs);
            assert_eq!(send(), None, "{what}: given back");
            vector = vector.checked_add(1).unwrap_or(0x30);
        }
    }
    // SAFETY: the engines are idle.
    unsafe { driver.shutdown(&board) }.unwrap();
    true
}

/// A block 11h (or 10h) with these entries.
fn ivhd(kind: u8, segment: u16, id: u16, base: u64, entries: &[u8]) -> Vec<u8> {
    let mut block = vec![kind, 0, 0, 0];
    block.extend(id.to_le_bytes());
    block.extend(0x40_u16.to_le_bytes());
    block.extend(base.to_le_bytes());
    block.extend(segment.to_le_bytes());
    block.extend([0; 6]);
    if kind != 0x10 {
        block.extend((1_u64 << 6 | 2 << 10).to_le_bytes());
        block.extend([0; 8]);
    }
    block.extend(entries);
    let len = (block.len() as u16).to_le_bytes();
    block[2..4].copy_from_slice(&len);
    block
}

#[test]
fn a_machine_with_units_in_two_segments() {
    let blocks = [
        ivhd(0x10, 0, 2, 0xfeb8_0000, &[0x02, 0x10, 0, 0]),
        ivhd(
            0x11,
            0,
            2,
            0xfeb8_0000,
            &[
                &[0x03, 0x08, 0, 0, 0x04, 0xff, 0x3f, 0][..],
                // As many machines have it: the devices of a bus that the second unit claims, behind a bridge of the first.
                &[0x43, 0x00, 0xff, 0, 0, 0xa5, 0, 0, 0x04, 0xff, 0xff, 0],
                &[0x48, 0, 0, 0xd7, 33, 0xa0, 0, 1],
            ]
            .concat(),
        ),
        // The second unit of a segment takes a part of what the first has.
        ivhd(0x11, 0, 0x4002, 0xb7b0_0000, &[0x03, 0x08, 0x40, 0, 0x04, 0xff, 0xff, 0]),
        ivhd(0x11, 5, 0x0002, 0xc5b0_0000, &[0x02, 0x08, 0x00, 0, 0x42, 0x00, 0x01, 0, 0, 0x09, 0, 0]),
    ];
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"IVRS");
    table[8] = 2;
    table[36..40].copy_from_slice(&0x0020_3041_u32.to_le_bytes());
    blocks.iter().for_each(|block| table.extend(block));
    let mut memory = vec![0x21, 0x07, 32, 0, 0x08, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
    memory.extend(0x100_0000_u64.to_le_bytes());
    memory.extend(0x2000_u64.to_le_bytes());
    table.extend(memory);
    let len = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&len);
    table[9] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    assert_eq!(read(&table).0.len(), 3);
    check(&table, "by hand");
    assert!(check_interrupts(&table, "by hand"));
}

#[test]
fn machines_as_real_firmware_describes_them() {
    const KNOWN: usize = 63;
    let folder = std::env::var_os("REAL_DATA")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real")))
        .join("ivrs");
    let files = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let tables = files.filter(|path| path.extension().is_some_and(|extension| extension == "bin"));
    let (mut checked, mut remapped) = (0, 0);
    for path in tables {
        let (table, what) = (std::fs::read(&path).unwrap(), path.display().to_string());
        check(&table, &what);
        remapped += usize::from(check_interrupts(&table, &what));
        checked += 1;
    }
    let missing = KNOWN.saturating_sub(checked);
    println!(
        "{checked} machines of real tables came up, {remapped} with interrupt remapping; {missing} tables not found in {}",
        folder.display()
    );
}
