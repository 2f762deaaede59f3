//! How a QUIC packet says which real server its connection belongs to: by the destination connection ID, as
//! draft-ietf-quic-load-balancers has it, unencrypted.
//!
//! | octets of the connection ID | |
//! |---|---|
//! | first | three bits of configuration, five that are the server's own |
//! | 1 to 8 | the server's ID |
//! | at least 4 | a nonce |

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which connection IDs a service's real servers make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionIds {
    /// What their first three bits say. Seven means that there is no server's ID in it.
    pub config: u8,
    /// Octets of a server's ID, 1 to [`ServerId::LONGEST`].
    pub length: u8,
}

const CONFIG_SHIFT: u32 = 5;
/// First octet and the shortest nonce.
const AROUND: u8 = 1 + 4;

impl ConnectionIds {
    #[inline(always)]
    pub const fn pack(self) -> u8 {
        self.config << CONFIG_SHIFT | self.length
    }

    /// None of 0, and of a length that nothing can have.
    #[inline(always)]
    pub const fn unpack(word: u8) -> Option<Self> {
        let ids = Self { config: word >> CONFIG_SHIFT, length: word & ((1 << CONFIG_SHIFT) - 1) };
        if ids.length == 0 || ids.length > ServerId::LONGEST { None } else { Some(ids) }
    }

    /// The server's ID in a packet, of which these are the first 16 octets of `len`, with zeros behind. None if its connection ID is
    /// not of this kind: then a client has made it up, or the packet is not of QUIC.
    #[inline(always)]
    pub const fn server_id(self, start: [u64; 2], len: usize) -> Option<[u8; 8]> {
        let [head, tail] = [u64::from_le(start[0]), u64::from_le(start[1])];
        // RFC 8999 5.1: behind the first octet and four of version come the ID's length and the ID; 5.2: it comes at once, and
        // how long it is only its server knows.
        let (first, octets) = if is_long(start) {
            let length = (head >> 40) as u8;
            if length < AROUND + self.length || 6 + length as usize > len {
                return None;
            }
            (head >> 48, head >> 56 | tail << 8)
        } else {
            if 1 + (AROUND + self.length) as usize > len {
                return None;
            }
            (head >> 8, head >> 16 | tail << 48)
        };
        if first as u8 >> CONFIG_SHIFT != self.config {
            return None;
        }
        Some((octets & u64::MAX >> (64 - 8 * self.length as u32)).to_le_bytes())
    }
}

/// The form of the header that only packets of a connection's beginning have, whose destination a client may have made up.
#[inline(always)]
pub const fn is_long(start: [u64; 2]) -> bool {
    u64::from_le(start[0]) & 0x80 != 0
}

/// A key of `SERVER_IDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ServerId {
    /// With zeros behind: all of one service have the same length.
    pub octets: [u8; 8],
    /// `Service::id`.
    pub service: u32,
}

impl ServerId {
    pub const LONGEST: u8 = 8;
}

const _: () = assert!(size_of::<ServerId>() == 12);

/// What was made of a packet's server ID, a counter in `BY_ID`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ById {
    Led,
    Unknown,
    Dead,
}

impl ById {
    /// In the order of the counters.
    pub const ALL: [Self; 3] = [Self::Led, Self::Unknown, Self::Dead];
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Name in `lvsd status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Led => "led",
            Self::Unknown => "unknown_id",
            Self::Dead => "dead_real",
        }
    }

    /// One sentence for an operator.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Led => "Its connection ID names a living real server, which got it.",
            Self::Unknown => {
                "A short header whose connection ID names no real server: it went by address and port. The servers' IDs or config ID are not those of the configuration, or it is not QUIC."
            }
            Self::Dead => {
                "Its connection ID names a real server that is dead: it went by address and port, to one that cannot know it."
            }
        }
    }
}

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (zerocopy's derives prove it).
unsafe impl aya::Pod for ServerId {}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: ConnectionIds = ConnectionIds { config: 2, length: 3 };

    /// The first 16 octets and the length of a packet.
    fn read(ids: ConnectionIds, octets: &[u8], len: usize) -> Option<[u8; 8]> {
        let mut start = [0; 16];
        start[..octets.len()].copy_from_slice(octets);
        ids.server_id(zerocopy::transmute!(start), len)
    }

    #[test]
    fn a_server_id_stands_behind_the_first_octet_of_the_connection_id_in_both_forms_of_header() {
        let id = Some([7, 8, 9, 0, 0, 0, 0, 0]);
        assert_eq!(read(IDS, &[0x40, 0x5f, 7, 8, 9, 1, 2, 3, 4], 40), id);
        assert_eq!(read(IDS, &[0xc0, 0, 0, 0, 1, 8, 0x40, 7, 8, 9, 1, 2, 3, 4], 40), id);
        let longest = ConnectionIds { length: 8, ..IDS };
        let all = Some([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(read(longest, &[0x40, 0x40, 1, 2, 3, 4, 5, 6, 7, 8, 9], 40), all);
        assert_eq!(read(longest, &[0x80, 0, 0, 0, 0, 20, 0x40, 1, 2, 3, 4, 5, 6, 7, 8, 9], 40), all);
    }

    #[test]
    fn connection_ids_of_another_configuration_or_too_short_for_it_have_no_server_id() {
        assert_eq!(read(IDS, &[0x40, 0x20, 7, 8, 9, 1, 2, 3, 4], 40), None, "config 1");
        assert_eq!(read(IDS, &[0x40, 0xe0, 7, 8, 9, 1, 2, 3, 4], 40), None, "config 7: not routable");
        let long = |length| [0xc0, 0, 0, 0, 1, length, 0x40, 7, 8, 9, 1, 2, 3, 4];
        assert_eq!(read(IDS, &long(7), 40), None, "no room for a nonce");
        assert_eq!(read(IDS, &long(0), 40), None);
        assert!(read(IDS, &long(20), 26).is_some());
        assert_eq!(read(IDS, &long(20), 25), None, "it ends behind the packet");
        assert_eq!(
            read(IDS, &[0x40, 0x40, 7, 8, 9, 1, 2, 3], 8),
            None,
            "a short header without all of a nonce"
        );
    }

    #[test]
    fn a_word_of_a_service_holds_what_its_servers_ids_are_like() {
        for config in 0..7 {
            for length in 1..=8 {
                let ids = ConnectionIds { config, length };
                assert_eq!(ConnectionIds::unpack(ids.pack()), Some(ids));
            }
        }
        assert_eq!([0, 0xe0, 9, 31].map(ConnectionIds::unpack), [None; 4]);
    }
}
