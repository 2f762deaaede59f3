//! IP protocol numbers of what services balance.

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
