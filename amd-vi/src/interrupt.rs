//! What happens when a unit wants attention: its log is emptied, and what stopped is started again.

use iommu_core::{Fault, FaultFlags, FaultKind};
use platform::pci::PciAddress;

use crate::event::{Event, EventCode};
use crate::registers::Status;
use crate::unit::Unit;

/// What one call found and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "a unit that could not be brought back protects, but its domains cannot be used any more"]
pub struct Handled {
    /// Entries taken out of event logs.
    pub events: usize,
    /// Page requests taken out of their logs.
    pub page_requests: usize,
    /// Logs restarted after an overflow.
    pub overflows: usize,
    /// Command buffers restarted after an illegal command.
    pub resets: usize,
    /// Engines that did not start or stop in time. They are tried again at the next call.
    pub failures: usize,
}

impl Handled {
    pub(crate) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.page_requests += other.page_requests;
        self.overflows += other.overflows;
        self.resets += other.resets;
        self.failures += other.failures;
    }
}

/// How often the status is read again before the handler leaves: a unit that never stops asking is called again anyway.
pub(crate) const ROUNDS: usize = 64;

impl Unit {
    /// Empties the event log into `sink` and restarts what has stopped (Linux: `amd_iommu_int_thread`).
    ///
    /// Status bits are cleared before the log is read, and read again afterwards until they stay clear: otherwise an event
    /// between the two would be left without an interrupt (errata 787 and 1312).
    #[doc(alias = "amd_iommu_int_thread")]
    pub(crate) fn handle_interrupt(&self, sink: &mut dyn FnMut(Event)) -> Handled {
        let mut handled = Handled::default();
        let mut halted = false;
        for round in 0..ROUNDS {
            let status = self.registers().status();
            let pending = status.event_log_int() || status.com_wait_int() || status.event_overflow();
            // The first round reads the log whatever the status says: the driver may be polled.
            if !pending && round != 0 {
                break;
            }
            // The overflow bit is what keeps the log stopped, so it is cleared with the restart.
            self.registers().clear_status(
                Status::new()
                    .with_event_log_int(status.event_log_int())
                    .with_com_wait_int(status.com_wait_int()),
            );
            handled.events += self.events().drain(&mut |event| {
                halted |= event.halts_commands();
                sink(event);
            });
            if status.event_overflow() {
                match self.events().restart(self.control()) {
                    Ok(()) => handled.overflows += 1,
                    Err(_) => {
                        handled.failures += 1;
                        break;
                    }
                }
            }
        }
        if halted || !self.registers().status().cmd_buf_run() {
            match self.commands().recover(self.control()) {
                Ok(reset) => handled.resets += usize::from(reset),
                Err(_) => handled.failures += 1,
            }
        }
        handled
    }
}

/// The fault that an event reports, or `None` when it is not about a device's request.
pub fn fault(segment: u16, event: Event) -> Option<Fault> {
    let kind = match event.code() {
        EventCode::IoPageFault => FaultKind::Page,
        EventCode::IllegalDevTableEntry => FaultKind::DeviceEntry,
        EventCode::DevTabHardwareError | EventCode::PageTabHardwareError => FaultKind::Hardware,
        EventCode::InvalidDeviceRequest | EventCode::InvalidPprRequest => FaultKind::Request,
        _ => return None,
    };
    let header = event.header;
    let mut flags = FaultFlags::empty();
    flags.set(FaultFlags::WRITE, event.is_write());
    if matches!(kind, FaultKind::Page) {
        flags.set(FaultFlags::PRESENT, header.pr());
        flags.set(FaultFlags::PERMISSION, header.pe());
    }
    flags.set(FaultFlags::RESERVED, header.rz() && matches!(kind, FaultKind::Page | FaultKind::DeviceEntry));
    flags.set(FaultFlags::INTERRUPT, event.is_interrupt());
    flags.set(FaultFlags::TRANSLATION, header.tr());
    Some(Fault {
        kind,
        requester: PciAddress { segment, id: event.device()? },
        pasid: event.pasid(),
        // Hardware errors name the structure that could not be read; the request's own address is not known.
        address: event.iova().unwrap_or(platform::DmaAddr::new(event.address)),
        domain: event.domain().map_or(0, u32::from),
        flags,
    })
}
