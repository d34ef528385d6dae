//! A controller: bring-up, admin commands, shutdown.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use core::time::Duration;

use dma_api::{Device, DmaBuffer, DmaPool, FromDevice, Streaming};
use platform::Mmio;
use platform::pci::{Function, Interrupt};
use platform::sync::Mutex;
use platform::time::poll_until;

use crate::command::{Command, Completion};
use crate::identify::{self, ControllerInfo, IDENTIFY_LEN, NamespaceInfo};
use crate::prp::{LIST_BYTES, MAX_TRANSFER, PrpList};
use crate::queue::QueuePair;
use crate::registers::{CC_ENABLE, CC_ENTRY_SIZES, CC_SHUTDOWN, Capabilities, Registers};
use crate::{IoQueue, NvmeError};

const ADMIN_ENTRIES: u32 = 32;
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
const NAMESPACE: u32 = 1;

/// An NVMe controller with its first namespace, enabled. Dropping it shuts the controller down.
#[derive(Debug)]
pub struct Controller {
    // Before the device: its memory goes back first.
    admin: Mutex<Admin>,
    lists: DmaPool,
    device: Arc<Device>,
    function: Arc<dyn Function>,
    registers: Arc<dyn Mmio>,
    capabilities: Capabilities,
    info: ControllerInfo,
    namespace: NamespaceInfo,
    queues: u16,
    taken: Mutex<BTreeSet<u16>>,
}

/// The number of an I/O queue, taken as long as this lives: two queues of one number would share an interrupt.
#[derive(Debug)]
pub(crate) struct QueueNumber<'c> {
    pub(crate) id: u16,
    taken: &'c Mutex<BTreeSet<u16>>,
}

impl Drop for QueueNumber<'_> {
    fn drop(&mut self) {
        self.taken.lock().remove(&self.id);
    }
}

#[derive(Debug)]
struct Admin {
    pair: QueuePair,
    interrupt: Box<dyn Interrupt>,
    next_identifier: u16,
    list: PrpList,
}

impl Controller {
    /// Brings the controller behind `function` up and asks for `queues` I/O queues (at least 1; it may get fewer).
    ///
    /// # Errors
    /// [`NvmeError`] with the reason; the controller is then disabled.
    pub fn new(function: Arc<dyn Function>, device: Arc<Device>, queues: u16) -> Result<Self, NvmeError> {
        let registers = function.bar(0)?;
        let capabilities = Registers(&*registers).capabilities();
        if !capabilities.pages_of_4k {
            return Err(NvmeError::Unsupported("no pages of 4 KiB"));
        }
        device.set_mask(u64::MAX)?;
        set_enabled(&device, &*registers, capabilities, false)?;
        let admin_entries = ADMIN_ENTRIES.min(capabilities.max_queue_entries);
        let pair =
            QueuePair::new(&device, Arc::clone(&registers), capabilities.doorbell_stride, 0, admin_entries)?;
        let interrupt = function.interrupt(0)?;
        let view = Registers(&*registers);
        view.set_admin_queues(pair.submission_address(), pair.completion_address(), admin_entries);
        function.set_bus_master(true);
        let lists = DmaPool::new(&device, "nvme prp list", LIST_BYTES, LIST_BYTES, 0)?;
        let mut admin = Admin { pair, interrupt, next_identifier: 0, list: PrpList::default() };
        match bring_up(&device, &registers, capabilities, &mut admin, &lists, queues) {
            Ok((info, namespace, granted)) => Ok(Self {
                admin: Mutex::new(admin),
                lists,
                // One vector is the admin queue's.
                queues: granted.min(function.interrupt_count().saturating_sub(1)),
                device,
                function,
                registers,
                capabilities,
                info,
                namespace,
                taken: Mutex::default(),
            }),
            Err(error) => {
                // Before its queues are freed. What it says now does not matter: the first error does.
                let _ = set_enabled(&device, &*registers, capabilities, false);
                function.set_bus_master(false);
                Err(error)
            }
        }
    }

    /// What the controller says of itself.
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// The disk.
    pub fn namespace(&self) -> NamespaceInfo {
        self.namespace
    }

    /// How many I/O queues there can be, numbered from 1.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// The longest transfer of one command, in bytes: the least of what controller, driver and DMA allow.
    pub fn max_transfer(&self) -> usize {
        // A command counts its blocks in 16 bits.
        let by_count = 65_536 * self.namespace.block_size;
        let by_dma = self.device.max_mapping_size();
        MAX_TRANSFER.min(self.info.max_transfer.unwrap_or(usize::MAX)).min(by_count).min(by_dma)
    }

