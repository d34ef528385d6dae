//! A split virtqueue in the driver's memory (VIRTIO 1.2, section 2.7).

use std::sync::atomic::{Ordering, fence};

use crate::bus::Port;

/// The driver has broken the rules so that the device cannot go on, or not even answer.
pub(super) struct NeedsReset;

/// A part of a request.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) address: u64,
    pub(super) len: u64,
}

/// A request: what the device reads, and what it writes.
pub(super) struct Chain {
    head: u16,
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
}

/// The queue, as far as the device has got.
pub(super) struct Virtqueue {
    descriptors: u64,
    available: u64,
    used: u64,
    size: u16,
    next_available: u16,
    next_used: u16,
}

impl Virtqueue {
    /// With its descriptor, driver and device areas, and `size` entries, a power of two.
    pub(super) fn new([descriptors, available, used]: [u64; 3], size: u16) -> Self {
        Self { descriptors, available, used, size, next_available: 0, next_used: 0 }
    }

    /// The next request, if there is one.
    pub(super) fn take(&mut self, port: &Port) -> Result<Option<Chain>, NeedsReset> {
        let index = u16::from_le_bytes(read(port, self.available.wrapping_add(2))?);
        // What the driver wrote before the index is seen from here on.
        fence(Ordering::Acquire);
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(NeedsReset);
        }
        if waiting == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_available % self.size);
        let head = u16::from_le_bytes(read(port, self.available.wrapping_add(4 + 2 * slot))?);
        self.next_available = self.next_available.wrapping_add(1);
        self.follow(port, head).map(Some)
    }

    /// Follows a chain of descriptors to its end.
    fn follow(&self, port: &Port, head: u16) -> Result<Chain, NeedsReset> {
        const NEXT: u16 = 1 << 0;
        const WRITE: u16 = 1 << 1;
        const INDIRECT: u16 = 1 << 2;
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut index = head;
        // A chain that has more than all descriptors is a loop.
        for _ in 0..self.size {
            if index >= self.size {
                return Err(NeedsReset);
            }
            let at = self.descriptors.wrapping_add(16 * u64::from(index));
            let address = u64::from_le_bytes(read(port, at)?);
            let [a, b, c, d, flags @ .., e, f] = read::<8>(port, at.wrapping_add(8))?;
            let flags = u16::from_le_bytes(flags);
            let segment = Segment { address, len: u32::from_le_bytes([a, b, c, d]).into() };
            if flags & INDIRECT != 0 {
                // Not offered.
                return Err(NeedsReset);
            }
            if flags & WRITE != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                // What is read comes first.
                return Err(NeedsReset);
            }
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            index = u16::from_le_bytes([e, f]);
        }
        Err(NeedsReset)
    }

    /// Gives a request back, of which the first `written` bytes of the writable part were written.
    pub(super) fn give_back(&mut self, port: &Port, chain: &Chain, written: u32) -> Result<(), NeedsReset> {
        let slot = u64::from(self.next_used % self.size);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(chain.head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        port.write(self.used.wrapping_add(4 + 8 * slot), &element).map_err(|_| NeedsReset)?;
        self.next_used = self.next_used.wrapping_add(1);
        // Who sees the index sees the element, and what the request wrote.
        fence(Ordering::Release);
        port.write(self.used.wrapping_add(2), &self.next_used.to_le_bytes()).map_err(|_| NeedsReset)
    }

    /// Whether the driver wants to be interrupted.
    pub(super) fn wants_interrupt(&self, port: &Port) -> Result<bool, NeedsReset> {
        const NO_INTERRUPT: u16 = 1 << 0;
        Ok(u16::from_le_bytes(read(port, self.available)?) & NO_INTERRUPT == 0)
    }
}

fn read<const N: usize>(port: &Port, at: u64) -> Result<[u8; N], NeedsReset> {
    let mut bytes = [0; N];
    port.read(at, &mut bytes).map_err(|_| NeedsReset)?;
    Ok(bytes)
}
