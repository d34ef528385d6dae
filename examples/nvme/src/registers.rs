//! Controller registers (NVM Express 1.4, section 3.1).

use platform::Mmio;

const CAP: usize = 0x00;
const VS: usize = 0x08;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;

/// CC.EN.
pub(crate) const CC_ENABLE: u32 = 1 << 0;
/// I/O submission entries of 64 bytes (CC.IOSQES), completion entries of 16 (CC.IOCQES); pages of 4 KiB, round robin.
pub(crate) const CC_ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
/// CC.SHN: a normal shutdown.
pub(crate) const CC_SHUTDOWN: u32 = 1 << 14;

/// CSTS, decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) ready: bool,
    pub(crate) fatal: bool,
    pub(crate) shutdown_complete: bool,
}

/// CAP, decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capabilities {
    /// The most entries that a queue may have.
    pub(crate) max_queue_entries: u32,
    /// Bytes between doorbells.
    pub(crate) doorbell_stride: usize,
    /// Worst time that a change of CC.EN may take, in milliseconds.
    pub(crate) timeout_ms: u64,
    /// Whether pages of 4 KiB are possible.
    pub(crate) pages_of_4k: bool,
}

/// The registers of one controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers<'a>(pub(crate) &'a dyn Mmio);

impl Registers<'_> {
    pub(crate) fn capabilities(self) -> Capabilities {
        let cap = self.0.read64(CAP);
        Capabilities {
            max_queue_entries: (cap as u32 & 0xffff) + 1,
            timeout_ms: (cap >> 24 & 0xff) * 500,
            doorbell_stride: 4 << (cap >> 32 & 0xf),
            pages_of_4k: cap >> 48 & 0xf == 0,
        }
    }

    /// Major, minor and tertiary version.
    pub(crate) fn version(self) -> (u16, u8, u8) {
        let version = self.0.read32(VS);
        ((version >> 16) as u16, (version >> 8) as u8, version as u8)
    }

    pub(crate) fn status(self) -> Status {
        let csts = self.0.read32(CSTS);
        Status { ready: csts & 1 != 0, fatal: csts & 2 != 0, shutdown_complete: csts >> 2 & 3 == 2 }
    }

    pub(crate) fn configuration(self) -> u32 {
        self.0.read32(CC)
    }

    pub(crate) fn configure(self, value: u32) {
        self.0.write32(CC, value);
    }

    /// Where the admin queues are, and how many entries each has.
    pub(crate) fn set_admin_queues(self, submission: u64, completion: u64, entries: u32) {
        let size = entries - 1;
        self.0.write32(AQA, size << 16 | size);
        self.0.write64(ASQ, submission);
        self.0.write64(ACQ, completion);
    }
}

/// The offset of a submission queue's tail doorbell.
pub(crate) fn submission_doorbell(queue: u16, stride: usize) -> usize {
    DOORBELLS + 2 * usize::from(queue) * stride
}

/// The offset of a completion queue's head doorbell.
pub(crate) fn completion_doorbell(queue: u16, stride: usize) -> usize {
    DOORBELLS + (2 * usize::from(queue) + 1) * stride
}
