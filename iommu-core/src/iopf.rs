//! Page requests: a device that meets a page that is not there asks for it, waits, and is answered (Linux: io-pgfault.c).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use platform::pci::PciAddress;
use platform::sync::Mutex;
use platform::{DmaAddr, Prot};

use crate::fault::FaultPort;
use crate::ops::IommuOps;

/// A device's request for one page (Linux: `struct iommu_fault_page_request`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// The device.
    pub device: PciAddress,
    /// The PASID that it named, if any.
    pub pasid: Option<u32>,
    /// Which requests are answered together: the device's number for them (Linux: `grpid`).
    pub group: u16,
    /// The I/O address.
    pub address: DmaAddr,
    /// What the device wants to do.
    pub access: Prot,
    /// Whether the device has said all of the group (`IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE`).
    pub last: bool,
}

/// What a device is told (Linux: `enum iommu_page_response_code`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseCode {
    /// The pages are there: try again (`IOMMU_PAGE_RESP_SUCCESS`).
    Success,
    /// They will not be there (`IOMMU_PAGE_RESP_INVALID`).
    Invalid,
    /// Nobody answers any more: stop asking (`IOMMU_PAGE_RESP_FAILURE`).
    Failure,
}

/// The answer to a group of requests (Linux: `struct iommu_page_response`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageResponse {
    /// The PASID of the requests.
    pub pasid: Option<u32>,
    /// The device's number for the group.
    pub group: u16,
    /// What it is told.
    pub code: ResponseCode,
}

/// A page request of a device that no driver of this [`crate::Iommu`] has: whoever reported it must answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is no device of a registered IOMMU")]
pub struct UnknownDevice(pub PciAddress);

/// Requests that are answered together (Linux: `struct iopf_group`). A group that is dropped is answered with
/// [`ResponseCode::Invalid`]: no device waits for ever.
#[derive(Debug)]
pub struct IopfGroup {
    ops: Arc<dyn IommuOps>,
    /// The last one is the device's last.
    requests: Vec<PageRequest>,
    code: ResponseCode,
}

impl IopfGroup {
    /// The requests, in the order in which the device made them; at least one.
    pub fn requests(&self) -> &[PageRequest] {
        &self.requests
    }

    /// Answers the device (Linux: `iopf_group_response`).
    #[doc(alias = "iopf_group_response")]
    pub fn respond(mut self, code: ResponseCode) {
        // The answer goes out when the group is dropped: there is one way.
        self.code = code;
    }
}

impl Drop for IopfGroup {
    fn drop(&mut self) {
        if let Some(last) = self.requests.last() {
            let response = PageResponse { pasid: last.pasid, group: last.group, code: self.code };
            self.ops.page_response(last.device, response);
        }
    }
}

/// Page requests that wait for somebody to bring the pages (Linux: the work queue of `struct iopf_queue`). This crate starts
/// no thread: whoever made the queue takes from it.
#[derive(Debug, Default)]
pub struct IopfQueue(Mutex<VecDeque<IopfGroup>>);

impl IopfQueue {
    /// How many groups wait at most; what comes while it is full is answered with [`ResponseCode::Invalid`].
    pub const CAPACITY: usize = 1024;

    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// The oldest group.
    pub fn pop(&self) -> Option<IopfGroup> {
        self.0.lock().pop_front()
    }

    fn push(&self, group: IopfGroup) {
        let mut queue = self.0.lock();
        if queue.len() < Self::CAPACITY {
            queue.push_back(group);
        } else {
            // Answering may take a driver's locks.
            drop(queue);
            drop(group);
        }
    }
}

/// Requests of a device whose group it has not finished (Linux: `iopf_device_param.partial`).
#[derive(Debug, Default)]
pub(crate) struct Partial(Mutex<Vec<PageRequest>>);

impl Partial {
    /// A device that finishes nothing is not remembered further.
    const CAPACITY: usize = 512;

    /// Takes a request; what it finishes is returned.
    fn add(&self, request: PageRequest) -> Option<Vec<PageRequest>> {
        let mut partial = self.0.lock();
        if !request.last {
            if partial.len() < Self::CAPACITY {
                partial.push(request);
            }
            return None;
        }
        let same = |other: &mut PageRequest| other.group == request.group && other.pasid == request.pasid;
        let mut group: Vec<_> = partial.extract_if(.., same).collect();
        group.push(request);
        Some(group)
    }

    /// Forgets what is not finished: its last request may have been lost (Linux: `iopf_queue_discard_partial`).
    pub(crate) fn discard(&self) {
        self.0.lock().clear();
    }
}

impl FaultPort {
    /// Takes a page request of the device; a group that is complete goes to the queue of the domain that it is for, or is
    /// answered with [`ResponseCode::Invalid`] when nobody brings pages there.
    pub(crate) fn page_request(&self, request: PageRequest) {
        let Some(requests) = self.partial.add(request) else { return };
        let group = IopfGroup { ops: Arc::clone(&self.ops), requests, code: ResponseCode::Invalid };
        if let Some(queue) = self.domain(request.pasid).and_then(|domain| domain.iopf_queue()) {
            queue.push(group);
        }
    }
}
