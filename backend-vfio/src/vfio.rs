//! Devices through VFIO, with the stack over them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma_api::{Device, DmaError, DmaMapOps, Gated};
use iommu_core::pci::{Node, Topology};
use iommu_core::{Group, Iommu, Settings};
use platform::pci::{Function, PciAddress};
use platform::{PhysAddr, Platform};
use swiotlb::Swiotlb;

use crate::driver::Type1;
use crate::error::VfioError;
use crate::function::VfioFunction;
use crate::host::Host;
use crate::interrupt::Vector;
use crate::memory::ProcessPlatform;
use crate::registered::Registered;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Config {
    /// The devices to take, each bound to vfio-pci.
    pub devices: Vec<PciAddress>,
    /// Bytes of the bounce pool: parts of pages that a device would share with something else are copied through it.
    pub bounce_pool: usize,
    /// Bytes of the arena that a device can have registered ([`Vfio::trust_registered`]), the bounce pool among them; 0 for none.
    pub arena: usize,
    /// The system.
    pub host: Host,
}

impl Config {
    /// These devices of the system that this process runs on, and a bounce pool of 8 MiB.
    pub fn new(devices: impl Into<Vec<PciAddress>>) -> Self {
        Self { devices: devices.into(), bounce_pool: 8 << 20, arena: 0, host: Host::default() }
    }
}

/// Devices taken through VFIO. Each group has a domain of its own: strict, since an unmap of VFIO is over when it returns.
///
/// Dropping it, and the devices and functions that it has given out, gives everything back to the kernel, in whatever order.
#[derive(Debug)]
pub struct Vfio {
    iommu: Arc<Iommu>,
    driver: Arc<Type1>,
    topology: Topology,
    platform: Arc<ProcessPlatform>,
    bounce: Arc<Swiotlb>,
}

impl Vfio {
    /// Takes devices: opens their groups, and gives each group a container.
    ///
    /// # Errors
    /// [`VfioError`] of the first device that cannot be had, with the reason.
    pub fn open(config: Config) -> Result<Self, VfioError> {
        let host = config.host.clone();
        let driver = Arc::new(Type1::new(config.host));
        let mut topology = Topology::new();
        for &address in &config.devices {
            driver.claim(address)?;
            // Which devices belong together the kernel says, so what stands above them is of no interest.
            let class = host.number(address, "class").unwrap_or(0);
            topology.insert(Node { class, ..Node::new(address) });
        }
        let platform = match config.arena {
            0 => ProcessPlatform::new(),
            len => ProcessPlatform::with_arena(len)?,
        };
        let platform = Arc::new(platform);
        let dyn_platform: Arc<dyn Platform> = platform.clone();
        let anywhere = PhysAddr::new(u64::MAX);
        let pool =
            swiotlb::Config { size: config.bounce_pool, areas: 4, limit: anywhere, ..Default::default() };
        let bounce = Arc::new(Swiotlb::new(&dyn_platform, &pool)?);
        let iommu = Arc::new(Iommu::new(dyn_platform, Settings::default(), Some(Arc::clone(&bounce))));
        iommu.register(driver.clone());
        iommu.probe(&topology, |_| false)?;
        Ok(Self { iommu, driver, topology, platform, bounce })
    }

    /// The core: groups, their domains, statistics.
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// The devices that were taken.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Memory and time of this process.
    pub fn platform(&self) -> &Arc<ProcessPlatform> {
        &self.platform
    }

    /// The bounce pool.
    pub fn bounce(&self) -> &Arc<Swiotlb> {
        &self.bounce
    }

    /// The group of a device.
    ///
    /// # Errors
    /// [`VfioError::NotOpened`].
    pub fn group(&self, address: PciAddress) -> Result<Arc<Group>, VfioError> {
        self.iommu.group_of(address).ok_or(VfioError::NotOpened(address))
    }

    /// A device's function alone, for who maps by himself in a domain of his own ([`Group::alloc_unmanaged`]). The device must
    /// be in a domain: the kernel opens none that is not. While it is open its group stays in that domain.
    ///
    /// # Errors
    /// [`VfioError`] with the reason.
    pub fn function(&self, address: PciAddress) -> Result<Arc<dyn Function>, VfioError> {
        let device = self.driver.device(address)?;
        Ok(Arc::new(VfioFunction { device, platform: Arc::clone(&self.platform) }))
    }

