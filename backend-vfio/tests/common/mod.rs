//! A kernel for tests: VFIO's calls answered as Linux answers them, on files in memory.
#![allow(dead_code)] // each test uses a part

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_void};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use backend_vfio::kernel::{Kernel, request};
use backend_vfio::{Config, Host, Vfio, VfioError};
use platform::pci::PciAddress;
use platform::sync::Mutex;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, pread, pwrite};
use tempfile::TempDir;

/// Where the regions of a device are in its file.
pub(crate) const BAR0: u64 = 0;
pub(crate) const BAR2: u64 = 0x10_0000;
pub(crate) const CONFIG: u64 = 0x70_0000;
pub(crate) const BAR_LEN: u64 = 0x4000;

pub(crate) const READ: u32 = 1;
pub(crate) const WRITE: u32 = 2;

/// A mapping of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Map {
    pub(crate) vaddr: u64,
    pub(crate) len: u64,
    pub(crate) flags: u32,
}

/// A call to a container or a device that a test may want to see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Map { iova: u64, len: u64, flags: u32 },
    Unmap { iova: u64, len: u64 },
    SetIrqs { index: u32, start: u32, files: Vec<i32> },
    ActOnIrqs { index: u32, count: u32, action: u32 },
    Reset,
}

#[derive(Debug)]
enum Kind {
    Container(usize),
    Group(u32),
    Device(PciAddress),
}

#[derive(Debug, Default)]
struct Container {
    groups: BTreeSet<u32>,
    has_iommu: bool,
    maps: BTreeMap<u64, Map>,
}

#[derive(Debug, Default)]
struct State {
    fds: BTreeMap<RawFd, Kind>,
    containers: Vec<Container>,
    /// Which container a group is in.
    places: BTreeMap<u32, usize>,
    /// The files of devices: number, and what `/proc` calls it.
    open: BTreeMap<PciAddress, (RawFd, String)>,
    /// Their contents, which outlive them.
    files: BTreeMap<PciAddress, Arc<OwnedFd>>,
    calls: Vec<Call>,
    knobs: Knobs,
}

/// How the kernel behaves.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub(crate) version: u32,
    pub(crate) type1: bool,
    pub(crate) viable: bool,
    pub(crate) isolated_interrupts: bool,
    /// Whether it says which I/O addresses there are.
    pub(crate) ranges: Vec<(u64, u64)>,
    /// The most mappings of a container.
    pub(crate) limit: usize,
    /// The most bytes that are pinned.
    pub(crate) locked: u64,
    /// Whether unmaps fail.
    pub(crate) unmap_fails: bool,
    /// Vectors of MSI-X; without, there are these of MSI.
    pub(crate) msix: u32,
    pub(crate) msi: u32,
    /// How many of these the system can give.
    pub(crate) vectors: u32,
    /// Whether vectors can come one by one.
    pub(crate) resize: bool,
    pub(crate) reset: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            version: 0,
            type1: true,
            viable: true,
            isolated_interrupts: true,
            ranges: vec![(0x1000, 0xfedf_ffff), (0xfef0_0000, 0xff_ffff_ffff)],
            limit: 65_535,
            locked: u64::MAX,
            unmap_fails: false,
            msix: 8,
            msi: 1,
            vectors: u32::MAX,
            resize: false,
            reset: true,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Mock {
    state: Mutex<State>,
}

fn error(errno: Errno) -> io::Error {
    errno.into()
}

fn memfd(name: &str) -> OwnedFd {
    memfd_create(name, MemfdFlags::CLOEXEC).unwrap()
}

/// What a file is, by its number: files that were closed in between do not answer to their name any more.
fn name_of(fd: RawFd) -> Option<String> {
    Some(fs::read_link(format!("/proc/self/fd/{fd}")).ok()?.to_string_lossy().into_owned())
}

impl State {
    /// Whether a device of the group is open.
    fn is_open(&self, group: u32, groups: &BTreeMap<PciAddress, u32>) -> bool {
        let live = |(fd, name): &(RawFd, String)| name_of(*fd).as_ref() == Some(name);
        self.open.iter().any(|(address, file)| groups.get(address) == Some(&group) && live(file))
    }
}

