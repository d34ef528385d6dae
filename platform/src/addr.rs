//! The two kinds of address: what memory calls itself, and what a device says.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// An address from its number.
            #[inline]
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// The number.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// This address plus `bytes`, or `None` past the end of the 64-bit space.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// The address of the last byte of a range of `len` bytes that starts here, or `None` when the range
            /// is empty or leaves the 64-bit space.
            #[inline]
            pub const fn last_of(self, len: u64) -> Option<Self> {
                match len.checked_sub(1) {
                    Some(span) => self.checked_add(span),
                    None => None,
                }
            }

            /// The address `bytes` further on, wrapping at the end of the 64-bit space: for ranges already checked.
            #[inline]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// Rounded down to a multiple of `align`, a power of two.
            #[inline]
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align.wrapping_sub(1)))
            }

            /// The offset from the last multiple of `align`, a power of two.
            #[inline]
            pub const fn offset_in(self, align: u64) -> u64 {
                self.0 & align.wrapping_sub(1)
            }

            /// The length of the whole blocks of `align` bytes, a power of two, that `len` bytes from here touch, or `None`
            /// when it leaves the 64-bit space.
            #[inline]
            pub const fn span_in(self, len: u64, align: u64) -> Option<u64> {
                // The offset and what rounds up are below twice the alignment.
                match len.checked_add(self.offset_in(align).wrapping_add(align.wrapping_sub(1))) {
                    Some(end) => Some(end & !(align.wrapping_sub(1))),
                    None => None,
                }
            }

            /// Whether this is a multiple of `align`, a power of two.
            #[inline]
            pub const fn is_aligned(self, align: u64) -> bool {
                self.offset_in(align) == 0
            }
        }

        impl From<u64> for $name {
            fn from(address: u64) -> Self {
                Self(address)
            }
        }

        impl From<$name> for u64 {
            fn from(address: $name) -> u64 {
                address.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A physical address of the machine, in bytes (Linux: `phys_addr_t`).
    PhysAddr
}

address! {
    /// An address as a device says it, in bytes (Linux: `dma_addr_t`; behind an IOMMU also called IOVA).
    DmaAddr
}
