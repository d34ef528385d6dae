//! Peripheral page requests: the entries of their log, decoded, and what becomes of them (specification, "PPR log").

use core::fmt;

use bitfield_struct::bitfield;
use iommu_core::{Iommu, PageRequest, PageResponse, ResponseCode};
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use platform::{DmaAddr, Prot};

use crate::attach::{Attachment, DeviceState};
use crate::command::Command;
use crate::driver::Shared;
use crate::interrupt::{Handled, ROUNDS};
use crate::pci_capability::extended_capability;
use crate::registers::Status;
use crate::unit::Unit;

/// The first word of an entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PprHeader {
    /// DeviceID: who asks.
    pub device: u16,
    /// PASID 15:0.
    pub pasid_low: u16,
    /// The device's number for requests that are answered together.
    #[bits(9)]
    pub group: u16,
    /// It is the last of its group.
    pub last: bool,
    /// PASID 19:16.
    #[bits(4)]
    pub pasid_high: u8,
    #[bits(3)]
    __: u8,
    /// NX: to execute.
    pub execute: bool,
    /// To read.
    pub read: bool,
    #[bits(2)]
    __: u8,
    /// To write.
    pub write: bool,
    /// US: without privilege.
    pub user: bool,
    /// A reserved bit was set in the request.
    pub reserved: bool,
    /// GN: it names a PASID.
    pub gn: bool,
    #[bits(3)]
    __: u8,
    /// The entry's code: 1, or 0 for one that is not written yet.
    #[bits(4)]
    pub code: u8,
}

/// A page request as the unit logs it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PprEntry {
    /// The first word as it was logged.
    pub header: PprHeader,
    /// The second word as it was logged: bits 63:12 of the address.
    pub address: u64,
}

impl PprEntry {
    /// The code of a page request (Linux: `PPR_REQ_FAULT`).
    #[doc(alias = "PPR_REQ_FAULT")]
    pub const PAGE_REQUEST: u8 = 1;

    /// From the two words of an entry.
    pub const fn from_words(q0: u64, q1: u64) -> Self {
        Self { header: PprHeader::from_bits(q0), address: q1 }
    }

    /// Who asks.
    pub const fn device(self) -> RequesterId {
        RequesterId::new(self.header.device())
    }

    /// The PASID, when it names one.
    pub const fn pasid(self) -> Option<u32> {
        let pasid = (self.header.pasid_high() as u32) << 16 | self.header.pasid_low() as u32;
        if self.header.gn() { Some(pasid) } else { None }
    }

    /// The request, or `None` when it is none that can be answered with a page: it names no PASID, or 0, which stands for
    /// requests without; or a reserved bit was set (Linux: `ppr_is_valid`).
    #[doc(alias = "ppr_is_valid")]
    pub fn request(self, segment: u16) -> Option<PageRequest> {
        let pasid = self.pasid().filter(|pasid| *pasid != 0)?;
        if self.header.code() != Self::PAGE_REQUEST || self.header.reserved() {
            return None;
        }
        let mut access = Prot::empty();
        access.set(Prot::READ, self.header.read());
        access.set(Prot::WRITE, self.header.write());
        Some(PageRequest {
            device: PciAddress { segment, id: self.device() },
            pasid: Some(pasid),
            group: self.header.group(),
            address: DmaAddr::new(self.address & !0xfff),
            access,
            last: self.header.last(),
        })
    }
}

impl fmt::Display for PprEntry {
    /// As Linux prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, header) = (self.device(), self.header);
        write!(f, "PPR logged [device={device} pasid={:#07x}", self.pasid().unwrap_or(0))?;
        let flags = header.into_bits() >> 48 & 0xfff;
        write!(f, " address={:#x} flags={flags:#06x} tag={:#05x}", self.address & !0xfff, header.group())?;
        f.write_str(if header.last() { " last]" } else { "]" })
    }
}

impl fmt::Debug for PprEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A function's Page Request Interface (PCI Express, "Page Request Extended Capability").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pri {
    /// Where its control and status registers are, in one word.
    registers: u16,
}

impl Pri {
    const ID: u16 = 0x13;
    const ENABLE: u32 = 1 << 0;
    const RESET: u32 = 1 << 1;
    /// Answers carry the PASID.
    const NEEDS_PASID: u32 = 1 << 31;
    /// Requests that may be under way (Linux: 32).
    const OUTSTANDING: u32 = 32;

    fn find(config: &dyn ConfigSpace, dev: PciAddress) -> Option<Self> {
        Some(Self { registers: extended_capability(config, dev, Self::ID)? + 4 })
    }

    fn needs_pasid(self, config: &dyn ConfigSpace, dev: PciAddress) -> bool {
        config.read32(dev, self.registers) & Self::NEEDS_PASID != 0
    }

    /// Lets the function ask for pages, with nothing left of what it asked before (Linux: `pci_reset_pri`, `pci_enable_pri`).
    #[doc(alias = "pci_reset_pri")]
    #[doc(alias = "pci_enable_pri")]
    fn enable(self, config: &dyn ConfigSpace, dev: PciAddress) {
        let most = config.read32(dev, self.registers + 4);
        // The upper half is the status, whose bits are cleared by writing ones.
        config.write32(dev, self.registers, Self::RESET);
        config.write32(dev, self.registers + 8, most.min(Self::OUTSTANDING));
        config.write32(dev, self.registers, Self::ENABLE);
    }

