//! Registered memory, and what it spares.

use std::hint::black_box;
use std::time::{Duration, Instant};

use backend_vfio::{Config, Vfio};
use conformance::modes::REGISTERED;
use dma_api::{Bidirectional, BufferFor, Device, DmaBuffer, Streaming};

use crate::edu::{Edu, EduBench};
use crate::system::EDU;
use crate::{Failure, ensure};

const ARENA: usize = 32 << 20;

fn open() -> Result<Vfio, Failure> {
    Ok(Vfio::open(Config { arena: ARENA, ..Config::new([EDU]) })?)
}

pub(crate) fn conformance() -> Result<conformance::Report, Failure> {
    let vfio = open()?;
    // SAFETY: what the list has edu do beyond what it was given, it does to buffers that nobody relies on meanwhile.
    let (function, device) = unsafe { vfio.trust_registered(EDU) }?;
    let bench = EduBench::new(Edu::new(function, vfio.platform().clone())?, device, REGISTERED.waivers)?;
    let report = conformance::run(&bench);
    drop(bench);
    ensure(vfio.iommu().statistics().quarantined == 0, "addresses were quarantined")?;
    Ok(report)
}

/// How long a map and unmap takes of what `buffer` makes.
fn time<B: BufferFor<Bidirectional>>(device: &Device, mut buffer: B) -> Result<Duration, Failure> {
    const TIMES: u32 = 200;
    let start = Instant::now();
    for _ in 0..TIMES {
        let mapped = Streaming::<_, Bidirectional>::map(device, buffer).map_err(|failed| failed.error)?;
        buffer = mapped.unmap()?;
    }
    Ok(start.elapsed() / TIMES)
}

/// How long it takes to copy `len` bytes there and back.
fn copy(len: usize) -> Duration {
    const TIMES: u32 = 200;
    let (mut here, mut there) = (vec![1_u8; len], vec![2_u8; len]);
    let start = Instant::now();
    for _ in 0..TIMES {
        there.copy_from_slice(black_box(&here));
        here.copy_from_slice(black_box(&there));
    }
    start.elapsed() / TIMES
}

/// Says what each way costs; emulation is slow, so that only their order means something.
pub(crate) fn measured() -> Result<(), Failure> {
    let vfio = open()?;
    let (function, device) = vfio.bind(EDU)?;
    let mapped = time(&device, DmaBuffer::<u8>::zeroed(&device, 4096)?)?;
    drop((function, device));
    // SAFETY: edu is told nothing.
    let (_function, device) = unsafe { vfio.trust_registered(EDU) }?;
    let registered = time(&device, DmaBuffer::<u8>::zeroed(&device, 4096)?)?;
    let copied = time(&device, vec![0_u8; 4096])?;
    println!("measured: a page mapped and unmapped {mapped:?}, registered {registered:?}, copied {copied:?}");
    for len in [4 << 10, 16 << 10, 64 << 10, 256 << 10] {
        println!("measured: {} KiB copied there and back: {:?}", len >> 10, copy(len));
    }
    ensure(
        registered < copied && copied < mapped,
        "a lookup, a copy and a call of the kernel: not in this order",
    )
}
