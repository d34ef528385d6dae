//! The serial port.

use core::fmt::{self, Write};

use super::ports::{in8, out8};

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const CAN_TAKE: u8 = 1 << 5;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the first serial port of a PC, which is nobody else's.
            unsafe {
                while in8(LINE_STATUS) & CAN_TAKE == 0 {}
                out8(DATA, byte);
            }
        }
        Ok(())
    }
}

pub(crate) fn print(text: fmt::Arguments<'_>) {
    // The port never fails.
    let _ = Serial.write_fmt(text);
}

/// A line on the serial port.
macro_rules! println {
    ($($text:tt)*) => {
        $crate::boot::console::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
