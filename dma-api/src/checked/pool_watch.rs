//! A pool under watch.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::panic::Location;

use platform::DmaAddr;
use platform::sync::Mutex;

use super::debug::DmaDebug;
use super::report::Mistake;
use crate::volatile::{copy_in, copy_out};

/// What free blocks are filled with (Linux: `POOL_POISON_FREED`).
const FREE: u8 = 0xa7;
/// Bytes looked at in one go.
const PIECE: usize = 64;

/// A pool's name, which of its blocks are in use, and who hears of mistakes.
#[derive(Debug)]
pub(crate) struct PoolWatch {
    debug: Arc<DmaDebug>,
    device: Box<str>,
    pool: Box<str>,
    taken: Mutex<BTreeMap<DmaAddr, &'static Location<'static>>>,
}

impl PoolWatch {
    pub(crate) fn new(debug: &Arc<DmaDebug>, device: &str, pool: &str) -> Self {
        Self { debug: Arc::clone(debug), device: device.into(), pool: pool.into(), taken: Mutex::default() }
    }

    /// Marks memory as free.
    ///
    /// # Safety
    /// It is `len` bytes of a block that nobody uses but, atomically, a device.
    pub(crate) unsafe fn poison(&self, cpu: *mut u8, len: usize) {
        for at in (0..len).step_by(PIECE) {
            // SAFETY: within the block, which is accessed atomically.
            unsafe { copy_in([FREE; PIECE].as_ptr(), cpu.add(at), PIECE.min(len - at)) };
        }
    }

    /// Reports a free block that is not as it was left.
    ///
    /// # Safety
    /// As [`PoolWatch::poison`].
    pub(crate) unsafe fn check(&self, block: DmaAddr, cpu: *mut u8, len: usize) {
        for at in (0..len).step_by(PIECE) {
            let mut piece = [FREE; PIECE];
            // SAFETY: within the block, which is accessed atomically.
            unsafe { copy_out(cpu.add(at), piece.as_mut_ptr(), PIECE.min(len - at)) };
            if let Some((index, &found)) = piece.iter().enumerate().find(|&(_, &byte)| byte != FREE) {
                let at = block.wrapping_add((at + index) as u64);
                let pool = self.pool.clone();
                self.debug.report(&self.device, Mistake::FreeBlockChanged { pool, block, at, found });
                return;
            }
        }
    }

    /// A block is taken.
    ///
    /// # Safety
    /// As [`PoolWatch::poison`].
    #[track_caller]
    pub(crate) unsafe fn take(&self, block: DmaAddr, cpu: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.check(block, cpu, len) };
        self.taken.lock().insert(block, Location::caller());
    }

    /// A block is given back.
    ///
    /// # Safety
    /// As [`PoolWatch::poison`].
    pub(crate) unsafe fn give_back(&self, block: DmaAddr, cpu: *mut u8, len: usize) {
        self.taken.lock().remove(&block);
        // SAFETY: the caller's promise.
        unsafe { self.poison(cpu, len) };
    }

    /// Nobody can take a block any more.
    pub(crate) fn pool_gone(&self) {
        let mistake = {
            let taken = self.taken.lock();
            let Some((&block, &taken_at)) = taken.first_key_value() else { return };
            Mistake::PoolBusy { pool: self.pool.clone(), count: taken.len(), block, taken_at }
        };
        self.debug.report(&self.device, mistake);
    }
}