    /// Binds a driver to a device. It reaches what it is given and nothing else; parts of pages are bounced.
    ///
    /// # Errors
    /// [`VfioError::NotOpened`]; what [`Group::bind`] says; the kernel's reason not to open the device.
    pub fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), VfioError> {
        let device = self.group(address)?.bind(address)?;
        Ok((self.function(address)?, device))
    }

    /// Binds a driver to a device that is trusted with whole pages: nothing is bounced, so it may reach what shares a page
    /// with a buffer.
    ///
    /// # Errors
    /// As [`Vfio::bind`].
    ///
    /// # Safety
    /// The caller trusts the device and its driver to touch only memory that they were given.
    pub unsafe fn trust(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), VfioError> {
        // SAFETY: the caller's trust.
        let device = unsafe { self.group(address)?.bind_trusted(address) }?;
        Ok((self.function(address)?, device))
    }

    /// Binds a driver to a device that has the arena registered: see [`Registered`] for what that costs and spares.
    ///
    /// # Errors
    /// [`VfioError::NoArena`], [`VfioError::Register`]; as [`Vfio::bind`].
    ///
    /// # Safety
    /// As [`Vfio::trust`], and more: the device reaches all of the arena, whatever the directions of maps say and after they have
    /// ended. The caller trusts the device and its driver to touch of it only what they were given, and to stop before that is
    /// given back.
    pub unsafe fn trust_registered(
        &self,
        address: PciAddress,
    ) -> Result<(Arc<dyn Function>, Device), VfioError> {
        if self.platform.arena().is_none() {
            return Err(VfioError::NoArena(address));
        }
        let gone = self.driver.gone(address).ok_or(VfioError::NotOpened(address))?;
        // SAFETY: the caller's trust.
        let (function, device) = unsafe { self.trust(address) }?;
        let device = device.decorated(|ops| {
            let (platform, copies) = (Arc::clone(&self.platform), Arc::clone(&self.bounce));
            // SAFETY: the caller's trust.
            let ops = unsafe { Registered::new(ops, platform, copies) }?;
            // What needs no call of the kernel must hear of a removal as well.
            let gate = move || if gone.load(Ordering::Relaxed) { Err(DmaError::Gone) } else { Ok(()) };
            Ok(Arc::new(Gated::new(ops, gate)) as Arc<dyn DmaMapOps>)
        });
        Ok((function, device.map_err(|error| VfioError::Register { address, error })?))
    }

    /// Connects message interrupt `vector` of a device, as [`Function::interrupt`] does, to be waited for in more ways than that: see
    /// [`Vector`]. A device that sends no messages has its pin as vector 0.
    ///
    /// # Errors
    /// [`VfioError::OtherInterrupts`], [`VfioError::Interrupt`]; as [`Vfio::function`].
    pub fn vector(&self, address: PciAddress, vector: u16) -> Result<Vector, VfioError> {
        let device = self.driver.device(address)?;
        if !device.interrupts.lock().may_connect() {
            return Err(VfioError::OtherInterrupts(address));
        }
        Vector::connect(&device, &self.platform, vector)
            .map_err(|error| VfioError::Interrupt { address, error })
    }

    /// Connects a device's interrupt pin (INTx), also of one that sends messages. The kernel has one kind of interrupts on at a
    /// time: the device's [`Vector`]s of messages must have been dropped.
    ///
    /// # Errors
    /// As [`Vfio::vector`].
    #[doc(alias = "INTx")]
    pub fn intx(&self, address: PciAddress) -> Result<Vector, VfioError> {
        let device = self.driver.device(address)?;
        if !device.interrupts.lock().may_connect_pin() {
            return Err(VfioError::OtherInterrupts(address));
        }
        Vector::connect_pin(&device, &self.platform).map_err(|error| VfioError::Interrupt { address, error })
    }

    /// Resets a device (Linux: `VFIO_DEVICE_RESET`); what is mapped stays mapped. Its driver begins anew.
    ///
    /// # Errors
    /// [`VfioError::NoReset`] when the device has no reset that leaves its neighbours alone; the kernel's.
    #[doc(alias = "VFIO_DEVICE_RESET")]
    pub fn reset(&self, address: PciAddress) -> Result<(), VfioError> {
        self.driver.device(address)?.reset()
    }
}
