//! Every check, in order. The first shows that the IOMMU is there at all: without it the others prove nothing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake};

use backend_vfio::{Config, Host, Obstacle, ProcessPlatform, Vector, Vfio, VfioError, survey};
use conformance::Waiver;
use conformance::modes::{VFIO, VFIO_VT_D};
use dma_api::{Bidirectional, CoherentSlice, Device, DmaBuffer, Streaming};
use iommu_core::{Domain, DomainType, Owner, PagingFlags};
use platform::pci::{Function, PciAddress};
use platform::{DmaAddr, FrameRequest, Frames, MapError, PhysAddr, Prot};

use crate::edu::{BUFFER_LEN, Edu, bench};
use crate::system::{EDU, NVME, OTHER_EDU};
use crate::{Failure, alone, ensure, job, limits, nvme, registered};

type Check = fn() -> Result<(), Failure>;

const CHECKS: &[(&str, Check)] = &[
    ("canary: a device that was given nothing reaches nothing", canary),
    ("chosen addresses lead where they were mapped", chosen_addresses),
    ("allocated addresses lead where they were mapped", allocated_addresses),
    ("maps that overlap, are not aligned or out of range are refused", refused_maps),
    ("a mapping is never cut", whole_mappings),
    ("the list of devices says what can be taken, and what another has", listed),
    ("two devices in one domain", two_devices_in_one_domain),
    ("two domains are apart", two_domains),
    ("bus mastering is off until asked for, and after", bus_mastering),
    ("interrupts by MSI", interrupts),
    ("interrupts by the pin", pin),
    ("a task is woken by an interrupt", task),
    ("a device without a reset says so", no_reset),
    ("hugepages serve long buffers", limits::hugepages),
    ("the kernel's limit of mappings", limits::mappings),
    ("an unprivileged user's limit of locked memory", limits::locked_memory),
    ("nvme: identify", nvme::identify),
    ("nvme: the whole disk, read and written, with MSI-X", nvme::whole_disk),
    ("nvme: the whole disk, under the decorator that checks the driver", nvme::checked),
    ("nvme: reset", nvme::reset),
    ("the main job's program reads the disk", job::main_job),
    ("what a lookup, a copy and a map cost", registered::measured),
    ("a process that is killed in mid-DMA leaves nothing behind", alone::killed),
];

/// Runs everything; says each result in a line that `cargo xtask vfio` counts.
pub(crate) fn run() -> Result<(), Failure> {
    let mut failed = 0;
    let mut say = |name: &str, result: Result<(), String>| match result {
        Ok(()) => println!("check ok: {name}"),
        Err(why) => {
            println!("check FAILED: {name}: {why}");
            failed += 1;
        }
    };
    for (name, check) in CHECKS {
        say(name, check().map_err(|error| error.to_string()));
    }
    for (mode, report) in [("conformance", conformance()), ("registered", registered::conformance())] {
        match report {
            Ok(report) => {
                for (name, outcome) in report.outcomes {
                    let result = match outcome {
                        conformance::Outcome::Passed => Ok(()),
                        conformance::Outcome::Waived(waiver) => {
                            println!("waived: {name}: {}", waiver.reason);
                            Ok(())
                        }
                        other => Err(format!("{other:?}")),
                    };
                    say(&format!("{mode}: {name}"), result);
                }
            }
            Err(error) => say(mode, Err(error.to_string())),
        }
    }
    ensure(failed == 0, &format!("{failed} checks failed"))
}

/// What does not hold on this machine's IOMMU, as its Linux driver has it.
fn waivers() -> &'static [Waiver] {
    let is_vt_d = std::path::Path::new("/sys/class/iommu/dmar0").exists();
    if is_vt_d { VFIO_VT_D.waivers } else { VFIO.waivers }
}

