//! Physical Region Pages: how a command says where its data is (NVM Express 1.4, section 4.3).

use dma_api::{DmaPool, PoolItem};

use crate::NvmeError;

/// Where a command's data is: the two entries of its PRP field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Prp {
    pub(crate) first: u64,
    pub(crate) second: u64,
}

/// The controller's page, in bytes (CC.MPS = 0).
pub(crate) const PAGE: usize = 4096;

/// Entries in a list of one page. The driver uses one list per command, never a chain of them.
const ENTRIES_PER_LIST: usize = PAGE / 8;

/// The longest transfer that two entries and one list describe whatever its alignment, in bytes.
pub(crate) const MAX_TRANSFER: usize = ENTRIES_PER_LIST * PAGE;

/// Alignment and size of a list in the pool.
pub(crate) const LIST_BYTES: usize = PAGE;

/// The list of one command, taken from the pool when a command first needs it and kept for the next.
#[derive(Debug, Default)]
pub(crate) struct PrpList(Option<PoolItem<u64>>);

impl PrpList {
    /// Describes `len` bytes (1 to [`MAX_TRANSFER`]) at `address`.
    pub(crate) fn describe(&mut self, pool: &DmaPool, address: u64, len: usize) -> Result<Prp, NvmeError> {
        let offset = address as usize % PAGE;
        let second_page = address - offset as u64 + PAGE as u64;
        let pages = (offset + len).div_ceil(PAGE);
        match pages {
            0 | 1 => Ok(Prp { first: address, second: 0 }),
            2 => Ok(Prp { first: address, second: second_page }),
            _ => {
                let list = match &mut self.0 {
                    Some(list) => list,
                    empty => empty.insert(pool.alloc()?),
                };
                for index in 0..pages - 1 {
                    list.write(index, second_page + (index * PAGE) as u64);
                }
                Ok(Prp { first: address, second: list.dma_address().get() })
            }
        }
    }
}
