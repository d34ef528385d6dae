//! The unit's registers: what is kept, what may be written when, and what follows from what.

use std::time::Duration;

/// Offsets in the MMIO region.
pub(super) mod offset {
    pub(crate) const DEVICE_TABLE: usize = 0x0000;
    pub(crate) const COMMAND_BASE: usize = 0x0008;
    pub(crate) const EVENT_BASE: usize = 0x0010;
    pub(crate) const CONTROL: usize = 0x0018;
    pub(crate) const EXCLUSION_BASE: usize = 0x0020;
    pub(crate) const EXCLUSION_LIMIT: usize = 0x0028;
    pub(crate) const EFR: usize = 0x0030;
    pub(crate) const PPR_BASE: usize = 0x0038;
    pub(crate) const XT_GENERAL_INTERRUPT: usize = 0x0170;
    pub(crate) const XT_PPR_INTERRUPT: usize = 0x0178;
    pub(crate) const XT_GA_INTERRUPT: usize = 0x0180;
    pub(crate) const EFR2: usize = 0x01a0;
    pub(crate) const COMMAND_HEAD: usize = 0x2000;
    pub(crate) const COMMAND_TAIL: usize = 0x2008;
    pub(crate) const EVENT_HEAD: usize = 0x2010;
    pub(crate) const EVENT_TAIL: usize = 0x2018;
    pub(crate) const STATUS: usize = 0x2020;
    pub(crate) const PPR_HEAD: usize = 0x2030;
    pub(crate) const PPR_TAIL: usize = 0x2038;
    pub(crate) const PPR_AUTO_RESPONSE: usize = 0x2080;
}

/// Bytes of the region.
pub(super) const REGION: usize = 0x4000;

const IOMMU_EN: u64 = 1 << 0;
const EVENT_LOG_EN: u64 = 1 << 2;
const EVENT_INT_EN: u64 = 1 << 3;
const COM_WAIT_INT_EN: u64 = 1 << 4;
const CMD_BUF_EN: u64 = 1 << 12;
const PPR_LOG_EN: u64 = 1 << 13;
const PPR_INT_EN: u64 = 1 << 14;
const PPR_EN: u64 = 1 << 15;
const GT_EN: u64 = 1 << 16;
const PPR_AUTO_RSP_EN: u64 = 1 << 39;
const GA_EN: u64 = 1 << 17;
const NUM_INT_REMAP_MODE: u64 = 3 << 43;
const NUM_INT_REMAP_2K: u64 = 1 << 43;
const XT_EN: u64 = 1 << 50;
const INT_CAP_XT_EN: u64 = 1 << 51;

const EFR_XT_SUP: u64 = 1 << 2;
const EFR_GA_SUP: u64 = 1 << 7;
const EFR2_NUM_INT_REMAP: u64 = 3 << 8;
const EFR2_NUM_INT_REMAP_2K: u64 = 1 << 8;
/// Destination mode, destination, vector, delivery mode, destination.
const XT_INTERRUPT: u64 = 0xff00_01ff_ffff_ff04;

pub(super) const STATUS_EVENT_OVERFLOW: u64 = 1 << 0;
pub(super) const STATUS_EVENT_INT: u64 = 1 << 1;
pub(super) const STATUS_COM_WAIT_INT: u64 = 1 << 2;
const STATUS_EVENT_RUN: u64 = 1 << 3;
const STATUS_CMD_RUN: u64 = 1 << 4;
const STATUS_PPR_OVERFLOW: u64 = 1 << 5;
const STATUS_PPR_INT: u64 = 1 << 6;
const STATUS_PPR_RUN: u64 = 1 << 7;
/// Bits that a write of ones clears.
const STATUS_W1C: u64 = 0x6_8e67;

const BASE: u64 = 0x000f_ffff_ffff_f000;
const POINTER: u64 = 0x7_fff0;

