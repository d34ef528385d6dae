//! Message interrupts of devices whose IOMMU translates messages too: where in a domain their doorbells are (Linux:
//! `iommu_dma_prepare_msi`, `struct iommu_dma_msi_page`).

use alloc::vec::Vec;

use platform::pci::PciAddress;
use platform::{DmaAddr, PhysAddr, Prot};

use crate::domain::Domain;
use crate::group::{Group, GroupError, Member};
use crate::ops::{Capability, DomainError, DomainType};
use crate::resv::{ResvRegion, ResvType};

/// A window of a domain in which doorbells are mapped, and those that are.
#[derive(Debug, Default)]
pub(crate) struct Doorbells {
    /// First and last address that is left of a window that somebody has set aside.
    window: Option<(DmaAddr, DmaAddr)>,
    /// Pages of doorbells, and where they are.
    pages: Vec<(PhysAddr, DmaAddr)>,
}

impl Domain {
    /// Sets addresses aside, from `first` to `last`, for the doorbells of the domain's devices (Linux: `iommu_get_msi_cookie`):
    /// those of a region of [`ResvType::SwMsi`], mostly. Nobody maps anything else there.
    ///
    /// # Errors
    /// [`DomainError::InUse`] when the domain is not its owner's alone, or has a window.
    #[doc(alias = "iommu_get_msi_cookie")]
    pub fn set_msi_window(&self, first: DmaAddr, last: DmaAddr) -> Result<(), DomainError> {
        let mut doorbells = self.doorbells().lock();
        if self.domain_type() != DomainType::Unmanaged || doorbells.window.is_some() {
            return Err(DomainError::InUse);
        }
        doorbells.window = Some((first, last));
        Ok(())
    }

    /// Where a device in the domain finds a doorbell, which is mapped if it is not. It stays as long as the domain.
    ///
    /// # Errors
    /// [`DomainError::Exhausted`] when there is no address up to `limit`, or no memory for the table.
    ///
    /// # Safety
    /// As [`Group::prepare_msi`].
    pub(crate) unsafe fn map_doorbell(
        &self,
        doorbell: PhysAddr,
        limit: DmaAddr,
    ) -> Result<DmaAddr, DomainError> {
        let mut doorbells = self.doorbells().lock();
        let granule = self.page_sizes().smallest();
        let untranslated = DmaAddr::new(doorbell.get());
        if granule == 0 || self.cookie().is_none() && doorbells.window.is_none() {
            return Ok(untranslated);
        }
        let (page, offset) = (doorbell.align_down(granule), doorbell.offset_in(granule));
        let in_reach = |at: DmaAddr| at.last_of(granule).is_some_and(|last| last <= limit);
        if let Some(&(_, at)) = doorbells.pages.iter().find(|&&(known, at)| known == page && in_reach(at)) {
            return Ok(at.wrapping_add(offset));
        }
        let from_window = |(first, last): (DmaAddr, DmaAddr)| {
            let at = first.checked_add(granule - 1)?.align_down(granule);
            at.last_of(granule).filter(|&end| end <= last.min(limit)).map(|end| (at, end))
        };
        let (at, rest) = match self.cookie() {
            Some(cookie) => (cookie.iovas.alloc(granule, limit), None),
            None => match doorbells.window.and_then(from_window) {
                Some((at, end)) => (Some(at), end.checked_add(1)),
                None => (None, None),
            },
        };
        let at = at.ok_or(DomainError::Exhausted)?;
        // A message is a write, and nothing is to be fetched or cached.
        let prot = Prot::WRITE | Prot::NOEXEC | Prot::MMIO;
        // SAFETY: the caller's promise; the address was taken just now, and its window is nobody else's.
        let (done, mapped) = unsafe { self.map(at, page, granule, prot) };
        if mapped.is_ok() {
            doorbells.pages.push((page, at));
        } else if self.unmap_doorbell(at, done) {
            return Err(DomainError::Exhausted);
        }
        if let Some((first, _)) = doorbells.window.as_mut() {
            // What ends with the address space is used up.
            *first = rest.unwrap_or(DmaAddr::new(u64::MAX));
        }
        mapped.map(|()| at.wrapping_add(offset)).map_err(|_| DomainError::Exhausted)
    }

    /// Takes a mapping back that failed. Whether nothing of it is left, so that its address may be used again.
    fn unmap_doorbell(&self, at: DmaAddr, done: u64) -> bool {
        let granule = self.page_sizes().smallest();
        let mut gather = self.gather();
        if done != 0 {
            // SAFETY: mapped just now, and nobody has been told.
            unsafe { self.unmap(at, done, &mut gather) };
        }
        let flushed = self.sync(gather);
        match (&flushed, self.cookie()) {
            (Ok(flushed), Some(cookie)) => cookie.iovas.free(at, granule, flushed),
            (Err(_), Some(cookie)) => cookie.quarantine(granule),
            (_, None) => {}
        }
        flushed.is_ok()
    }
}

impl Group {
    /// Makes a doorbell reachable for messages of a device, in the domain that its group is in, and says which address the
    /// device is to write to (Linux: `iommu_dma_prepare_msi`): `doorbell` itself where messages are not translated, because
    /// nothing is, because it lies in a region of [`ResvType::Msi`], or because the domain's owner has set no window aside
    /// ([`Domain::set_msi_window`]). To be asked again when the group is in another domain. The last byte of the page at which
    /// it is put is at or below `limit`: what the device's message register can hold.
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`]; [`DomainError::Exhausted`] when there is no address up to `limit`, or no memory for the
    /// table.
    ///
    /// # Safety
    /// `doorbell` is where an interrupt controller takes messages, and writing to anything else in its page, of the domain's
    /// smallest size, does no harm: the device can.
    #[doc(alias = "iommu_dma_prepare_msi")]
    pub unsafe fn prepare_msi(
        &self,
        address: PciAddress,
        doorbell: PhysAddr,
        limit: DmaAddr,
    ) -> Result<DmaAddr, GroupError> {
        let state = self.state.lock();
        let untranslated = DmaAddr::new(doorbell.get());
        let passes = |region: &ResvRegion| {
            let last = region.start.last_of(region.len);
            region.kind == ResvType::Msi
                && untranslated >= region.start
                && last.is_some_and(|last| untranslated <= last)
        };
        let passes = state.member(address)?.regions.iter().any(passes);
        match &state.domain {
            // SAFETY: the caller's promise.
            Some(domain) if !passes => Ok(unsafe { domain.map_doorbell(doorbell, limit) }?),
            _ => Ok(untranslated),
        }
    }

    /// Whether no device of the group can raise an interrupt that was not set up for it (Linux:
    /// `iommu_group_has_isolated_msi`): whoever lets user space drive the group asks.
    #[doc(alias = "iommu_group_has_isolated_msi")]
    pub fn has_isolated_msi(&self) -> bool {
        let state = self.state.lock();
        let isolated = |member: &Member| member.ops.capable(member.address, Capability::IsolatedMsi);
        !state.members.is_empty() && state.members.iter().all(isolated)
    }
}
