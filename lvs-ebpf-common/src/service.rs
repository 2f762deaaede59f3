//! How a packet's address, port and protocol lead to a real server.
//!
//! key -> open-addressed table -> [`Service`] -> ring slot -> index -> [`Real`]. Nothing on this way is a
//! kernel hash map, and each change is published by one aligned 8-byte store ([`TableRef`] or [`RingRef`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Address,
    flow::{self, Flow},
    flow_table::FlowKey,
    maps,
};

/// Address and port as they stand in the packet (network byte order).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ServiceKey {
    /// Of IPv6 its [`Address::fold`]; the whole address is in `ADDRESSES`.
    pub address: u32,
    /// 0 = all ports that no other service of the address has.
    pub port: u16,
    /// IP protocol number; 0 = the table slot is empty.
    pub protocol: u8,
    /// [`ServiceKey::V4`] or [`ServiceKey::V6`].
    pub family: u8,
}

impl ServiceKey {
    pub const V4: u8 = 0;
    pub const V6: u8 = 1;

    /// The two slots of a table of `maps::SERVICE_SLOTS` where the key may be.
    #[inline(always)]
    pub const fn homes(self, seed: u16) -> [u32; 2] {
        let word = self.address as u64 | (self.port as u64) << 32 | (self.protocol as u64) << 48;
        let hash = flow::mix(word ^ (seed as u64) << 16);
        [hash & (maps::SERVICE_SLOTS - 1), hash >> (u32::BITS - maps::SERVICE_SLOTS.trailing_zeros())]
    }
}

/// A virtual server, an element of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Service {
    pub key: ServiceKey,
    /// A packed [`RingRef`].
    pub ring: u64,
    /// First element of this service's range of `REALS`.
    pub reals_base: u32,
    /// Length of that range; an index at or beyond it is never followed.
    pub reals_len: u32,
    /// One of [`Service::HASH_SOURCE`] and its kin.
    pub hash: u8,
    /// The same of the ring of old owners: after a change of the scheduler another one.
    pub old_hash: u8,
    /// 0 = each connection is placed by itself. Else clients are: those that have so many leading bits of their address,
    /// less one, in common are one client.
    pub persistence: u8,
    /// A packed [`ConnectionIds`]; 0 = flows are told apart by addresses and ports alone.
    pub connection_ids: u8,
    /// What the flow table knows the service by; also its element of `TURNS` and of `ADDRESSES`.
    pub id: u16,
    /// One of [`Service::NO_TURNS`] and its kin. With all others but [`Service::EVERY_PACKET`] the flow table remembers every
    /// flow's real server.
    pub takes_turns: u16,
}

impl Service {
    /// `mh`, `sh`.
    pub const HASH_SOURCE: u8 = 0;
    /// `mh` with mh-port, `sh` with sh-port.
    pub const HASH_SOURCE_PORT: u8 = 1;
    /// `dh`.
    pub const HASH_DESTINATION: u8 = 2;
    /// All others.
    pub const HASH_CONNECTION: u8 = 3;

    /// The ring alone says where a new flow goes.
    pub const NO_TURNS: u16 = 0;
    /// Each new flow takes the next of its service's turns.
    pub const EVERY_TURN: u16 = 1;
    /// A new flow whose slot's owner is [`Real::OVERLOADED`] takes the turn; the turns of the others are passed over.
    pub const TURNS_OF_OVERLOADED: u16 = 2;
    /// Nobody's: the ring alone says where a new flow goes, but the flow table remembers.
    pub const REMEMBERED: u16 = 3;
    /// Each packet takes the next of its service's turns, and nothing is remembered (`ops`).
    pub const EVERY_PACKET: u16 = 4;
}

impl Service {
    /// The flow of this service that a packet belongs to: its own, or, with persistence, all that clients who are one do
    /// with the service.
    #[inline(always)]
    pub const fn flow(&self, packet: Flow) -> Flow {
        match self.persistence {
            0 => packet,
            one_more => Flow {
                source: packet.source & mask(one_more as u32 - 1),
                source_port: 0,
                destination_port: self.key.port,
                ..packet
            },
        }
    }