impl Mock {
    pub(crate) fn knobs(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.state.lock().knobs);
    }

    /// The calls since the last time.
    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// What the container of a group maps; `None` when it is in none that has an IOMMU.
    pub(crate) fn maps(&self, group: u32) -> Option<BTreeMap<u64, Map>> {
        let state = self.state.lock();
        let container = &state.containers[*state.places.get(&group)?];
        container.has_iommu.then(|| container.maps.clone())
    }

    /// Whether a group is in a container.
    pub(crate) fn is_placed(&self, group: u32) -> bool {
        self.state.lock().places.contains_key(&group)
    }

    /// Writes as a device of the group, if its container lets it.
    pub(crate) fn dma_write(&self, group: u32, iova: u64, byte: u8) -> bool {
        let maps = self.maps(group).unwrap_or_default();
        let Some((&start, map)) = maps.range(..=iova).next_back() else { return false };
        let allowed = iova - start < map.len && map.flags & WRITE != 0;
        if allowed {
            let at: *mut u8 = std::ptr::with_exposed_provenance_mut((map.vaddr + (iova - start)) as usize);
            // SAFETY: mapped memory is valid until it is unmapped, and everybody accesses it atomically.
            unsafe { std::sync::atomic::AtomicU8::from_ptr(at) }
                .store(byte, std::sync::atomic::Ordering::Relaxed);
        }
        allowed
    }

    /// A word of a device's file, whether or not that is open.
    pub(crate) fn word(&self, address: PciAddress, at: u64) -> u32 {
        let file = Arc::clone(&self.state.lock().files[&address]);
        let mut bytes = [0; 4];
        assert_eq!(pread(&file, &mut bytes, at), Ok(4));
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn set_word(&self, address: PciAddress, at: u64, value: u32) {
        let file = Arc::clone(&self.state.lock().files[&address]);
        assert_eq!(pwrite(&file, &value.to_le_bytes(), at), Ok(4));
    }

    fn register(&self, fd: OwnedFd, kind: Kind) -> OwnedFd {
        self.state.lock().fds.insert(fd.as_raw_fd(), kind);
        fd
    }
}

/// A machine for tests: a folder as `/sys` and `/dev`, and the kernel.
pub(crate) struct Bed {
    pub(crate) folder: TempDir,
    pub(crate) mock: Arc<Shared>,
}

/// The kernel with what it knows of its machine.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) mock: Mock,
    groups: Mutex<BTreeMap<PciAddress, u32>>,
}

impl std::ops::Deref for Shared {
    type Target = Mock;

    fn deref(&self) -> &Mock {
        &self.mock
    }
}

pub(crate) const NVME: PciAddress = PciAddress::new(0, 1, 0, 0);
pub(crate) const NIC: PciAddress = PciAddress::new(0, 2, 0, 0);
pub(crate) const AUDIO: PciAddress = PciAddress::new(0, 2, 0, 1);
pub(crate) const BRIDGE: PciAddress = PciAddress::new(0, 0, 1, 0);

impl Bed {
    /// An NVMe controller alone in group 7; a NIC and an audio device in group 9. All are with vfio-pci.
    pub(crate) fn new() -> Self {
        let bed = Self::empty();
        bed.add(NVME, Some(7), Some("vfio-pci"), 0x01_08_02);
        bed.add(NIC, Some(9), Some("vfio-pci"), 0x02_00_00);
        bed.add(AUDIO, Some(9), Some("vfio-pci"), 0x04_03_00);
        bed
    }