fn conformance() -> Result<conformance::Report, Failure> {
    let vfio = open(&[EDU])?;
    let (function, device) = vfio.bind(EDU)?;
    let bench = bench(function, device, waivers())?;
    let report = conformance::run(&bench);
    drop(bench);
    ensure(vfio.iommu().statistics().quarantined == 0, "addresses were quarantined")?;
    Ok(report)
}

pub(crate) fn open(devices: &[PciAddress]) -> Result<Vfio, VfioError> {
    Vfio::open(Config::new(devices))
}

pub(crate) fn edu(vfio: &Vfio, address: PciAddress) -> Result<Edu, Failure> {
    Edu::new(vfio.function(address)?, vfio.platform().clone())
}

/// A device's group in a domain of the check's own.
pub(crate) fn own_domain(vfio: &Vfio, address: PciAddress) -> Result<Arc<Domain>, Failure> {
    let group = vfio.group(address)?;
    group.claim_dma_owner(Owner(1))?;
    let domain = group.alloc_unmanaged(PagingFlags::empty())?;
    group.attach(&domain)?;
    Ok(domain)
}

/// Memory of this process to map by hand: whole pages, looked at by value while a device has them.
pub(crate) struct Pages {
    at: PhysAddr,
    len: usize,
    frames: Arc<ProcessPlatform>,
}

impl Pages {
    pub(crate) fn new(vfio: &Vfio, len: usize) -> Result<Self, Failure> {
        let frames = vfio.platform().clone();
        Ok(Self { at: frames.alloc(FrameRequest::anywhere(len))?, len, frames })
    }

    pub(crate) fn at(&self) -> PhysAddr {
        self.at
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the pages are this value's, and devices access them atomically.
        unsafe { self.frames.window().words(self.at, self.len / 8) }
    }