    /// The controller as a DMA device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Makes I/O queue `id` (1 to [`Controller::queues`], each once at a time) for `depth` outstanding commands; it may
    /// get fewer. Its completions interrupt by the vector of the same number.
    ///
    /// # Errors
    /// [`NvmeError::QueueTaken`] while there is one of this number, else [`NvmeError`] with the reason; nothing stays behind.
    pub fn io_queue(&self, id: u16, depth: u32) -> Result<IoQueue<'_>, NvmeError> {
        if id == 0 || id > self.queues {
            return Err(NvmeError::Unsupported("no I/O queue of this number"));
        }
        if !self.taken.lock().insert(id) {
            return Err(NvmeError::QueueTaken(id));
        }
        let number = QueueNumber { id, taken: &self.taken };
        let entries = depth.saturating_add(1).clamp(2, self.capabilities.max_queue_entries);
        let stride = self.capabilities.doorbell_stride;
        let pair = QueuePair::new(&self.device, Arc::clone(&self.registers), stride, id, entries)?;
        let interrupt = self.function.interrupt(id)?;
        self.admin(Command::create_completion_queue(id, entries, pair.completion_address(), id))?;
        let created = self.admin(Command::create_submission_queue(id, entries, pair.submission_address()));
        if let Err(error) = created {
            self.admin(Command::delete_completion_queue(id))?;
            return Err(error);
        }
        Ok(IoQueue::new(self, number, pair, interrupt))
    }

    /// Deletes an I/O queue; the controller has given up its commands when this returns.
    pub(crate) fn delete_io_queue(&self, id: u16) -> Result<(), NvmeError> {
        self.admin(Command::delete_submission_queue(id))?;
        self.admin(Command::delete_completion_queue(id))?;
        Ok(())
    }

    pub(crate) fn lists(&self) -> &DmaPool {
        &self.lists
    }

    /// Whether the controller still works.
    pub(crate) fn check(&self) -> Result<(), NvmeError> {
        if Registers(&*self.registers).status().fatal { Err(NvmeError::Fatal) } else { Ok(()) }
    }

    fn admin(&self, command: Command) -> Result<Completion, NvmeError> {
        self.admin.lock().execute(&self.device, &*self.registers, command)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let registers = Registers(&*self.registers);
        registers.configure(registers.configuration() | CC_SHUTDOWN);
        let clock = &**self.device.platform();
        // A controller that does not answer is reset and cut off below all the same.
        let _ = poll_until(clock, ADMIN_TIMEOUT, || {
            let status = registers.status();
            status.shutdown_complete || status.fatal
        });
        let _ = set_enabled(&self.device, &*self.registers, self.capabilities, false);
        self.function.set_bus_master(false);
    }
}

impl Admin {
    fn execute(
        &mut self,
        device: &Device,
        registers: &dyn Mmio,
        command: Command,
    ) -> Result<Completion, NvmeError> {
        let identifier = self.next_identifier;
        self.next_identifier = self.next_identifier.wrapping_add(1);
        self.pair.push(command, identifier);
        self.pair.ring();
        let deadline = device.platform().now() + ADMIN_TIMEOUT;
        loop {
            if let Some(completion) = self.pair.pop() {
                self.pair.release_completions();
                // The end of a command that was given up earlier.
                if completion.identifier != identifier {
                    continue;
                }
                return if completion.status.is_success() {
                    Ok(completion)
                } else {
                    Err(NvmeError::Command(completion.status))
                };
            }
            if Registers(registers).status().fatal {
                return Err(NvmeError::Fatal);
            }
            if self.interrupt.wait(deadline).is_err() {
                return Err(NvmeError::TimedOut("complete an admin command"));
            }
        }
    }

    fn identify(
        &mut self,
        device: &Device,
        registers: &dyn Mmio,
        lists: &DmaPool,
        namespace: u32,
        what: u32,
    ) -> Result<DmaBuffer<u8>, NvmeError> {
        let buffer = DmaBuffer::<u8>::zeroed(device, IDENTIFY_LEN)?;
        let mapped = Streaming::<_, FromDevice>::map(device, buffer).map_err(|failed| failed.error)?;
        let prp = self.list.describe(lists, mapped.dma_address().get(), IDENTIFY_LEN)?;
        self.execute(device, registers, Command::identify(namespace, what, prp))?;
        Ok(mapped.unmap()?)
    }
}

fn bring_up(
    device: &Device,
    registers: &Arc<dyn Mmio>,
    capabilities: Capabilities,
    admin: &mut Admin,
    lists: &DmaPool,
    queues: u16,
) -> Result<(ControllerInfo, NamespaceInfo, u16), NvmeError> {
    const CONTROLLER: u32 = 1;
    const ONE_NAMESPACE: u32 = 0;
    set_enabled(device, &**registers, capabilities, true)?;
    let version = Registers(&**registers).version();
    let data = admin.identify(device, &**registers, lists, 0, CONTROLLER)?;
    let info = identify::controller(&data, version);
    let data = admin.identify(device, &**registers, lists, NAMESPACE, ONE_NAMESPACE)?;
    let namespace = identify::namespace(&data, NAMESPACE)
        .ok_or(NvmeError::Unsupported("namespace 1 is not there or has an unknown format"))?;
    let queues = queues.clamp(1, u16::MAX - 1);
    let granted = admin.execute(device, &**registers, Command::set_queue_count(queues))?.result;
    // Both counts are from 0; the controller may grant more than was asked for.
    let granted = (granted as u16).min((granted >> 16) as u16).saturating_add(1).min(queues);
    Ok((info, namespace, granted))
}

/// Enables or disables the controller and waits until it says so.
fn set_enabled(
    device: &Device,
    registers: &dyn Mmio,
    capabilities: Capabilities,
    enabled: bool,
) -> Result<(), NvmeError> {
    let registers = Registers(registers);
    registers.configure(if enabled { CC_ENTRY_SIZES | CC_ENABLE } else { CC_ENTRY_SIZES });
    let clock = &**device.platform();
    let timeout = Duration::from_millis(capabilities.timeout_ms.max(500));
    let mut fatal = false;
    poll_until(clock, timeout, || {
        let status = registers.status();
        fatal = enabled && status.fatal;
        fatal || status.ready == enabled
    })
    .map_err(|_| NvmeError::TimedOut(if enabled { "become ready" } else { "stop" }))?;
    if fatal { Err(NvmeError::Fatal) } else { Ok(()) }
}