    pub(crate) fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/kernel/iommu_groups", "dev/vfio"] {
            fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        fs::write(folder.path().join("dev/vfio/vfio"), "").unwrap();
        Self { folder, mock: Arc::default() }
    }

    pub(crate) fn add(&self, address: PciAddress, group: Option<u32>, driver: Option<&str>, class: u32) {
        let sys = self.folder.path().join("sys");
        let function = sys.join("bus/pci/devices").join(address.to_string());
        fs::create_dir_all(&function).unwrap();
        fs::write(function.join("class"), format!("{class:#08x}\n")).unwrap();
        fs::write(function.join("vendor"), "0x1b36\n").unwrap();
        fs::write(function.join("device"), "0x0010\n").unwrap();
        if let Some(group) = group {
            let devices = sys.join("kernel/iommu_groups").join(group.to_string()).join("devices");
            fs::create_dir_all(&devices).unwrap();
            fs::write(devices.with_file_name("type"), "DMA-FQ\n").unwrap();
            symlink(&function, devices.join(address.to_string())).unwrap();
            symlink(devices.parent().unwrap(), function.join("iommu_group")).unwrap();
            self.mock.groups.lock().insert(address, group);
        }
        if let Some(driver) = driver {
            let folder = sys.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&folder).unwrap();
            symlink(folder, function.join("driver")).unwrap();
            if let Some(group) = group.filter(|_| driver.starts_with("vfio")) {
                fs::write(self.folder.path().join("dev/vfio").join(group.to_string()), "").unwrap();
            }
        }
    }

    pub(crate) fn host(&self) -> Host {
        let path = self.folder.path();
        Host { kernel: self.mock.clone(), sys: path.join("sys"), dev: path.join("dev") }
    }

    pub(crate) fn open(&self, devices: &[PciAddress]) -> Result<Vfio, VfioError> {
        Vfio::open(Config { host: self.host(), bounce_pool: 2 << 20, ..Config::new(devices) })
    }
}

const MSIX: u32 = 2;
const MSI: u32 = 1;
const INTX: u32 = 0;

