//! The internet checksum (RFC 1071): the ones' complement sum of 16-bit words, inverted.

use std::net::IpAddr;

/// A sum to go on with. Up to 64 KiB of words fit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u32);

impl Sum {
    /// RFC 8200 8.1, and the same for IPv4: both addresses, the length of what follows and its protocol.
    pub fn and_pseudo_header(self, from: IpAddr, to: IpAddr, length: usize, protocol: u8) -> Self {
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        self.and_address(from).and_address(to).and(&length.to_be_bytes()).and(&[0, protocol])
    }

    /// Only the last part of a message may be of an odd length.
    pub fn and(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<2>();
        let sum = words.iter().fold(self.0, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
        Self(sum + rest.first().map_or(0, |last| u32::from(*last) << 8))
    }

    pub fn and_address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.and(&address.octets()),
            IpAddr::V6(address) => self.and(&address.octets()),
        }
    }

    /// What to write into a field that was 0.
    pub const fn checksum(self) -> u16 {
        let sum = (self.0 >> 16) + (self.0 & 0xffff);
        !((sum >> 16) + (sum & 0xffff)) as u16
    }

    /// Of all that a checksum covers and itself.
    pub const fn is_sound(self) -> bool {
        self.checksum() == 0
    }

    /// Writes the checksum of `bytes`, and of what the sum is of already, into the two of them that begin at `at`.
    pub fn put(self, bytes: &mut [u8], at: usize) {
        put_at(bytes, at, 0);
        put_at(bytes, at, self.and(bytes).checksum());
    }
}

fn put_at(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn it_is_the_example_of_the_rfc() {
        // RFC 1071 3.
        let sum = Sum::default().and(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.checksum(), !0xddf2);
    }

    #[test]
    fn what_it_was_put_into_is_sound_with_an_odd_last_byte_too() {
        let [from, to] = [1, 2].map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        let mut message = *b"  message of an odd length";
        for length in [message.len(), message.len() - 1] {
            let message = &mut message[..length];
            let sum = Sum::default().and_pseudo_header(from, to, length, 17);
            sum.put(message, 0);
            assert!(sum.and(message).is_sound());
            message[5] ^= 1;
            assert!(!sum.and(message).is_sound());
        }
    }
}