    pub(crate) fn fill(&self, seed: u64) {
        for (word, value) in self.words().iter().zip(pattern(seed)) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Whether the first `len` bytes are the pattern of `seed`.
    pub(crate) fn holds(&self, seed: u64, len: usize) -> bool {
        let words = self.words()[..len / 8].iter();
        words.zip(pattern(seed)).all(|(word, value)| word.load(Ordering::Relaxed) == value)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: they came from there; checks unmap first, or close the device, and what is mapped is pinned.
        unsafe { self.frames.free(self.at, self.len) };
    }
}

fn pattern(seed: u64) -> impl Iterator<Item = u64> {
    (0_u64..).map(move |index| (index ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

pub(crate) fn map(domain: &Domain, iova: u64, pages: &Pages, prot: Prot) -> Result<(), MapError> {
    // SAFETY: what is mapped is unmapped before the pages go, or its domain goes; the check is alone.
    unsafe { domain.map(DmaAddr::new(iova), pages.at(), pages.len as u64, prot) }.1
}

pub(crate) fn unmap(domain: &Domain, iova: u64, len: u64) -> Result<u64, Failure> {
    let mut gather = domain.gather();
    // SAFETY: the check is alone.
    let unmapped = unsafe { domain.unmap(DmaAddr::new(iova), len, &mut gather) };
    drop(domain.sync(gather)?);
    Ok(unmapped)
}

const BOTH: Prot = Prot::READ.union(Prot::WRITE);

/// The physical address of a page of this process, which is the guest's.
fn physical(at: PhysAddr) -> Result<u64, Failure> {
    const PRESENT: u64 = 1 << 63;
    let mut entry = [0; 8];
    fs::File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at.get() / 4096 * 8)?;
    let entry = u64::from_ne_bytes(entry);
    ensure(entry & PRESENT != 0, "the page is not in memory")?;
    Ok((entry & ((1 << 55) - 1)) * 4096)
}

fn canary() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let edu = edu(&vfio, EDU)?;
    let (source, victim) = (Pages::new(&vfio, BUFFER_LEN)?, Pages::new(&vfio, BUFFER_LEN)?);
    source.fill(1);
    victim.fill(2);
    map(&domain, 0x10_0000, &source, Prot::READ)?;
    edu.read(0x10_0000, BUFFER_LEN)?;
    // It would land there if nobody translated.
    edu.write(physical(victim.at())?, BUFFER_LEN)?;
    ensure(
        victim.holds(2, BUFFER_LEN),
        "the device wrote to memory by its physical address: nothing translates",
    )
}

fn chosen_addresses() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let edu = edu(&vfio, EDU)?;
    let (from, to) = (Pages::new(&vfio, BUFFER_LEN)?, Pages::new(&vfio, BUFFER_LEN)?);
    let (_, last) = domain.aperture();
    let high = (last.get() & !0xfff).min((1 << 38) - 4096);
    for (seed, (source, target)) in
        [(0x10_0000, 0x20_0000), (0xffff_f000, 1 << 32), (1 << 36, high)].into_iter().enumerate()
    {
        let seed = seed as u64;
        from.fill(seed + 10);
        map(&domain, source, &from, Prot::READ)?;
        map(&domain, target, &to, Prot::WRITE)?;
        edu.read(source, BUFFER_LEN)?;
        edu.write(target, BUFFER_LEN)?;
        ensure(to.holds(seed + 10, BUFFER_LEN), "the bytes are not where they were sent")?;
        // Not into what may only be read, not from what may only be written, not where nothing is any more.
        from.fill(seed + 20);
        edu.write(source, BUFFER_LEN)?;
        ensure(from.holds(seed + 20, BUFFER_LEN), "the device wrote what it may only read")?;
        ensure(unmap(&domain, source, 4096)? == 4096, "an unmap did nothing")?;
        ensure(unmap(&domain, target, 4096)? == 4096, "an unmap did nothing")?;
        to.fill(seed + 30);
        edu.write(target, BUFFER_LEN)?;
        ensure(to.holds(seed + 30, BUFFER_LEN), "the device wrote where it may not any more")?;
    }
    Ok(())
}

fn allocated_addresses() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let (function, device) = vfio.bind(EDU)?;
    let edu = Edu::new(function, vfio.platform().clone())?;
    ensure(vfio.group(EDU)?.domain_type() == Some(DomainType::Dma), "the domain is not strict")?;
    let device = Arc::new(device);
    let words = CoherentSlice::<u64>::zeroed(&device, BUFFER_LEN / 8)?;
    words.write(17, 0x0123_4567_89ab_cdef);
    edu.read(words.dma_address().get(), BUFFER_LEN)?;
    let buffer = DmaBuffer::<u8>::zeroed(&device, BUFFER_LEN)?;
    let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).map_err(|failed| failed.error)?;
    edu.write(mapped.dma_address().get(), BUFFER_LEN)?;
    let buffer = mapped.unmap()?;
    ensure(buffer[17 * 8..18 * 8] == 0x0123_4567_89ab_cdef_u64.to_ne_bytes(), "the bytes are not there")?;
    ensure(buffer.iter().filter(|&&byte| byte != 0).count() == 8, "there are others")
}

fn refused_maps() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let pages = Pages::new(&vfio, 8192)?;
    map(&domain, 0x10_0000, &pages, BOTH)?;
    for (iova, wanted) in [
        (0x10_0000, MapError::InUse(DmaAddr::new(0x10_0000))),
        (0x10_1000, MapError::InUse(DmaAddr::new(0x10_1000))),
        (0xf_f000, MapError::InUse(DmaAddr::new(0xf_f000))),
        (0x20_0800, MapError::NoPageSize(DmaAddr::new(0x20_0800))),
        // Where messages of interrupts go.
        (0xfee0_0000, MapError::OutOfRange(DmaAddr::new(0xfee0_0000))),
    ] {
        let refused = map(&domain, iova, &pages, BOTH);
        ensure(refused == Err(wanted), &format!("a map at {iova:#x} was answered with {refused:?}"))?;
    }
    Ok(())
}

