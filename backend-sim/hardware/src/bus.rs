//! What travels between devices, the PCI tree, the IOMMU and memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use platform::pci::RequesterId;

use crate::ats::{Atc, Services, Source, Translation};
use crate::pri::{PageRequest, PageResponse, Pri};

/// Message interrupts: writes of 4 bytes to these addresses. It is no memory.
pub const INTERRUPTS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// How a request failed, as the requester sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BusError {
    /// Nobody answers at this address.
    #[error("master abort: nobody answers")]
    MasterAbort,
    /// Who answers refused: the IOMMU, an ACS check, a device that is off.
    #[error("target abort: the request was refused")]
    TargetAbort,
}

/// Where a function's requests go: the rest of the PCI tree. A message interrupt is a write of 4 bytes to
/// FEEx_xxxxh like any other write.
pub trait Upstream: Send + Sync {
    /// Reads `into.len()` bytes at bus address `address`.
    ///
    /// # Errors
    /// The first part that failed ends the request; what came before it has been read.
    fn read(&self, source: Source, address: u64, into: &mut [u8]) -> Result<(), BusError>;

    /// Writes `from` to bus address `address`.
    ///
    /// # Errors
    /// The first part that failed ends the request; what came before it has been written.
    fn write(&self, source: Source, address: u64, from: &[u8]) -> Result<(), BusError>;

    /// Asks for the translation of `address`.
    ///
    /// # Errors
    /// The request is refused, or there is no IOMMU that would answer.
    fn translate(&self, source: Source, address: u64) -> Result<Translation, BusError>;

    /// Asks for a page.
    ///
    /// # Errors
    /// There is no IOMMU that would take the request.
    fn page_request(&self, request: PageRequest) -> Result<(), BusError>;
}

/// How often a function asks for a page that it is told is there, and is not.
const TRIES: usize = 100;
/// How long it then waits before it tries again.
const PAUSE: Duration = Duration::from_millis(1);

/// A function's own door to the bus: its requester ID, and what it may do there.
#[derive(Clone)]
pub struct Port {
    id: RequesterId,
    services: Services,
    upstream: Arc<dyn Upstream>,
}

impl Port {
    /// The door of function `id`. Requests pass while it is bus master; while its ATS is on, it translates memory addresses
    /// itself.
    pub fn new(id: RequesterId, services: Services, upstream: Arc<dyn Upstream>) -> Self {
        Self { id, services, upstream }
    }

    /// The function's name on the bus.
    pub fn id(&self) -> RequesterId {
        self.id
    }

