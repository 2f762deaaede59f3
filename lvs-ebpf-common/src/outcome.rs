//! What can become of a packet. One list: the XDP program returns it, the counters are indexed by it,
//! `lvsd status` prints it.
//!
//! First those that are sent, then those the kernel gets, then those that are dropped: so the program tells them apart by few
//! comparisons.

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// The fate of one packet.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Outcome {
            /// Every outcome, in the order of the counters.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$name,)+];

            /// Name in `lvsd status` and in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Outcome::$name => $label,)+ }
            }

            /// One sentence for an operator.
            pub const fn describe(self) -> &'static str {
                match self { $(Outcome::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

outcomes! {
    /// Forwarded to a real server, out of the interface it came in on.
    Forwarded = "forwarded",
    /// A real server's answer, sent to its client in its service's name (NAT), out of the interface it came in on.
    NatReply = "nat_reply",
    /// An ARP request for a virtual address, answered under the lease.
    ArpAnswered = "arp_answered",
    /// A neighbour solicitation for a virtual IPv6 address, answered under the lease.
    SolicitationAnswered = "solicitation_answered",
    /// An ICMP echo request to a virtual address, answered under the lease.
    EchoAnswered = "echo_answered",
    /// TCP of a connection whose real server is dead: the client was told (TCP reset).
    ConnectionReset = "connection_reset",
    /// Its TTL ended at this node, which routes by NAT: the sender was told (ICMP time exceeded).
    TimeExceeded = "time_exceeded",
    /// Too large for the way to its real server or, as an answer by NAT, to its client, with DF set or over IPv6: the sender was told the size that fits (ICMP fragmentation needed, ICMPv6 packet too big).
    FragmentationNeeded = "fragmentation_needed",
    /// Forwarded to a real server behind another interface.
    Redirected = "redirected",
    /// A real server's answer, sent to its client in its service's name (NAT), out of another interface.
    NatReplyRedirected = "nat_reply_redirected",
    /// Not for a virtual address or service: left to the kernel unchanged.
    NotOurs = "not_ours",
    /// For a real server that is this node itself: left to the kernel unchanged, which has the virtual address while master.
    Local = "local",
    /// For a virtual address, in a frame for another host's MAC, as a switch floods them: left to the kernel, which ignores it.
    OtherHost = "other_host",
    /// Too short for its ARP or IP header, so not known whether ours: left to the kernel, which drops it.
    TruncatedHeader = "truncated_header",
    /// An IP version or length that contradicts the frame: left to the kernel, which drops it.
    BadIpHeader = "bad_ip_header",
    /// A fragment to a virtual address, of whose packet the first fragment went to no real server: left to the kernel unchanged.
    StrayFragment = "stray_fragment",
    /// An answer of a real server by NAT while net.ipv4.ip_forward is off: left to the kernel unchanged, which takes its own and drops the others.
    NotForwarding = "not_forwarding",
    /// An ARP request for a virtual address while this node holds no lease: dropped, so that the kernel stays silent too.
    ArpWithoutLease = "arp_without_lease",
    /// A neighbour solicitation for a virtual IPv6 address while this node holds no lease: dropped, so that the kernel stays silent too.
    SolicitedWithoutLease = "solicited_without_lease",
    /// An echo request for a virtual address while this node holds no lease: dropped.
    EchoWithoutLease = "echo_without_lease",
    /// An echo request for a virtual address that this host takes no packets for (no_accept): dropped.
    EchoNotAccepted = "echo_not_accepted",
    /// TCP to a service address, shorter than its TCP header: dropped.
    TruncatedTcp = "truncated_tcp",
    /// TCP to a service whose data offset is below five words: dropped.
    BadTcpOffset = "bad_tcp_offset",
    /// UDP to a service address, shorter than its UDP header: dropped.
    TruncatedUdp = "truncated_udp",
    /// UDP to a service whose length field is below eight or beyond the packet: dropped.
    BadUdpLength = "bad_udp_length",
    /// IPv6 to a virtual or multicast address with more than four extension headers, so not known whether a question: dropped.
    ExtensionHeaders = "extension_headers",
    /// The first fragment of a real server's answer by NAT: dropped, because later fragments carry no ports to translate by.
    Fragment = "fragment",
    /// The service has no real server that may take traffic: dropped.
    NoReal = "no_real",
    /// TCP of a connection whose real server is dead, and no reset is configured or due: dropped. Its next SYN goes to another one.
    DeadReal = "dead_real",
    /// The MAC of the real server, or of the next hop to the client of a NAT service, is not known yet: dropped, the neighbour is being asked for.
    NoNeighbour = "no_neighbour",
    /// Too large for the way to its real server or client, and the sender cannot be told to send less (no DF set, over IPv6 no more than 1280 bytes): dropped, because XDP cannot fragment.
    TooBig = "too_big",
    /// An answer by NAT to a client that a route says is not to be reached: dropped.
    NoRoute = "no_route",
    /// An answer of a real server that several NAT services share, of a flow that this node has not seen a client's packet of: dropped.
    UnknownNatFlow = "unknown_nat_flow",
    /// Its TTL ended at this node, which routes by NAT, and the sender cannot be told: dropped.
    TtlEnded = "ttl_ended",
    /// The driver leaves no room before the frame for the tunnel's header: dropped.
    NoHeadroom = "no_headroom",
    /// A table entry pointed outside its table: dropped. Never seen unless lvsd has a bug.
    BadTable = "bad_table",
}

impl Outcome {
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_index_is_the_position_in_the_list() {
        for (position, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, position);
        }
    }
}