fn whole_mappings() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let edu = edu(&vfio, EDU)?;
    let (first, second) = (Pages::new(&vfio, 8192)?, Pages::new(&vfio, 8192)?);
    map(&domain, 0x10_0000, &first, BOTH)?;
    map(&domain, 0x10_2000, &second, BOTH)?;
    ensure(unmap(&domain, 0x10_0000, 4096)? == 0, "half a mapping was unmapped")?;
    first.fill(1);
    edu.read(0x10_0000, BUFFER_LEN)?;
    edu.write(0x10_2000, BUFFER_LEN)?;
    ensure(second.holds(1, BUFFER_LEN), "a mapping that was not cut has gone")?;
    ensure(unmap(&domain, 0x10_0000, 0x4000)? == 0x4000, "two mappings were not unmapped in one call")?;
    second.fill(2);
    edu.write(0x10_2000, BUFFER_LEN)?;
    ensure(second.holds(2, BUFFER_LEN), "the device wrote where it may not any more")
}

fn listed() -> Result<(), Failure> {
    let obstacles = || -> Result<Vec<Obstacle>, Failure> {
        let all = survey(&Host::default())?;
        let edu = all.into_iter().find(|it| it.address == EDU).ok_or("edu is not in the list")?;
        Ok(edu.obstacles)
    };
    let found = obstacles()?;
    ensure(found.is_empty(), &format!("edu is said not to be free: {found:?}"))?;
    let _vfio = open(&[EDU])?;
    let found = obstacles()?;
    ensure(matches!(found[..], [Obstacle::InUse(_)]), &format!("edu, which is in use: {found:?}"))
}