    fn disable(self, config: &dyn ConfigSpace, dev: PciAddress) {
        config.write32(dev, self.registers, 0);
    }
}

impl DeviceState {
    /// Whether the device may ask for pages under this attachment: only while it keeps translations itself, and for PASIDs
    /// (Linux: `pdev_enable_cap_pri`).
    pub(crate) fn asks_for_pages(&self, attachment: &Attachment) -> bool {
        let guest = matches!(attachment, Attachment::Guest(_) | Attachment::Identity);
        self.pri.is_some() && self.ats.is_some() && self.max_pasids != 0 && guest
    }
}

impl Shared {
    /// The page requests of a device, if its unit takes them.
    pub(crate) fn find_pri(&self, dev: PciAddress, ids: &[(u16, usize)]) -> Option<Pri> {
        let unit = ids.first().and_then(|(_, unit)| self.units().get(*unit))?;
        unit.page_requests()?;
        Pri::find(self.device_config()?, dev)
    }

    /// Lets a device ask for pages, or not (Linux: `pdev_enable_cap_pri`, `pdev_disable_cap_pri`). Its ATS is on.
    #[doc(alias = "pdev_enable_cap_pri")]
    #[doc(alias = "pdev_disable_cap_pri")]
    pub(crate) fn switch_page_requests(&self, dev: PciAddress, state: &DeviceState, on: bool) {
        let (Some(pri), Some(config)) = (state.pri, self.device_config()) else { return };
        if on && state.asks_for_pages(&state.attached) {
            pri.enable(config, dev);
        } else {
            pri.disable(config, dev);
        }
    }

    /// Answers a device (Linux: `amd_iommu_complete_ppr`). When the unit does not take the answer, the device waits on: as
    /// long as its unit is dead nothing of it goes on.
    #[doc(alias = "amd_iommu_complete_ppr")]
    pub(crate) fn respond(&self, dev: PciAddress, response: PageResponse) {
        let answer = {
            let devices = self.devices().lock();
            devices.get(&dev).and_then(|state| {
                let with_pasid = state.pri?.needs_pasid(self.device_config()?, dev);
                let pasid = response.pasid.filter(|_| with_pasid);
                Some((state.ids.first()?.1, pasid))
            })
        };
        if let Some((unit, pasid)) = answer
            && let Some(unit) = self.units().get(unit)
        {
            let command =
                Command::complete_ppr_request(dev.id.get(), pasid, response.group, code(response.code));
            // Nobody needs to know when it has arrived.
            let _ = unit.submit(&[command]);
        }
    }
}

/// The code of an answer (Linux: `PPR_SUCCESS`, `PPR_INVALID`, `PPR_FAILURE`).
const fn code(code: ResponseCode) -> u8 {
    match code {
        ResponseCode::Success => 0,
        ResponseCode::Invalid => 1,
        ResponseCode::Failure => 0xf,
    }
}

impl Unit {
    /// Empties the log of page requests into the core, and restarts it after an overflow (Linux: `amd_iommu_int_thread_pprlog`,
    /// `amd_iommu_poll_ppr_log`). One call takes no more than the log holds in each round, so devices that ask without end do not
    /// keep it.
    #[doc(alias = "amd_iommu_poll_ppr_log")]
    pub(crate) fn handle_page_requests(&self, core: &Iommu) -> Handled {
        let mut handled = Handled::default();
        let Some(log) = self.page_requests() else { return handled };
        for round in 0..ROUNDS {
            let status = self.registers().status();
            if !(status.ppr_int() || status.ppr_overflow()) && round != 0 {
                break;
            }
            self.registers().clear_status(Status::new().with_ppr_int(status.ppr_int()));
            handled.page_requests += log.drain(&mut |entry| self.take_page_request(core, entry));
            if status.ppr_overflow() {
                match log.restart(self.control()) {
                    // The last one of a group may be among what was lost: the device asks again.
                    Ok(()) => {
                        handled.overflows += 1;
                        core.discard_partial_page_requests();
                    }
                    Err(_) => {
                        handled.failures += 1;
                        break;
                    }
                }
            }
        }
        handled
    }

    fn take_page_request(&self, core: &Iommu, entry: PprEntry) {
        let refused = match entry.request(self.address().segment) {
            // Its group is answered by the core.
            Some(request) if core.report_page_request(request).is_ok() => return,
            // Nobody has the device: it need not ask again.
            Some(_) => ResponseCode::Failure,
            None => ResponseCode::Invalid,
        };
        // There is one answer to a group: to its last request.
        if entry.header.last() && entry.header.code() == PprEntry::PAGE_REQUEST {
            let (device, group) = (entry.header.device(), entry.header.group());
            let _ =
                self.submit(&[Command::complete_ppr_request(device, entry.pasid(), group, code(refused))]);
        }
    }
}
