//! A root complex with several IOMMUs.

use std::sync::Arc;

use platform::pci::RequesterId;

use super::AmdIommu;
use crate::ats::{Source, Translation};
use crate::bus::{BusError, Remapper, Translated};
use crate::pri::PageRequest;

/// The IOMMUs of one segment, each with the requesters whose way to memory leads through it.
///
/// Requests of those behind none pass as they are.
#[derive(Debug, Default)]
pub struct Units {
    behind: Vec<(RequesterId, RequesterId, Arc<AmdIommu>)>,
}

impl Units {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts requesters `first` to `last` behind `unit`, whatever they were behind before.
    pub fn add(&mut self, first: RequesterId, last: RequesterId, unit: &Arc<AmdIommu>) {
        self.behind.push((first, last, Arc::clone(unit)));
    }

    fn of(&self, requester: RequesterId) -> Option<&AmdIommu> {
        let holds = |(first, last, _): &&(_, _, _)| *first <= requester && requester <= *last;
        self.behind.iter().rfind(holds).map(|(_, _, unit)| &**unit)
    }
}

impl Remapper for Units {
    fn with_translation(
        &self,
        source: Source,
        address: u64,
        len: u64,
        write: bool,
        access: &mut dyn FnMut(Translated) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        match self.of(source.requester) {
            Some(unit) => unit.with_translation(source, address, len, write, access),
            None => access(Translated { phys: address, len }),
        }
    }

    fn translate(&self, source: Source, address: u64) -> Result<Translation, BusError> {
        self.of(source.requester).ok_or(BusError::MasterAbort)?.translate(source, address)
    }

    fn page_request(&self, request: PageRequest) -> Result<(), BusError> {
        self.of(request.requester).ok_or(BusError::MasterAbort)?.page_request(request)
    }

    fn interrupt(
        &self,
        requester: RequesterId,
        address: u64,
        data: u32,
        deliver: &mut dyn FnMut(u64, u32),
    ) -> Result<(), BusError> {
        match self.of(requester) {
            Some(unit) => unit.interrupt(requester, address, data, deliver),
            None => {
                deliver(address, data);
                Ok(())
            }
        }
    }
}