    /// Reads memory as this function.
    ///
    /// # Errors
    /// [`BusError::MasterAbort`] while bus mastering is off, else what the tree answers.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BusError> {
        self.read_as(None, address, into)
    }

    /// Writes memory as this function.
    ///
    /// # Errors
    /// [`BusError::MasterAbort`] while bus mastering is off, else what the tree answers.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), BusError> {
        self.write_as(None, address, from)
    }

    /// Reads memory with a PASID, if there is one.
    ///
    /// # Errors
    /// As [`Port::read`]; [`BusError::MasterAbort`] for a PASID while those are off.
    pub fn read_as(&self, pasid: Option<u32>, address: u64, into: &mut [u8]) -> Result<(), BusError> {
        let plain = self.source(pasid, false)?;
        let Some(atc) = self.atc(address) else { return self.upstream.read(plain, address, into) };
        let translated = Source { translated: true, ..plain };
        let mut done = 0;
        while done < into.len() {
            let (at, rest) = (address.wrapping_add(done as u64), &mut into[done..]);
            let len = rest.len() as u64;
            done +=
                atc.with_translation(pasid, at, len, false, self.asking(pasid, at, false), |phys, len| {
                    self.upstream.read(translated, phys, &mut rest[..len as usize])
                })? as usize;
        }
        Ok(())
    }

    /// Writes memory with a PASID, if there is one.
    ///
    /// # Errors
    /// As [`Port::read_as`].
    pub fn write_as(&self, pasid: Option<u32>, address: u64, from: &[u8]) -> Result<(), BusError> {
        let plain = self.source(pasid, false)?;
        let Some(atc) = self.atc(address) else { return self.upstream.write(plain, address, from) };
        let translated = Source { translated: true, ..plain };
        let mut done = 0;
        while done < from.len() {
            let (at, rest) = (address.wrapping_add(done as u64), &from[done..]);
            let len = rest.len() as u64;
            done +=
                atc.with_translation(pasid, at, len, true, self.asking(pasid, at, true), |phys, len| {
                    self.upstream.write(translated, phys, &rest[..len as usize])
                })? as usize;
        }
        Ok(())
    }

    /// The translations that it keeps, for an access of memory; a message is none.
    fn atc(&self, address: u64) -> Option<&Atc> {
        self.services.atc.as_deref().filter(|atc| atc.is_enabled() && !INTERRUPTS.contains(&address))
    }

    /// Asks for a translation, and for the page as long as that is answered, where it may.
    fn asking(
        &self,
        pasid: Option<u32>,
        address: u64,
        write: bool,
    ) -> impl FnMut() -> Result<Translation, BusError> {
        move || {
            for again in 0..TRIES {
                if again > 1 {
                    // It was told that the page is there, and it is not: somebody needs time.
                    std::thread::sleep(PAUSE);
                }
                let translation = self.translate_as(pasid, address)?;
                let allowed = if write { translation.write } else { translation.read };
                let pri = self.services.pri.as_deref().filter(|pri| !allowed && pri.is_enabled());
                let Some(pri) = pri else { return Ok(translation) };
                if self.request_pages(pri, pasid, &[(address, write)])? != Some(PageResponse::SUCCESS) {
                    return Ok(translation);
                }
            }
            Err(BusError::TargetAbort)
        }
    }

    fn request_pages(
        &self,
        pri: &Pri,
        pasid: Option<u32>,
        pages: &[(u64, bool)],
    ) -> Result<Option<u8>, BusError> {
        let group = pri.begin(pasid);
        for (number, &(address, write)) in pages.iter().enumerate() {
            let last = number + 1 == pages.len();
            let request = PageRequest { requester: self.id, pasid, address, write, group, last };
            self.upstream.page_request(request)?;
        }
        Ok(pri.wait(group))
    }

    /// Asks for pages, for writing where a page says so, as one group; the code of the answer, if one came.
    ///
    /// # Errors
    /// As [`Port::read_as`]; [`BusError::MasterAbort`] while page requests are off.
    pub fn ask_for_pages(&self, pasid: Option<u32>, pages: &[(u64, bool)]) -> Result<Option<u8>, BusError> {
        self.source(pasid, false)?;
        let pri = self.services.pri.as_deref().filter(|pri| pri.is_enabled());
        self.request_pages(pri.ok_or(BusError::MasterAbort)?, pasid, pages)
    }

    /// Asks the IOMMU for a translation, whatever the function keeps.
    ///
    /// # Errors
    /// As [`Port::read`].
    pub fn translate(&self, address: u64) -> Result<Translation, BusError> {
        self.translate_as(None, address)
    }

    /// As [`Port::translate`], with a PASID if there is one.
    ///
    /// # Errors
    /// As [`Port::read_as`].
    pub fn translate_as(&self, pasid: Option<u32>, address: u64) -> Result<Translation, BusError> {
        self.upstream.translate(self.source(pasid, false)?, address)
    }

    /// Reads memory at an address of which it says that it has translated it.
    ///
    /// # Errors
    /// As [`Port::read`].
    pub fn read_translated(&self, address: u64, into: &mut [u8]) -> Result<(), BusError> {
        self.upstream.read(self.source(None, true)?, address, into)
    }

    fn source(&self, pasid: Option<u32>, translated: bool) -> Result<Source, BusError> {
        let on = |switch: &AtomicBool| switch.load(Ordering::Acquire);
        if on(&self.services.bus_master) && (pasid.is_none() || on(&self.services.pasids)) {
            Ok(Source { requester: self.id, pasid, translated })
        } else {
            Err(BusError::MasterAbort)
        }
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({})", self.id)
    }
}

/// Part of a request after translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translated {
    /// Physical address of the first byte.
    pub phys: u64,
    /// How many bytes from there on belong to the same translation, at most as many as were asked for.
    pub len: u64,
}

/// An IOMMU as the root complex sees it.
pub trait Remapper: Send + Sync {
    /// Translates the start of a memory request of `len` bytes (not 0) and calls `access` with it. A completion wait of the
    /// IOMMU does not finish while an access is under way that uses a translation from before: what was invalidated is
    /// out of every device's reach when the wait ends. `access` makes no other request of this IOMMU.
    ///
    /// # Errors
    /// [`BusError::TargetAbort`] when the request is refused, and the IOMMU has logged what it logs; else what `access`
    /// returns.
    fn with_translation(
        &self,
        source: Source,
        address: u64,
        len: u64,
        write: bool,
        access: &mut dyn FnMut(Translated) -> Result<(), BusError>,
    ) -> Result<(), BusError>;

