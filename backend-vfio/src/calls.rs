//! VFIO's calls, with their structures.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use platform::{DmaAddr, PhysAddr, Prot};
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_irq_info,
};

use crate::kernel::{Kernel, request};

const GET_API_VERSION: u32 = request(0);
const CHECK_EXTENSION: u32 = request(1);
const SET_IOMMU: u32 = request(2);
const GROUP_GET_STATUS: u32 = request(3);
const GROUP_SET_CONTAINER: u32 = request(4);
const GROUP_UNSET_CONTAINER: u32 = request(5);
const GROUP_GET_DEVICE_FD: u32 = request(6);
const DEVICE_GET_INFO: u32 = request(7);
const DEVICE_GET_REGION_INFO: u32 = request(8);
const DEVICE_GET_IRQ_INFO: u32 = request(9);
const DEVICE_SET_IRQS: u32 = request(10);
const DEVICE_RESET: u32 = request(11);
const IOMMU_GET_INFO: u32 = request(12);
const IOMMU_MAP_DMA: u32 = request(13);
const IOMMU_UNMAP_DMA: u32 = request(14);

/// A file of VFIO with the kernel that it belongs to.
#[derive(Debug)]
pub(crate) struct File<'k> {
    pub(crate) kernel: &'k dyn Kernel,
    pub(crate) fd: BorrowedFd<'k>,
}

