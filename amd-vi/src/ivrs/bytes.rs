//! Reading a table of unknown quality: every access says whether the bytes were there.

/// Bytes that firmware wrote, little-endian.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn len(self) -> usize {
        self.0.len()
    }

    pub(super) fn slice(self, at: usize, len: usize) -> Option<Self> {
        self.0.get(at..at.checked_add(len)?).map(Self)
    }

    pub(super) fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.slice(at, N)?.0.try_into().ok()
    }

    pub(super) fn to_vec(self) -> alloc::vec::Vec<u8> {
        self.0.to_vec()
    }

    pub(super) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(super) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// The sum of all bytes, as ACPI checks it.
    pub(super) fn sum(self) -> u8 {
        self.0.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }
}
