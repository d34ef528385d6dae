//! The MSI-X table and pending bits of a function, in its BAR 4.

use std::sync::Weak;

use parking_lot::Mutex;

use super::function::FunctionState;
use crate::bus::{Interrupts, Port};

/// Where the pending bits are in the BAR; the table is at 0.
pub(super) const PENDING_OFFSET: usize = 0x8000;
/// Bytes of the BAR.
pub(super) const BAR_SIZE: u64 = 0x1_0000;

#[derive(Clone, Copy, Debug)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// The vectors of one function.
#[derive(Debug)]
pub(super) struct Msix {
    vectors: Mutex<Vec<Vector>>,
    port: Port,
    function: Weak<FunctionState>,
}

impl Msix {
    /// `count` vectors, all masked.
    pub(super) fn new(count: u16, port: Port, function: Weak<FunctionState>) -> Self {
        let vector = Vector { address: 0, data: 0, masked: true, pending: false };
        Self { vectors: Mutex::new(vec![vector; usize::from(count)]), port, function }
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        let vectors = self.vectors.lock();
        let offset = offset as usize;
        if offset >= PENDING_OFFSET {
            let first = (offset - PENDING_OFFSET) * 8;
            let bit = |(n, vector): (usize, &Vector)| u32::from(vector.pending) << n;
            return vectors.iter().skip(first).take(32).enumerate().map(bit).fold(0, |bits, bit| bits | bit);
        }
        let Some(vector) = vectors.get(offset / 16) else { return 0 };
        match offset % 16 / 4 {
            0 => vector.address as u32,
            1 => (vector.address >> 32) as u32,
            2 => vector.data,
            _ => u32::from(vector.masked),
        }
    }

    pub(super) fn write(&self, offset: u64, value: u32) {
        let mut vectors = self.vectors.lock();
        let Some(vector) = vectors.get_mut(offset as usize / 16) else { return };
        match offset % 16 / 4 {
            0 => vector.address = vector.address & !0xffff_ffff | u64::from(value & !3),
            1 => vector.address = vector.address & 0xffff_ffff | u64::from(value) << 32,
            2 => vector.data = value,
            _ => vector.masked = value & 1 != 0,
        }
        drop(vectors);
        self.send_pending();
    }

    /// Sends what is pending and not masked any more.
    pub(super) fn send_pending(&self) {
        let Some(function) = self.function.upgrade() else { return };
        let (enabled, all_masked) = function.msix_control();
        if !enabled || all_masked {
            return;
        }
        let ready: Vec<_> = {
            let mut vectors = self.vectors.lock();
            let ready = vectors.iter_mut().filter(|vector| vector.pending && !vector.masked);
            ready
                .map(|vector| {
                    vector.pending = false;
                    (vector.address, vector.data)
                })
                .collect()
        };
        for (address, data) in ready {
            // A message that is refused is lost; the IOMMU has logged it.
            let _ = self.port.write(address, &data.to_le_bytes());
        }
    }
}

impl Interrupts for Msix {
    fn raise(&self, vector: u16) {
        if let Some(vector) = self.vectors.lock().get_mut(usize::from(vector)) {
            vector.pending = true;
        }
        self.send_pending();
    }
}
