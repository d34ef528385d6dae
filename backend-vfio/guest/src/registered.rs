//! Registered memory, and what it spares.

use std::time::{Duration, Instant};

use backend_vfio::{Config, Registered, Vfio};
use conformance::modes::REGISTERED;
use dma_api::{Bidirectional, BufferFor, Device, DmaBuffer, DmaMapOps, Streaming};

use crate::edu;
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
    let bench = edu::bench(function, device, REGISTERED.waivers)?;
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

/// Says what each way costs, for a page and for the longest buffer that is copied. Emulation is slow, so that only their order
/// means something.
pub(crate) fn measured() -> Result<(), Failure> {
    const COPY_MAX: usize = Registered::<&dyn DmaMapOps>::COPY_MAX;
    let vfio = open()?;
    let mut mapped = [Duration::ZERO; 2];
    let (function, device) = vfio.bind(EDU)?;
    for (mapped, len) in mapped.iter_mut().zip([4096, COPY_MAX]) {
        *mapped = time(&device, DmaBuffer::<u8>::zeroed(&device, len)?)?;
    }
    drop((function, device));
    // SAFETY: edu is told nothing.
    let (_function, device) = unsafe { vfio.trust_registered(EDU) }?;
    for (mapped, len) in mapped.into_iter().zip([4096, COPY_MAX]) {
        let registered = time(&device, DmaBuffer::<u8>::zeroed(&device, len)?)?;
        let copied = time(&device, vec![0_u8; len])?;
        println!("measured: {len} bytes mapped {mapped:?}, copied {copied:?}, registered {registered:?}");
        let in_order = registered < copied && copied < mapped;
        ensure(in_order, "a lookup, a copy and a call of the kernel: not in this order")?;
    }
    Ok(())
}
