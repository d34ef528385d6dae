//! Status codes of completions: type in bits 10:8, code in 7:0.

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Status(pub(super) u16);

impl Status {
    pub(super) const SUCCESS: Self = Self(0x000);
    pub(super) const INVALID_OPCODE: Self = Self(0x001);
    pub(super) const INVALID_FIELD: Self = Self(0x002);
    pub(super) const DATA_TRANSFER_ERROR: Self = Self(0x004);
    pub(super) const INTERNAL_ERROR: Self = Self(0x006);
    pub(super) const INVALID_NAMESPACE: Self = Self(0x00b);
    pub(super) const INVALID_PRP_OFFSET: Self = Self(0x013);
    pub(super) const WRITE_PROTECTED: Self = Self(0x020);
    pub(super) const LBA_OUT_OF_RANGE: Self = Self(0x080);
    pub(super) const COMPLETION_QUEUE_INVALID: Self = Self(0x100);
    pub(super) const INVALID_QUEUE_ID: Self = Self(0x101);
    pub(super) const INVALID_QUEUE_SIZE: Self = Self(0x102);
    pub(super) const INVALID_VECTOR: Self = Self(0x108);
    pub(super) const INVALID_QUEUE_DELETION: Self = Self(0x10c);
}