/// The registers' contents.
#[derive(Debug, Default)]
pub(super) struct Registers {
    efr: u64,
    efr2: u64,
    device_table: u64,
    command_base: u64,
    event_base: u64,
    control: u64,
    exclusion: [u64; 2],
    /// The XT interrupt control registers: events and completion waits, PPR, GA.
    xt_interrupts: [u64; 3],
    command_head: u64,
    command_tail: u64,
    event_head: u64,
    event_tail: u64,
    ppr_base: u64,
    ppr_head: u64,
    ppr_tail: u64,
    ppr_auto_response: u64,
    /// The bits of the status register that are kept; the run bits follow from others.
    status: u64,
    /// A command error has stopped the command buffer.
    halted: bool,
    /// A command is being executed: the command buffer runs until it has ended, whatever is switched off meanwhile.
    busy: bool,
}

/// Why the unit interrupts, by the XT register that says where to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// Events and completion waits.
    General,
    /// Page requests.
    PageRequests,
}

/// How interrupts are remapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InterruptMode {
    /// Entries have 128 bits.
    pub(super) wide: bool,
    /// Destinations have 32 bits.
    pub(super) x2apic: bool,
    /// An index has 11 bits whatever delivery mode they look like.
    pub(super) many: bool,
}

/// Where an event goes.
pub(super) enum LogPlace {
    /// To this address.
    At(u64),
    /// Nowhere, and it is the first that does not: the log has just stopped.
    Full,
    /// Nowhere: the log does not run.
    Off,
}

/// A ring of 16-byte entries: base and size in bytes. `None` for a size code that is reserved.
fn ring(register: u64) -> Option<(u64, u64)> {
    let code = register >> 56 & 0xf;
    (code >= 8).then(|| (register & BASE, 16 << code))
}

impl Registers {
    /// Registers after reset.
    pub(super) fn new(efr: u64, efr2: u64) -> Self {
        Self { efr, efr2, ..Self::default() }
    }

    pub(super) fn read(&self, at: usize) -> u64 {
        match at {
            offset::DEVICE_TABLE => self.device_table,
            offset::COMMAND_BASE => self.command_base,
            offset::EVENT_BASE => self.event_base,
            offset::CONTROL => self.control,
            offset::EXCLUSION_BASE => self.exclusion[0],
            offset::EXCLUSION_LIMIT => self.exclusion[1] | 0xfff,
            offset::EFR => self.efr,
            offset::XT_GENERAL_INTERRUPT | offset::XT_PPR_INTERRUPT | offset::XT_GA_INTERRUPT => {
                self.xt_interrupts[(at - offset::XT_GENERAL_INTERRUPT) / 8]
            }
            offset::EFR2 => self.efr2,
            offset::COMMAND_HEAD => self.command_head,
            offset::COMMAND_TAIL => self.command_tail,
            offset::EVENT_HEAD => self.event_head,
            offset::EVENT_TAIL => self.event_tail,
            offset::STATUS => self.status(),
            offset::PPR_BASE => self.ppr_base,
            offset::PPR_HEAD => self.ppr_head,
            offset::PPR_TAIL => self.ppr_tail,
            offset::PPR_AUTO_RESPONSE => self.ppr_auto_response,
            _ => 0,
        }
    }

