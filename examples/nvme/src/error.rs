//! What can go wrong.

use dma_api::{DmaError, Quarantined};
use platform::pci::PciError;

use crate::CommandStatus;

/// Why the driver gave up on something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// The registers or an interrupt could not be had.
    #[error("PCI: {0}")]
    Pci(#[from] PciError),
    /// Memory could not be made visible to the controller.
    #[error("DMA: {0}")]
    Dma(#[from] DmaError),
    /// Memory could not be taken back from the controller.
    #[error("DMA: {0}")]
    Quarantined(#[from] Quarantined),
    /// The controller needs something that this driver does not do.
    #[error("the controller cannot be used: {0}")]
    Unsupported(&'static str),
    /// The controller did not answer in time.
    #[error("the controller did not {0} in time")]
    TimedOut(&'static str),
    /// The controller reported a fatal error (CSTS.CFS).
    #[error("the controller reported a fatal error")]
    Fatal,
    /// The controller completed a command that was not outstanding.
    #[error("the controller completed command {0}, which was not outstanding")]
    UnexpectedCompletion(u16),
    /// A command failed.
    #[error("{0}")]
    Command(CommandStatus),
    /// There is an I/O queue of this number already.
    #[error("I/O queue {0} is there already")]
    QueueTaken(u16),
    /// All slots of the queue are taken; wait for a completion.
    #[error("the queue is full")]
    QueueFull,
    /// The range is not within the disk, not whole blocks, or longer than one command can be.
    #[error(
        "{bytes} bytes at block {block} are no whole blocks of the disk, or more than one command can move"
    )]
    BadRange {
        /// First block.
        block: u64,
        /// Length asked for, in bytes.
        bytes: usize,
    },
}