    /// The same over IPv6, where addresses are folded. `packet` lacks its source.
    #[inline(always)]
    pub const fn flow6(&self, source: Address, packet: Flow) -> Flow {
        match self.persistence {
            0 => Flow { source: source.fold(), ..packet },
            one_more => Flow {
                source: source.first(one_more as u32 - 1).fold(),
                source_port: 0,
                destination_port: self.key.port,
                ..packet
            },
        }
    }
}

impl Service {
    /// The flow of this service that the flow table knows by `key`, as far as hashes of it go.
    #[inline(always)]
    pub const fn flow_of(&self, key: FlowKey) -> Flow {
        Flow {
            source: key.source,
            source_port: key.source_port,
            destination: self.key.address,
            destination_port: self.key.port,
        }
    }
}

/// Of so many leading bits, in network byte order.
#[inline(always)]
const fn mask(bits: u32) -> u32 {
    // A shift by all 32 bits is none.
    (((u32::MAX as u64) << ((32 - (bits & 63)) % 64)) as u32).to_be()
}

/// Where a service's ring lies: the word that a pool change flips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingRef {
    /// First chunk in `RINGS`.
    pub chunk: u32,
    /// Slots; 0 = the service has no real server.
    pub length: u32,
}

impl RingRef {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.chunk as u64 | (self.length as u64) << 32
    }
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { chunk: word as u32, length: (word >> 32) as u32 }
    }
}

/// Which half of `SERVICES` is live and with which seed it was filled: the word that adding or removing a
/// service flips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRef {
    pub seed: u16,
    /// 0 or 1.
    pub half: u32,
    /// Some real server is reached by address translation: `REPLIES` is to be looked at.
    pub translates: bool,
    /// Some service has all ports: its key has port 0.
    pub has_all_ports: bool,
    /// Where packets of IPv4 go that are any of ours.
    pub addresses: AddressFilter,
}

impl TableRef {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.seed as u64
            | (self.half as u64) << 16
            | (self.translates as u64) << 17
            | (self.has_all_ports as u64) << 18
            | (self.addresses.0 as u64) << 32
    }
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            seed: word as u16,
            half: (word >> 16) as u32 & 1,
            translates: word >> 17 & 1 == 1,
            has_all_ports: word >> 18 & 1 == 1,
            addresses: AddressFilter((word >> 32) as u32),
        }
    }
}

/// A set of addresses of IPv4, for others to be told by one look: a bit for every 32nd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressFilter(u32);

impl AddressFilter {
    pub const ALL: Self = Self(u32::MAX);

    /// `address` in network byte order.
    #[inline(always)]
    pub const fn with(self, address: u32) -> Self {
        Self(self.0 | 1 << Self::bit(address))
    }

    /// False is certain.
    #[inline(always)]
    pub const fn may_have(self, address: u32) -> bool {
        self.0 >> Self::bit(address) & 1 == 1
    }

    #[inline(always)]
    const fn bit(address: u32) -> u32 {
        address.wrapping_mul(0x9e37_79b1) >> 27
    }
}

/// A real server as the XDP program needs it, an element of `REALS`: a cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Real {
    /// Next hop; all zero = not resolved yet, or this node itself.
    pub mac: [u8; 6],
    /// MAC of the interface that leads to it.
    pub source_mac: [u8; 6],
    pub ifindex: u32,
    /// All zero = the element is free.
    pub address: Address,
    /// An address of this node on the way to it, which a tunnel's packets come from.
    pub source: Address,
    /// Network byte order.
    pub port: u16,
    /// One of [`Real::DEAD`] and its kin.
    pub state: u8,
    /// One of [`Real::DIRECT`] and its kin.
    pub method: u8,
    /// The largest IP packet on the way to it, a tunnel's header included.
    pub mtu: u16,
    /// Network byte order: where GUE packets go to.
    pub tunnel_port: u16,
    pub _pad: u64,
}