    /// Writes the bits of `mask`.
    pub(super) fn write(&mut self, at: usize, value: u64, mask: u64) {
        let merged = self.read(at) & !mask | value & mask;
        match at {
            offset::DEVICE_TABLE => self.device_table = merged & (BASE | 0x1ff),
            offset::COMMAND_BASE if !self.commands_run() => {
                self.command_base = merged & (BASE | 0xf << 56);
                (self.command_head, self.command_tail) = (0, 0);
            }
            offset::EVENT_BASE if !self.events_run() => {
                self.event_base = merged & (BASE | 0xf << 56);
                (self.event_head, self.event_tail) = (0, 0);
            }
            offset::CONTROL => {
                // Switching the command buffer off and on again ends a halt.
                if merged & CMD_BUF_EN == 0 {
                    self.halted = false;
                }
                // Entries of interrupt tables do not change their width under a unit that runs.
                let fixed = if self.control & merged & IOMMU_EN != 0 { GA_EN } else { 0 };
                self.control = merged & !fixed | self.control & fixed;
            }
            offset::EXCLUSION_BASE => self.exclusion[0] = merged & (BASE | 3),
            offset::EXCLUSION_LIMIT => self.exclusion[1] = merged & BASE,
            offset::XT_GENERAL_INTERRUPT | offset::XT_PPR_INTERRUPT | offset::XT_GA_INTERRUPT
                if self.efr & EFR_XT_SUP != 0 =>
            {
                self.xt_interrupts[(at - offset::XT_GENERAL_INTERRUPT) / 8] = merged & XT_INTERRUPT;
            }
            offset::COMMAND_HEAD if !self.commands_run() => {
                self.command_head = self.in_ring(self.command_base, merged)
            }
            offset::COMMAND_TAIL => self.command_tail = self.in_ring(self.command_base, merged),
            offset::EVENT_HEAD => self.event_head = self.in_ring(self.event_base, merged),
            offset::EVENT_TAIL if !self.events_run() => {
                self.event_tail = self.in_ring(self.event_base, merged)
            }
            offset::PPR_BASE if !self.page_requests_run() => {
                self.ppr_base = merged & (BASE | 0xf << 56);
                (self.ppr_head, self.ppr_tail) = (0, 0);
            }
            offset::PPR_HEAD => self.ppr_head = self.in_ring(self.ppr_base, merged),
            offset::PPR_TAIL if !self.page_requests_run() => {
                self.ppr_tail = self.in_ring(self.ppr_base, merged)
            }
            offset::PPR_AUTO_RESPONSE => self.ppr_auto_response = merged & 0x1f,
            // A write of ones clears; the run bits are read-only.
            offset::STATUS => self.status &= !(value & mask & STATUS_W1C),
            _ => {}
        }
    }

    fn in_ring(&self, base: u64, pointer: u64) -> u64 {
        pointer & POINTER & ring(base).map_or(POINTER, |(_, size)| size - 1)
    }

    fn status(&self) -> u64 {
        let mut status = self.status;
        if self.events_run() {
            status |= STATUS_EVENT_RUN;
        }
        if self.commands_run() {
            status |= STATUS_CMD_RUN;
        }
        if self.page_requests_run() {
            status |= STATUS_PPR_RUN;
        }
        status
    }

    pub(super) fn enabled(&self) -> bool {
        self.control & IOMMU_EN != 0
    }

    /// GTEn: guest translation is on.
    pub(super) fn guest_enabled(&self) -> bool {
        self.control & GT_EN != 0
    }

    fn commands_run(&self) -> bool {
        self.busy || self.commands_enabled()
    }

    fn commands_enabled(&self) -> bool {
        let on = IOMMU_EN | CMD_BUF_EN;
        self.control & on == on && !self.halted && ring(self.command_base).is_some()
    }

    fn events_run(&self) -> bool {
        let on = IOMMU_EN | EVENT_LOG_EN;
        self.control & on == on && self.status & STATUS_EVENT_OVERFLOW == 0 && ring(self.event_base).is_some()
    }

    pub(super) fn event_interrupt_enabled(&self) -> bool {
        self.control & EVENT_INT_EN != 0
    }

    pub(super) fn completion_interrupt_enabled(&self) -> bool {
        self.control & COM_WAIT_INT_EN != 0
    }

    /// How interrupts are remapped.
    pub(super) fn interrupt_mode(&self) -> InterruptMode {
        let wide = self.control & GA_EN != 0 && self.efr & EFR_GA_SUP != 0;
        InterruptMode {
            wide,
            x2apic: wide && self.control & XT_EN != 0 && self.efr & EFR_XT_SUP != 0,
            many: self.control & NUM_INT_REMAP_MODE == NUM_INT_REMAP_2K
                && self.efr2 & EFR2_NUM_INT_REMAP == EFR2_NUM_INT_REMAP_2K,
        }
    }

    /// Where the unit's interrupts go when they are no MSI: what its register says.
    pub(super) fn xt_interrupt(&self, cause: Cause) -> Option<u64> {
        let on = self.efr & EFR_XT_SUP != 0 && self.control & INT_CAP_XT_EN != 0;
        on.then_some(self.xt_interrupts[cause as usize])
    }

