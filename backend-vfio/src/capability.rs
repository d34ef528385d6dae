//! The chains of capabilities that VFIO puts behind some of its answers.

/// One link: what it is, and its bytes from its header on. (A chain does not say how long a link is.)
pub(crate) struct Capability<'a> {
    pub(crate) id: u16,
    bytes: &'a [u8],
}

impl Capability<'_> {
    /// The word of four bytes at `at`, if the answer is that long.
    pub(crate) fn word(&self, at: usize) -> Option<u32> {
        word(self.bytes, at)
    }

    /// The word of eight bytes at `at`.
    pub(crate) fn long(&self, at: usize) -> Option<u64> {
        long(self.bytes, at)
    }
}

/// The word of four bytes at `at` of an answer.
pub(crate) fn word(answer: &[u8], at: usize) -> Option<u32> {
    let bytes = answer.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// The word of eight bytes at `at` of an answer.
pub(crate) fn long(answer: &[u8], at: usize) -> Option<u64> {
    let bytes = answer.get(at..at.checked_add(8)?)?;
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

/// The capabilities of an answer, from the one at `first` on. A chain that leaves the answer ends there, and none has more
/// links than fit into it.
pub(crate) fn chain(answer: &[u8], first: u32) -> impl Iterator<Item = Capability<'_>> {
    const HEADER: usize = 8;
    let mut next = first as usize;
    let most = answer.len() / HEADER;
    std::iter::from_fn(move || {
        let bytes = answer.get(next..).filter(|bytes| next != 0 && bytes.len() >= HEADER)?;
        let id = u16::from_ne_bytes([bytes[0], bytes[1]]);
        next = word(bytes, 4)? as usize;
        Some(Capability { id, bytes })
    })
    .take(most)
}
