//! A device that writes where it may not: what the machine lets it do, and what it reports.

use backend::{Backend, BackendError, Bench, Confinement, Fault};
use dma_api::{Bidirectional, DmaBuffer, DmaError, Quarantined, Streaming};
use platform::{DmaAddr, FrameRequest};

/// Why the show could not be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RogueError {
    #[error("the rogue device could not be had: {0}")]
    Backend(#[from] BackendError),
    #[error("the rogue device got no memory: {0}")]
    Dma(#[from] DmaError),
    #[error("{0}")]
    Quarantined(#[from] Quarantined),
    #[error("{0}")]
    Frames(#[from] platform::OutOfFrames),
    #[error("the rogue device cannot even reach memory that it was given")]
    Canary,
}

/// One forbidden write.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// What was tried.
    pub(crate) what: &'static str,
    /// Where.
    pub(crate) address: DmaAddr,
    /// Whether the memory behind the address is as it was.
    pub(crate) memory_unchanged: bool,
    /// What the machine reported.
    pub(crate) faults: Vec<Fault>,
    /// Whether this machine promises to refuse it.
    pub(crate) must_be_refused: bool,
    /// Whether it promises to report what it refuses.
    pub(crate) must_be_reported: bool,
}

impl Attempt {
    /// Whether the machine did what it promises.
    pub(crate) fn is_well(&self) -> bool {
        let reported = !self.must_be_reported || !self.faults.is_empty();
        !self.must_be_refused || self.memory_unchanged && reported
    }
}

/// The forbidden writes, and what keeps the device from them.
#[derive(Debug)]
pub(crate) struct Rogue {
    pub(crate) confinement: Confinement,
    pub(crate) attempts: Vec<Attempt>,
}

const MARK: [u8; 8] = *b"intruder";
const LEN: usize = 4096;

/// Lets the rogue device write to an address that nobody mapped, and to a page just unmapped.
pub(crate) fn show(machine: &dyn Backend) -> Result<Rogue, RogueError> {
    let rogue = machine.rogue()?;
    // A device that cannot do anything proves nothing: first it writes where it may.
    let mapped =
        Streaming::<_, Bidirectional>::map(rogue.device(), DmaBuffer::<u8>::zeroed(rogue.device(), LEN)?)
            .map_err(|failed| failed.error)?;
    let address = mapped.dma_address();
    let landed = rogue.device_write(address, &MARK).is_ok();
    let buffer = mapped.unmap()?;
    if !landed || buffer[..MARK.len()] != MARK {
        return Err(RogueError::Canary);
    }
    machine.take_faults();
    // The page just unmapped comes first: before anything else makes the IOMMU forget it.
    let unmapped = unmapped(machine, &*rogue, buffer, address);
    let attempts = vec![unmapped, never_mapped(machine, &*rogue)?];
    Ok(Rogue { confinement: machine.rogue_confinement(), attempts })
}

/// The page was the device's a moment ago; it is given to nobody yet.
fn unmapped(
    machine: &dyn Backend,
    rogue: &dyn Bench,
    mut buffer: DmaBuffer<u8>,
    address: DmaAddr,
) -> Attempt {
    buffer.fill(0);
    // What the device says of it does not matter: the memory does.
    let _ = rogue.device_write(address, &MARK);
    let memory_unchanged = buffer.iter().all(|&byte| byte == 0);
    let must_be_refused = machine.rogue_confinement() == Confinement::Strict;
    let faults = machine.take_faults();
    let must_be_reported = machine.reports_faults();
    let what = "a page just unmapped";
    Attempt { what, address, memory_unchanged, faults, must_be_refused, must_be_reported }
}

/// Physical memory that is somebody else's, at the address that it has for the CPU.
fn never_mapped(machine: &dyn Backend, rogue: &dyn Bench) -> Result<Attempt, RogueError> {
    let platform = machine.platform();
    let victim = DmaBuffer::<u8>::zeroed(rogue.device(), LEN)?;
    let extent = platform.translate(victim.as_ptr(), LEN).ok_or(platform::OutOfFrames(FrameRequest::ONE))?;
    let address = DmaAddr::new(extent.phys.get());
    // As above.
    let _ = rogue.device_write(address, &MARK);
    let memory_unchanged = victim.iter().all(|&byte| byte == 0);
    let must_be_refused = machine.rogue_confinement() != Confinement::Absent;
    let faults = machine.take_faults();
    let must_be_reported = machine.reports_faults();
    let what = "an address nobody mapped";
    Ok(Attempt { what, address, memory_unchanged, faults, must_be_refused, must_be_reported })
}
