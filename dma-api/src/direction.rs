//! Which way data moves.

use crate::DmaError;

/// Which way data moves in a mapping (Linux: `enum dma_data_direction`). It becomes the IOMMU's permission.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// Both ways (`DMA_BIDIRECTIONAL`).
    Bidirectional,
    /// The device reads (`DMA_TO_DEVICE`).
    ToDevice,
    /// The device writes (`DMA_FROM_DEVICE`).
    FromDevice,
}

impl Direction {
    /// Whether the device may read.
    #[inline]
    pub const fn device_reads(self) -> bool {
        !matches!(self, Self::FromDevice)
    }

    /// Whether the device may write.
    #[inline]
    pub const fn device_writes(self) -> bool {
        !matches!(self, Self::ToDevice)
    }
}

impl TryFrom<u32> for Direction {
    type Error = DmaError;

    /// Linux's numbers (`enum dma_data_direction`), for drivers that have them from elsewhere.
    fn try_from(number: u32) -> Result<Self, DmaError> {
        match number {
            0 => Ok(Self::Bidirectional),
            1 => Ok(Self::ToDevice),
            2 => Ok(Self::FromDevice),
            _ => Err(DmaError::InvalidDirection),
        }
    }
}