impl File<'_> {
    fn number(&self, request: u32, number: usize) -> io::Result<u32> {
        // SAFETY: the calls that come here take a number, or nothing.
        unsafe { self.kernel.ioctl(self.fd, request, ptr::without_provenance_mut(number)) }
    }

    fn structure<T>(&self, request: u32, structure: &mut T) -> io::Result<u32> {
        // SAFETY: the calls that come here take this structure, whose first word says how long it is; none of them maps.
        unsafe { self.kernel.ioctl(self.fd, request, ptr::from_mut(structure).cast()) }
    }

    /// A call whose answer is longer than its structure: first how long, then all of it.
    fn answer(&self, request: u32, start: &[u32; 2], least: usize) -> io::Result<Vec<u8>> {
        /// More than any answer of a kernel; a kernel that wants more than this is not believed.
        const MOST: usize = 1 << 20;
        let mut len = least;
        loop {
            // Of words, so that it is aligned as the structures are.
            let mut words = vec![0_u64; len.div_ceil(8)];
            words[0] = pair(len as u32, start[0]);
            words[1] = pair(start[1], 0);
            let at: *mut c_void = words.as_mut_ptr().cast();
            // SAFETY: the calls that come here take a structure that begins with its length, and write no further.
            unsafe { self.kernel.ioctl(self.fd, request, at) }?;
            let mut answer: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            answer.truncate(len);
            let wanted = crate::capability::word(&answer, 0).unwrap_or(0) as usize;
            if wanted <= len {
                return Ok(answer);
            }
            if wanted > MOST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            len = wanted;
        }
    }

    // Containers

    pub(crate) fn api_version(&self) -> io::Result<u32> {
        self.number(GET_API_VERSION, 0)
    }

    pub(crate) fn has_extension(&self, extension: u32) -> bool {
        self.number(CHECK_EXTENSION, extension as usize).is_ok_and(|answer| answer != 0)
    }

    pub(crate) fn set_iommu(&self, kind: u32) -> io::Result<()> {
        self.number(SET_IOMMU, kind as usize).map(drop)
    }

    /// All that the kernel says of the container's IOMMU: `struct vfio_iommu_type1_info` and its capabilities.
    pub(crate) fn iommu_info(&self) -> io::Result<Vec<u8>> {
        self.answer(IOMMU_GET_INFO, &[0; 2], 24)
    }

    /// Maps memory of this process.
    ///
    /// # Safety
    /// The memory stays valid until it is unmapped.
    pub(crate) unsafe fn map_dma(&self, iova: DmaAddr, at: PhysAddr, len: u64, prot: Prot) -> io::Result<()> {
        let mut flags = 0;
        if prot.contains(Prot::READ) {
            flags |= VFIO_DMA_MAP_FLAG_READ;
        }
        if prot.contains(Prot::WRITE) {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags,
            vaddr: at.get(),
            iova: iova.get(),
            size: len,
        };
        // SAFETY: the structure is this call's; the memory is the caller's promise.
        unsafe { self.kernel.ioctl(self.fd, IOMMU_MAP_DMA, ptr::from_mut(&mut map).cast()) }.map(drop)
    }

    /// Unmaps what lies in a range, and says how many bytes that were.
    pub(crate) fn unmap_dma(&self, iova: DmaAddr, len: u64) -> io::Result<u64> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
            flags: 0,
            iova: iova.get(),
            size: len,
            ..Default::default()
        };
        self.structure(IOMMU_UNMAP_DMA, &mut unmap)?;
        Ok(unmap.size)
    }

    // Groups

    pub(crate) fn group_flags(&self) -> io::Result<u32> {
        let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
        self.structure(GROUP_GET_STATUS, &mut status)?;
        Ok(status.flags)
    }

    pub(crate) fn set_container(&self, container: &OwnedFd) -> io::Result<()> {
        let mut fd = container.as_raw_fd();
        self.structure(GROUP_SET_CONTAINER, &mut fd).map(drop)
    }

    pub(crate) fn unset_container(&self) -> io::Result<()> {
        self.number(GROUP_UNSET_CONTAINER, 0).map(drop)
    }

    /// Opens a device of the group by its name: a string that ends with a zero.
    pub(crate) fn device(&self, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
        // SAFETY: the call reads a string.
        let fd = unsafe { self.kernel.ioctl(self.fd, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut().cast()) }?;
        // SAFETY: the call has opened it for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    // Devices

    pub(crate) fn device_info(&self) -> io::Result<vfio_device_info> {
        let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
        self.structure(DEVICE_GET_INFO, &mut info)?;
        Ok(info)
    }

    /// All that the kernel says of a region: `struct vfio_region_info` and its capabilities.
    pub(crate) fn region_info(&self, index: u32) -> io::Result<Vec<u8>> {
        self.answer(DEVICE_GET_REGION_INFO, &[0, index], 32)
    }

    pub(crate) fn irq_info(&self, index: u32) -> io::Result<vfio_irq_info> {
        let argsz = size_of::<vfio_irq_info>() as u32;
        let mut info = vfio_irq_info { argsz, flags: 0, index, count: 0 };
        self.structure(DEVICE_GET_IRQ_INFO, &mut info)?;
        Ok(info)
    }

    /// Has interrupts of `index`, from `start` on, signal event files; `None` disconnects one. When the system has fewer
    /// than that, nothing is done, and the answer is how many there are instead of 0.
    pub(crate) fn set_irqs(
        &self,
        index: u32,
        start: u32,
        files: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<u32> {
        const HEADER: usize = 5;
        let argsz = 4 * (HEADER + files.len()) as u32;
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let mut words = vec![argsz, flags, index, start, files.len() as u32];
        words.extend(files.iter().map(|file| file.map_or(-1, |file| file.as_raw_fd()) as u32));
        // SAFETY: the call takes a header of five words and as many more as its last says.
        unsafe { self.kernel.ioctl(self.fd, DEVICE_SET_IRQS, words.as_mut_ptr().cast()) }
    }

    /// Masks or unmasks `count` interrupts, as `action` says. To trigger none of them is to switch the kind off.
    pub(crate) fn act_on_irqs(&self, index: u32, start: u32, count: u32, action: u32) -> io::Result<()> {
        let argsz = size_of::<[u32; 5]>() as u32;
        let mut words = [argsz, VFIO_IRQ_SET_DATA_NONE | action, index, start, count];
        self.structure(DEVICE_SET_IRQS, &mut words).map(drop)
    }

    pub(crate) fn reset(&self) -> io::Result<()> {
        self.number(DEVICE_RESET, 0).map(drop)
    }
}

/// Two words, as they follow each other in memory.
fn pair(first: u32, second: u32) -> u64 {
    let (first, second) = (u64::from(first), u64::from(second));
    if cfg!(target_endian = "little") { first | second << 32 } else { first << 32 | second }
}

/// A file, to be called.
pub(crate) fn file<'k>(kernel: &'k dyn Kernel, fd: &'k OwnedFd) -> File<'k> {
    File { kernel, fd: fd.as_fd() }
}
