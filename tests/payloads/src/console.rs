//! Output on the serial port.

use core::fmt::{self, Write};

use crate::port;

/// Transmit register of the first serial port, and its line status.
const DATA: u16 = 0x3F8;
const LINE_STATUS: u16 = 0x3FD;
/// Transmit holding register empty.
const EMPTY: u8 = 1 << 5;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while port::read8(LINE_STATUS) & EMPTY == 0 {}
            port::write8(DATA, byte);
        }
        Ok(())
    }
}

/// Prints to the serial port.
pub fn print(arguments: fmt::Arguments<'_>) {
    let _ = Serial.write_fmt(arguments);
}
