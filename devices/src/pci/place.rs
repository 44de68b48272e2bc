//! Where functions are.

/// Where a function is on its bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub slot: u8,
    pub function: u8,
}

impl Place {
    /// As both ways to configuration space write it: five bits of device number, three of function number.
    pub fn from_byte(byte: u8) -> Self {
        Self {
            slot: byte >> 3,
            function: byte & 7,
        }
    }
}