impl Real {
    /// The packet stays as it is; the real server has the virtual address too.
    pub const DIRECT: u8 = 0;
    /// IP in IP (RFC 2003).
    pub const IPIP: u8 = 1;
    /// Generic UDP Encapsulation, variant 0.
    pub const GUE: u8 = 2;
    /// Generic Routing Encapsulation (RFC 2784).
    pub const GRE: u8 = 3;
    /// Destination address and port become the real server's own; its answers come back through the director.
    pub const NAT: u8 = 4;
    /// The same where several services have the real server, so that its flows have to be remembered.
    pub const NAT_SHARED: u8 = 5;
    /// This node itself: the kernel gets the packet as it is.
    pub const LOCAL: u8 = 6;
    /// As [`Real::DIRECT`], of a service that has a local real server too: what another director sends to this node is for that one.
    pub const DIRECT_BESIDE_LOCAL: u8 = 7;
}

impl Real {
    /// Its check failed, or the element is free: gets nothing, and what is left of its TCP flows hears nothing.
    pub const DEAD: u8 = 0;
    pub const ALIVE: u8 = 1;
    /// Keeps the flows it has and gets no new one.
    pub const DRAINING: u8 = 2;
    /// The same, since it is no longer configured: a persistent client's new flows go elsewhere too.
    pub const LEAVING: u8 = 4;
    /// Gets nothing, and what is left of its TCP flows is reset.
    pub const RESETTING: u8 = 5;
    /// Gets nothing, and what is left of its flows goes where the ring says. Of a service with a local real server: which of its
    /// flows another director has sent here is not known from their entries.
    pub const DEAD_BESIDE_LOCAL: u8 = 6;
    /// Alive, but new flows had better go elsewhere where their service has turns for them.
    pub const OVERLOADED: u8 = 3;
}

/// Whose turn it is, an element of `TURNS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Turn {
    /// A packed [`RingRef`]: indexes of real servers, each slot the turn of one. Length 0 = nobody's turn.
    pub sequence: u64,
    /// Turns taken or passed over: one for each new flow. Only the program writes it.
    pub taken: u64,
}

/// What a real server was sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Counter {
    pub packets: u64,
    /// Bytes of the frames, Ethernet header included.
    pub bytes: u64,
}

const _: () = assert!(size_of::<ServiceKey>() == 8);
const _: () = assert!(size_of::<Service>() == 32);
const _: () = assert!(size_of::<Real>() == 64);
const _: () = assert!(size_of::<Counter>() == 16 && size_of::<Turn>() == 16);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (zerocopy's derives prove it).
    unsafe impl aya::Pod for super::ServiceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Real {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Turn {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn persistent_clients_are_one_by_their_leading_bits() {
        let source = u32::from_ne_bytes([10, 1, 2, 3]);
        let packet = Flow { source, destination: 9, source_port: 7, destination_port: 8 };
        for (bits, expected) in [
            (32_u8, [10, 1, 2, 3]),
            (31, [10, 1, 2, 2]),
            (24, [10, 1, 2, 0]),
            (8, [10, 0, 0, 0]),
            (0, [0; 4]),
        ] {
            let service = Service { persistence: bits + 1, ..Service::default() };
            let one =
                Flow { source: u32::from_ne_bytes(expected), source_port: 0, destination_port: 0, ..packet };
            assert_eq!(service.flow(packet), one, "{bits}");
        }
        assert_eq!(Service::default().flow(packet), packet);
    }

    #[test]
    fn of_a_few_addresses_nearly_all_others_are_told_apart() {
        let addresses = |last: std::ops::Range<u8>| last.map(|last| u32::from_ne_bytes([10, 0, 0, last]));
        let filter = addresses(100..103).fold(AddressFilter::default(), AddressFilter::with);
        assert!(addresses(100..103).all(|address| filter.may_have(address)));
        // Three in 32 are not.
        let mistaken = addresses(0..100).filter(|address| filter.may_have(*address)).count();
        assert!(mistaken <= 20, "{mistaken} of 100");
        assert!(AddressFilter::ALL.may_have(0));
    }

    #[test]
    fn references_survive_packing() {
        let ring = RingRef { chunk: 131_071, length: 65_537 };
        assert_eq!(RingRef::unpack(ring.pack()), ring);
        for (half, translates, has_all_ports) in [(0, true, false), (1, false, false), (1, true, true)] {
            let addresses = AddressFilter::default().with(7);
            let table = TableRef { seed: u16::MAX, half, translates, has_all_ports, addresses };
            assert_eq!(TableRef::unpack(table.pack()), table);
        }
    }
}