    /// How long a device may take to answer an invalidation; `None` for ever. The reserved code stands for the longest.
    pub(super) fn invalidation_timeout(&self) -> Option<Duration> {
        match self.control >> 5 & 7 {
            0 => None,
            code => Some(Duration::from_millis(10_u64.pow(code.min(6) as u32 - 1))),
        }
    }

    /// Sets bits of the status register.
    pub(super) fn raise(&mut self, bits: u64) {
        self.status |= bits;
    }

    /// Where the next command is, if there is one to execute; the buffer then runs until [`Self::command_ended`].
    pub(super) fn next_command(&mut self) -> Option<u64> {
        let (base, _) = ring(self.command_base)?;
        self.busy = self.commands_enabled() && self.command_head != self.command_tail;
        self.busy.then_some(base + self.command_head)
    }

    /// The command has been executed, or has stopped the buffer.
    pub(super) fn command_ended(&mut self, halt: bool) {
        self.busy = false;
        // Switched off meanwhile, it has nothing to halt.
        self.halted = halt && self.control & CMD_BUF_EN != 0;
    }

    /// The command at the head has been taken.
    pub(super) fn command_taken(&mut self) {
        if let Some((_, size)) = ring(self.command_base) {
            self.command_head = (self.command_head + 16) & (size - 1);
        }
    }

    /// Where the next event goes. A full log stops.
    pub(super) fn next_event(&mut self) -> LogPlace {
        let Some((base, size)) = ring(self.event_base).filter(|_| self.events_run()) else {
            return LogPlace::Off;
        };
        if (self.event_tail + 16) & (size - 1) == self.event_head {
            self.status |= STATUS_EVENT_OVERFLOW;
            return LogPlace::Full;
        }
        LogPlace::At(base + self.event_tail)
    }

    /// The event at the tail has been written.
    pub(super) fn event_written(&mut self) {
        if let Some((_, size)) = ring(self.event_base) {
            self.event_tail = (self.event_tail + 16) & (size - 1);
        }
        self.status |= STATUS_EVENT_INT;
    }

    /// PPREn: page requests are taken at all.
    pub(super) fn page_requests_enabled(&self) -> bool {
        self.control & PPR_EN != 0
    }

    fn page_requests_run(&self) -> bool {
        let on = IOMMU_EN | PPR_LOG_EN;
        self.control & on == on && self.status & STATUS_PPR_OVERFLOW == 0 && ring(self.ppr_base).is_some()
    }

    pub(super) fn page_request_interrupt_enabled(&self) -> bool {
        self.control & PPR_INT_EN != 0
    }

    /// The code with which the unit answers by itself what it cannot log, if it does.
    pub(super) fn page_request_auto_response(&self) -> Option<u8> {
        (self.control & PPR_AUTO_RSP_EN != 0).then_some(self.ppr_auto_response as u8 & 0xf)
    }

    /// Where the next page request goes. A full log stops.
    pub(super) fn next_page_request(&mut self) -> LogPlace {
        let Some((base, size)) = ring(self.ppr_base).filter(|_| self.page_requests_run()) else {
            return LogPlace::Off;
        };
        if (self.ppr_tail + 16) & (size - 1) == self.ppr_head {
            self.status |= STATUS_PPR_OVERFLOW;
            return LogPlace::Full;
        }
        LogPlace::At(base + self.ppr_tail)
    }

    /// The log of page requests stops as if it were full.
    pub(super) fn overflow_page_requests(&mut self) {
        self.status |= STATUS_PPR_OVERFLOW;
    }

    /// The page request at the tail has been written.
    pub(super) fn page_request_written(&mut self) {
        if let Some((_, size)) = ring(self.ppr_base) {
            self.ppr_tail = (self.ppr_tail + 16) & (size - 1);
        }
        self.status |= STATUS_PPR_INT;
    }

    /// Where a device's entry is; `None` beyond the table.
    pub(super) fn dte_address(&self, device: u16) -> Option<u64> {
        let entries = ((self.device_table & 0x1ff) + 1) * 128;
        (u64::from(device) < entries).then(|| (self.device_table & BASE) + 32 * u64::from(device))
    }
}
