//! What the options mean to the IOMMU core.

use iommu_core::{DomainType, Settings, Trust};

use crate::{BackendError, Options};

/// How default domains are chosen on a machine whose devices are emulated.
pub(crate) fn of(options: &Options) -> Result<Settings, BackendError> {
    match options.domain_type.unwrap_or(DomainType::Dma) {
        DomainType::Dma => Ok(Settings::default()),
        DomainType::DmaFq => Ok(Settings { lazy: true, ..Settings::default() }),
        DomainType::Identity => {
            // SAFETY: an emulated device does DMA only when its driver tells it to, and a driver gets a device that is not
            // confined by `trust` alone.
            let trust = unsafe { Trust::new() };
            Ok(Settings { passthrough: Some(trust), ..Settings::default() })
        }
        other => Err(BackendError::DomainType(other)),
    }
}