/// Writes an answer of `len` bytes, or as much of it as there is room for.
unsafe fn answer(argument: *mut c_void, answer: &[u8]) {
    let at = argument.cast::<u8>();
    // SAFETY: the structure begins with its length.
    let room = unsafe { at.cast::<u32>().read() } as usize;
    let mut whole = answer.to_vec();
    whole[..4].copy_from_slice(&(answer.len() as u32).to_ne_bytes());
    if room < answer.len() {
        // Linux then leaves the capabilities out, and with them the offset of the first.
        whole.truncate(room);
    }
    // SAFETY: that many bytes are the caller's.
    unsafe { std::ptr::copy_nonoverlapping(whole.as_ptr(), at, whole.len()) };
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn halves(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// `VFIO_IOMMU_GET_INFO`, as include/uapi/linux/vfio.h has it.
pub(crate) fn iommu_info(ranges: &[(u64, u64)], available: Option<u32>) -> Vec<u8> {
    const PAGE_SIZES: u32 = 1;
    const CAPABILITIES: u32 = 2;
    let mut info = vec![halves(0, PAGE_SIZES | CAPABILITIES), 0xffff_ffff_ffff_f000, 24];
    if let Some(available) = available {
        // id 3, version 1, next.
        info.push(halves(3 | 1 << 16, 24 + 16));
        info.push(halves(available, 0));
    }
    if !ranges.is_empty() {
        info.push(halves(1 | 1 << 16, 0));
        info.push(halves(ranges.len() as u32, 0));
        info.extend(ranges.iter().flat_map(|&(first, last)| [first, last]));
    } else if available.is_none() {
        info[2] = 0;
        info[0] = halves(0, PAGE_SIZES);
    }
    words(&info)
}

fn region_info(index: u32) -> Vec<u8> {
    const MAPPABLE: u32 = 7;
    const CAPABILITIES: u32 = 8;
    let (flags, len, offset) = match index {
        0 => (MAPPABLE, BAR_LEN, BAR0),
        2 => (MAPPABLE | CAPABILITIES, BAR_LEN, BAR2),
        7 => (3, 4096, CONFIG),
        _ => (0, 0, 0),
    };
    let first = if flags & CAPABILITIES != 0 { 32 } else { 0 };
    let mut info = vec![halves(0, flags), halves(index, first), len, offset];
    if flags & CAPABILITIES != 0 {
        // Sparse: the first page and the last, not the table of interrupts between them.
        info.extend([halves(1 | 1 << 16, 0), halves(2, 0), 0, 0x1000, 0x3000, 0x1000]);
    }
    words(&info)
}

// SAFETY: memory is "in reach" as long as the tables have it; regions are files.
unsafe impl Kernel for Shared {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        if !path.exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = match name.parse() {
            Ok(group) => Kind::Group(group),
            Err(_) => {
                let mut state = self.state.lock();
                state.containers.push(Container::default());
                Kind::Container(state.containers.len() - 1)
            }
        };
        Ok(self.register(memfd(name), kind))
    }

    unsafe fn ioctl(&self, fd: BorrowedFd<'_>, call: u32, argument: *mut c_void) -> io::Result<u32> {
        let number = fd.as_raw_fd();
        let mut state = self.state.lock();
        let state = &mut *state;
        let index = call - request(0);
        match (state.fds.get(&number).ok_or_else(|| error(Errno::BADF))?, index) {
            (Kind::Container(_), 0) => Ok(state.knobs.version),
            (Kind::Container(_), 1) => Ok(u32::from(argument.addr() == 3 && state.knobs.type1)),
            (&Kind::Container(at), 2) => {
                let container = &mut state.containers[at];
                if container.groups.is_empty() || container.has_iommu {
                    return Err(error(Errno::INVAL));
                }
                if !state.knobs.isolated_interrupts {
                    return Err(error(Errno::PERM));
                }
                container.has_iommu = true;
                Ok(0)
            }
            (&Kind::Container(at), 12) => {
                if !state.containers[at].has_iommu {
                    return Err(error(Errno::INVAL));
                }
                let available = (state.knobs.limit - state.containers[at].maps.len()) as u32;
                // SAFETY: the caller's structure.
                unsafe { answer(argument, &iommu_info(&state.knobs.ranges, Some(available))) };
                Ok(0)
            }
            (&Kind::Container(at), 13) => {
                // SAFETY: the call's structure: length, flags, address, I/O address, length.
                let [head, vaddr, iova, len] = unsafe { argument.cast::<[u64; 4]>().read() };
                assert_eq!(head as u32, 32, "argsz");
                let flags = (head >> 32) as u32;
                state.calls.push(Call::Map { iova, len, flags });
                let container = &mut state.containers[at];
                let last = iova + (len - 1);
                let inside = state.knobs.ranges.iter().any(|&(low, high)| iova >= low && last <= high);
                let overlaps = container.maps.range(..=last).next_back();
                let overlaps = overlaps.is_some_and(|(&start, map)| start + (map.len - 1) >= iova);
                let pinned: u64 = container.maps.values().map(|map| map.len).sum();
                match () {
                    () if !container.has_iommu || (vaddr | iova | len) & 0xfff != 0 || !inside => {
                        Err(error(Errno::INVAL))
                    }
                    () if flags & (READ | WRITE) == 0 => Err(error(Errno::INVAL)),
                    () if overlaps => Err(error(Errno::EXIST)),
                    () if container.maps.len() >= state.knobs.limit => Err(error(Errno::NOSPC)),
                    () if pinned + len > state.knobs.locked => Err(error(Errno::NOMEM)),
                    () => {
                        container.maps.insert(iova, Map { vaddr, len, flags });
                        Ok(0)
                    }
                }
            }
            (&Kind::Container(at), 14) => {
                let structure = argument.cast::<[u64; 3]>();
                // SAFETY: the call's structure: length, flags, I/O address, length.
                let [head, iova, len] = unsafe { structure.read() };
                state.calls.push(Call::Unmap { iova, len });
                if state.knobs.unmap_fails {
                    return Err(error(Errno::IO));
                }
                let maps = &mut state.containers[at].maps;
                let inside: Vec<u64> = maps.range(iova..iova + len).map(|(&start, _)| start).collect();
                let cut = |&start: &u64| start + maps[&start].len > iova + len;
                let before = maps.range(..iova).next_back();
                if inside.iter().any(cut) || before.is_some_and(|(&start, map)| start + map.len > iova) {
                    return Err(error(Errno::INVAL));
                }
                let unmapped: u64 =
                    inside.iter().filter_map(|start| maps.remove(start)).map(|map| map.len).sum();
                // SAFETY: as above.
                unsafe { structure.write([head, iova, unmapped]) };
                Ok(0)
            }
            (Kind::Group(_), 3) => {
                let viable = u32::from(state.knobs.viable);
                // SAFETY: length and flags.
                unsafe { argument.cast::<[u32; 2]>().write([8, viable]) };
                Ok(0)
            }
            (&Kind::Group(group), 4) => {
                // SAFETY: the number of a file.
                let container = unsafe { argument.cast::<RawFd>().read() };
                let Some(&Kind::Container(at)) = state.fds.get(&container) else {
                    return Err(error(Errno::BADF));
                };
                if state.places.contains_key(&group) {
                    return Err(error(Errno::INVAL));
                }
                state.containers[at].groups.insert(group);
                state.places.insert(group, at);
                Ok(0)
            }
            (&Kind::Group(group), 5) => {
                if state.is_open(group, &self.groups.lock()) {
                    return Err(error(Errno::BUSY));
                }
                let at = state.places.remove(&group).ok_or_else(|| error(Errno::INVAL))?;
                let container = &mut state.containers[at];
                container.groups.remove(&group);
                if container.groups.is_empty() {
                    container.has_iommu = false;
                    container.maps.clear();
                }
                Ok(0)
            }
            (&Kind::Group(group), 6) => {
                // SAFETY: a string that ends with a zero.
                let name = unsafe { CStr::from_ptr(argument.cast()) }.to_str().unwrap();
                let address = backend_vfio::parse_address(name).ok_or_else(|| error(Errno::NODEV))?;
                let at = state.places.get(&group).ok_or_else(|| error(Errno::INVAL))?;
                if !state.containers[*at].has_iommu {
                    return Err(error(Errno::INVAL));
                }
                let contents = state.files.entry(address).or_insert_with(|| {
                    let file = memfd(&format!("device-{name}"));
                    ftruncate(&file, CONFIG + 4096).unwrap();
                    // Memory and I/O decoding are on, as VFIO leaves them; BAR 4 is of I/O ports.
                    pwrite(&file, &0x0103_u32.to_le_bytes(), CONFIG + 4).unwrap();
                    pwrite(&file, &1_u32.to_le_bytes(), CONFIG + 0x20).unwrap();
                    Arc::new(file)
                });
                let file = contents.try_clone().unwrap();
                let fd = file.into_raw_fd();
                state.open.insert(address, (fd, name_of(fd).unwrap()));
                state.fds.insert(fd, Kind::Device(address));
                Ok(fd as u32)
            }
            (Kind::Device(_), 7) => {
                let flags = 2 | u32::from(state.knobs.reset);
                // SAFETY: length, flags, regions, interrupts.
                unsafe { argument.cast::<[u32; 4]>().write([16, flags, 9, 5]) };
                Ok(0)
            }
            (Kind::Device(_), 8) => {
                // SAFETY: the third word is the region's number.
                let region = unsafe { argument.cast::<u32>().add(2).read() };
                // SAFETY: the caller's structure.
                unsafe { answer(argument, &region_info(region)) };
                Ok(0)
            }
            (Kind::Device(_), 9) => {
                const NO_RESIZE: u32 = 8;
                let structure = argument.cast::<[u32; 4]>();
                // SAFETY: length, flags, kind, count.
                let [argsz, _, kind, _] = unsafe { structure.read() };
                let count = match kind {
                    MSIX => state.knobs.msix,
                    MSI => state.knobs.msi,
                    INTX => 1,
                    _ => 0,
                };
                let flags = 1 | if state.knobs.resize { 0 } else { NO_RESIZE };
                // SAFETY: as above.
                unsafe { structure.write([argsz, flags, kind, count]) };
                Ok(0)
            }
            (Kind::Device(_), 10) => {
                let header = argument.cast::<u32>();
                // SAFETY: length, flags, kind, first, count, and that many files.
                let [_, flags, kind, start, count] = unsafe { header.cast::<[u32; 5]>().read() };
                const NO_DATA: u32 = 1;
                if flags & NO_DATA != 0 {
                    state.calls.push(Call::ActOnIrqs { index: kind, count, action: flags & !NO_DATA });
                    return Ok(0);
                }
                assert_eq!(flags, 4 | 32, "event files, to be triggered");
                // SAFETY: as above.
                let files =
                    unsafe { std::slice::from_raw_parts(header.add(5).cast::<i32>(), count as usize) };
                state.calls.push(Call::SetIrqs { index: kind, start, files: files.to_vec() });
                if start + count > state.knobs.vectors {
                    return Ok(state.knobs.vectors);
                }
                Ok(0)
            }
            (Kind::Device(_), 11) => {
                state.calls.push(Call::Reset);
                Ok(0)
            }
            _ => Err(error(Errno::NOTTY)),
        }
    }
}