    /// Answers a function's request for a translation. By default there is nobody who does.
    ///
    /// # Errors
    /// [`BusError::TargetAbort`] when it is refused.
    fn translate(&self, source: Source, address: u64) -> Result<Translation, BusError> {
        let _ = (source, address);
        Err(BusError::MasterAbort)
    }

    /// Takes a function's request for a page. By default there is nobody who does.
    ///
    /// # Errors
    /// [`BusError::MasterAbort`] when nobody takes it.
    fn page_request(&self, request: PageRequest) -> Result<(), BusError> {
        let _ = request;
        Err(BusError::MasterAbort)
    }

    /// Passes, changes or refuses a message interrupt: calls `deliver` with the address and data that go on to the interrupt
    /// controller. As with memory, a completion wait of the IOMMU does not finish while a message is under way that came about
    /// by what has been invalidated since.
    ///
    /// # Errors
    /// [`BusError::TargetAbort`] when it is refused.
    fn interrupt(
        &self,
        requester: RequesterId,
        address: u64,
        data: u32,
        deliver: &mut dyn FnMut(u64, u32),
    ) -> Result<(), BusError>;
}

/// Takes message interrupts that have passed the IOMMU, or are its own: the interrupt controller.
pub trait MessageSink: Send + Sync {
    /// A message arrived: 4 bytes written to FEEx_xxxxh. Bits 31:8 of the destination, if it has such, are in bits 63:40 of the
    /// address.
    fn message(&self, address: u64, data: u32);
}

/// What a device model says of itself before it is plugged in.
#[derive(Clone, Debug)]
pub struct Identity {
    /// PCI vendor ID.
    pub vendor: u16,
    /// PCI device ID.
    pub device: u16,
    /// Class code: base class in 23:16, subclass in 15:8, interface in 7:0.
    pub class: u32,
    /// The device's own memory regions: BAR index (0, 2 or 4: each is 64 bits wide) and size, a power of two of at
    /// least 4 KiB. BAR 4 is the tree's own when there are MSI-X vectors.
    pub bars: Vec<(u8, u64)>,
    /// MSI-X vectors; the tree holds their table and pending bits, in BAR 4.
    pub msix_vectors: u16,
    /// Capabilities of its own, in 32-bit words of which the first has the ID in bits 7:0. They go into the list behind
    /// PCI Express and MSI-X, and end before 100h; the way to the next, bits 15:8 of the first word, is the tree's to fill in.
    pub capabilities: Vec<Vec<u32>>,
}

/// A device behind a PCI function. It does DMA through the [`Port`] and raises interrupts through the [`Interrupts`]
/// that it is given when it is plugged in.
pub trait DeviceModel: Send + Sync + fmt::Debug {
    /// What it is.
    fn identity(&self) -> Identity;

    /// Extended capabilities of its own, each in 32-bit words of which the first has the ID in bits 15:0 and the version in
    /// 19:16; the way to the next, bits 31:20, is the tree's to fill in. With an ATS capability (ID 000Fh) its [`Port`] keeps
    /// translations.
    fn extended_capabilities(&self) -> Vec<Vec<u32>> {
        Vec::new()
    }

    /// It has been plugged in. Called once.
    fn connect(&self, port: Port, interrupts: Arc<dyn Interrupts>);

    /// A CPU or a peer reads `width` bytes (1, 2, 4 or 8, aligned) of a memory region.
    fn mmio_read(&self, bar: u8, offset: u64, width: u8) -> u64;

    /// A CPU or a peer writes `width` bytes (1, 2, 4 or 8, aligned) of a memory region. Returns quickly: work is done on
    /// the device's own thread.
    fn mmio_write(&self, bar: u8, offset: u64, width: u8, value: u64);

    /// The machine is going away: stops the device's threads and waits for them.
    fn shutdown(&self) {}
}

/// A function's MSI-X vectors as its device sees them.
pub trait Interrupts: Send + Sync {
    /// Sends the message of vector `vector`, or remembers it as pending while the vector or the function is masked. The
    /// message goes through the function's [`Port`] like any other write.
    fn raise(&self, vector: u16);
}