fn two_devices_in_one_domain() -> Result<(), Failure> {
    let vfio = open(&[EDU, OTHER_EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let other = vfio.group(OTHER_EDU)?;
    other.claim_dma_owner(Owner(1))?;
    other.attach(&domain)?;
    let (one, two) = (edu(&vfio, EDU)?, edu(&vfio, OTHER_EDU)?);
    let pages = Pages::new(&vfio, BUFFER_LEN)?;
    // Mapped while both are there, used by both.
    map(&domain, 0x10_0000, &pages, BOTH)?;
    for (seed, writer, reader) in [(1, &one, &two), (2, &two, &one)] {
        pages.fill(seed);
        writer.read(0x10_0000, BUFFER_LEN)?;
        pages.fill(9);
        writer.write(0x10_0000, BUFFER_LEN)?;
        ensure(pages.holds(seed, BUFFER_LEN), "one of them reaches something else")?;
        reader.read(0x10_0000, BUFFER_LEN)?;
        pages.fill(9);
        reader.write(0x10_0000, BUFFER_LEN)?;
        ensure(pages.holds(seed, BUFFER_LEN), "the other reaches something else")?;
    }
    Ok(())
}

fn two_domains() -> Result<(), Failure> {
    let vfio = open(&[EDU, OTHER_EDU])?;
    let (mine, yours) = (own_domain(&vfio, EDU)?, own_domain(&vfio, OTHER_EDU)?);
    let (one, two) = (edu(&vfio, EDU)?, edu(&vfio, OTHER_EDU)?);
    let (left, right) = (Pages::new(&vfio, BUFFER_LEN)?, Pages::new(&vfio, BUFFER_LEN)?);
    // One address, two places.
    map(&mine, 0x10_0000, &left, BOTH)?;
    map(&yours, 0x10_0000, &right, BOTH)?;
    left.fill(1);
    right.fill(2);
    one.read(0x10_0000, BUFFER_LEN)?;
    two.read(0x10_0000, BUFFER_LEN)?;
    left.fill(9);
    right.fill(9);
    two.write(0x10_0000, BUFFER_LEN)?;
    ensure(left.holds(9, BUFFER_LEN), "a device wrote into another's domain")?;
    ensure(right.holds(2, BUFFER_LEN), "a device read another's domain")?;
    one.write(0x10_0000, BUFFER_LEN)?;
    ensure(left.holds(1, BUFFER_LEN), "a device read another's domain")
}

/// The command register, as the kernel shows it to everybody.
fn command(address: PciAddress) -> Result<u8, Failure> {
    let mut byte = [0];
    fs::File::open(format!("/sys/bus/pci/devices/{address}/config"))?.read_exact_at(&mut byte, 4)?;
    Ok(byte[0])
}

fn bus_mastering() -> Result<(), Failure> {
    const BUS_MASTER: u8 = 4;
    let vfio = open(&[EDU])?;
    let domain = own_domain(&vfio, EDU)?;
    let pages = Pages::new(&vfio, BUFFER_LEN)?;
    map(&domain, 0x10_0000, &pages, BOTH)?;
    let function = vfio.function(EDU)?;
    ensure(command(EDU)? & BUS_MASTER == 0, "it is on before anybody asked")?;
    let edu = Edu::new(function, vfio.platform().clone())?;
    ensure(command(EDU)? & BUS_MASTER != 0, "it is off after somebody asked")?;
    pages.fill(1);
    edu.read(0x10_0000, BUFFER_LEN)?;
    edu.function().set_bus_master(false);
    pages.fill(2);
    edu.write(0x10_0000, BUFFER_LEN)?;
    ensure(pages.holds(2, BUFFER_LEN), "a device that is no bus master wrote")?;
    edu.function().set_bus_master(true);
    edu.write(0x10_0000, BUFFER_LEN)?;
    ensure(pages.holds(1, BUFFER_LEN), "it does not work any more")?;
    drop(edu);
    ensure(command(EDU)? & BUS_MASTER == 0, "it is on after the device was given back")
}

fn interrupts() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let edu = edu(&vfio, EDU)?;
    ensure(edu.function().interrupt_count() == 1, "edu has one message interrupt")?;
    for _ in 0..2 {
        // Connected, disconnected, connected again.
        let vector = edu.function().interrupt(0)?;
        edu.interrupt(&*vector)?;
        edu.interrupt(&*vector)?;
    }
    Ok(())
}

fn pin() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let edu = edu(&vfio, EDU)?;
    let message = vfio.vector(EDU, 0)?;
    ensure(vfio.intx(EDU).is_err(), "two kinds of interrupts are on")?;
    drop(message);
    let pin = vfio.intx(EDU)?;
    // The second arrives only if the first was unmasked.
    edu.interrupt(&pin)?;
    edu.interrupt(&pin)?;
    ensure(!pin.try_take(), "it arrived again, though the device has taken it back")?;
    drop(pin);
    edu.interrupt(&vfio.vector(EDU, 0)?)
}

/// An executor of one task: its thread sleeps until it is woken.
fn block_on<T>(task: impl Future<Output = T>) -> T {
    struct Thread(std::thread::Thread);
    impl Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Thread(std::thread::current())).into();
    let mut task = std::pin::pin!(task);
    loop {
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn task() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    let edu = edu(&vfio, EDU)?;
    // One after the other: the kernel has one kind on at a time.
    let kinds: [&dyn Fn() -> Result<Vector, VfioError>; 2] = [&|| vfio.vector(EDU, 0), &|| vfio.intx(EDU)];
    for connect in kinds {
        let vector = connect()?;
        for _ in 0..2 {
            edu.raise();
            block_on(vector.arrived())?;
            edu.acknowledge()?;
        }
    }
    Ok(())
}

fn no_reset() -> Result<(), Failure> {
    let vfio = open(&[EDU])?;
    match vfio.reset(EDU) {
        Err(VfioError::NoReset(EDU)) => Ok(()),
        other => Err(format!("a reset of edu was answered with {other:?}").into()),
    }
}

/// A device in its default domain, and its function.
pub(crate) fn bind_nvme(vfio: &Vfio) -> Result<(Arc<dyn Function>, Arc<Device>), Failure> {
    let (function, device) = vfio.bind(NVME)?;
    Ok((function, Arc::new(device)))
}
