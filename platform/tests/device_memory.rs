//! Copies into and out of memory that a device uses: every byte of the range, and no other, whatever the alignments.

use platform::device_memory::{copy_in, copy_out};

#[repr(align(16))]
struct Buffer([u8; 80]);

/// Bytes from 1 on.
fn numbers() -> Buffer {
    Buffer(core::array::from_fn(|index| index as u8 + 1))
}

#[test]
fn a_copy_is_of_its_range_and_of_nothing_else() {
    for from in 0..9 {
        for to in 0..9 {
            for len in 0..64 {
                let source = numbers();
                let mut expected = [0; 80];
                expected[to..to + len].copy_from_slice(&source.0[from..from + len]);
                let (mut written, mut read) = (Buffer([0; 80]), Buffer([0; 80]));
                // SAFETY: both ranges are in their buffers, which no one else uses.
                unsafe {
                    copy_in(source.0[from..].as_ptr(), written.0[to..].as_mut_ptr(), len);
                    copy_out(source.0[from..].as_ptr(), read.0[to..].as_mut_ptr(), len);
                }
                assert_eq!(written.0, expected, "{len} bytes in, from {from} to {to}");
                assert_eq!(read.0, expected, "{len} bytes out, from {from} to {to}");
            }
        }
    }
}
