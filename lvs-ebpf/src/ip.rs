//! What balancing asks of an IP packet, of whatever family.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Outcome, Real, Service, Vip, flow::Flow};

use crate::{
    forward, fragment,
    ipv6::Ipv6,
    packet::Packet,
    parse::{Ipv4, Ports},
    reset,
    service::{self, Table},
    veth, vip,
};

pub trait Ip {
    /// What the payload is.
    fn protocol(&self) -> u8;
    /// From behind the headers of IP to the end of the frame.
    fn payload(&self) -> Packet<'_>;
    /// Bytes of the payload: what follows is padding of the frame.
    fn payload_len(&self) -> usize;
    /// More fragments follow, or some went before.
    fn is_fragment(&self) -> bool;
    /// Has the header of the next protocol, unless shorter than that.
    fn is_first_fragment(&self) -> bool;
    /// Of the two addresses, for [`checksum::fold`].
    fn sum_of_addresses(&self) -> u64;

    fn service(&self, table: Table, port: u16) -> Option<&'static Service>;
    /// The flow of the service that the packet belongs to.
    fn flow(&self, service: &Service, ports: Ports) -> Flow;
    /// What is known of the address that it is for, if that is a virtual one.
    fn vip(&self) -> Option<&'static Vip>;

    /// As in [`fragment`].
    fn remember_fragment(ctx: &XdpContext, real: u32) -> bool;
    fn destination_of_fragment(ctx: &XdpContext) -> u32;
    /// As in [`forward::local`].
    fn is_meant_for_here(ctx: &XdpContext, real: &Real) -> bool;
    /// As in [`reset`].
    fn reset(ctx: &XdpContext) -> Outcome;
    /// Computes what a veth device has left to be computed.
    fn complete_checksum(ctx: &XdpContext) -> bool;
}

impl Ip for Ipv4<'_> {
    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.header.protocol
    }

    #[inline(always)]
    fn payload(&self) -> Packet<'_> {
        self.payload
    }

    #[inline(always)]
    fn payload_len(&self) -> usize {
        self.payload_len
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.header.fragment & 0x3fff_u16.to_be() != 0
    }

    #[inline(always)]
    fn is_first_fragment(&self) -> bool {
        self.header.is_first_fragment()
    }

    #[inline(always)]
    fn sum_of_addresses(&self) -> u64 {
        u64::from(self.header.source) + u64::from(self.header.destination)
    }

    #[inline(always)]
    fn service(&self, table: Table, port: u16) -> Option<&'static Service> {
        service::find(table, self.header.destination, port, self.header.protocol)
    }

    #[inline(always)]
    fn flow(&self, service: &Service, ports: Ports) -> Flow {
        service.flow(Flow {
            source: self.header.source,
            destination: self.header.destination,
            source_port: ports.source,
            destination_port: ports.destination,
        })
    }

    #[inline(always)]
    fn vip(&self) -> Option<&'static Vip> {
        vip::find(self.header.destination)
    }

    #[inline(always)]
    fn remember_fragment(ctx: &XdpContext, real: u32) -> bool {
        fragment::remember(ctx, real)
    }

    #[inline(always)]
    fn destination_of_fragment(ctx: &XdpContext) -> u32 {
        fragment::destination(ctx)
    }

    #[inline(always)]
    fn is_meant_for_here(ctx: &XdpContext, real: &Real) -> bool {
        forward::local::is_meant(ctx, real)
    }

    #[inline(always)]
    fn reset(ctx: &XdpContext) -> Outcome {
        reset::answer(ctx)
    }

    #[inline(always)]
    fn complete_checksum(ctx: &XdpContext) -> bool {
        veth::complete(ctx)
    }
}

impl Ip for Ipv6<'_> {
    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn payload(&self) -> Packet<'_> {
        self.payload
    }

    #[inline(always)]
    fn payload_len(&self) -> usize {
        self.payload_len
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.fragment.is_some()
    }

    #[inline(always)]
    fn is_first_fragment(&self) -> bool {
        self.fragment.is_first()
    }

    #[inline(always)]
    fn sum_of_addresses(&self) -> u64 {
        self.header.sum_of_addresses()
    }

    #[inline(always)]
    fn service(&self, table: Table, port: u16) -> Option<&'static Service> {
        service::find6(table, self.header.destination, port, self.protocol)
    }

    #[inline(always)]
    fn flow(&self, service: &Service, ports: Ports) -> Flow {
        let packet = Flow {
            source: 0,
            destination: self.header.destination.fold(),
            source_port: ports.source,
            destination_port: ports.destination,
        };
        service.flow6(self.header.source, packet)
    }

    #[inline(always)]
    fn vip(&self) -> Option<&'static Vip> {
        vip::find_v6(self.header.destination)
    }

    #[inline(always)]
    fn remember_fragment(ctx: &XdpContext, real: u32) -> bool {
        fragment::remember6(ctx, real)
    }

    #[inline(always)]
    fn destination_of_fragment(ctx: &XdpContext) -> u32 {
        fragment::destination6(ctx)
    }

    #[inline(always)]
    fn is_meant_for_here(ctx: &XdpContext, real: &Real) -> bool {
        forward::local::is_meant6(ctx, real)
    }

    #[inline(always)]
    fn reset(ctx: &XdpContext) -> Outcome {
        reset::answer6(ctx)
    }

    #[inline(always)]
    fn complete_checksum(ctx: &XdpContext) -> bool {
        veth::complete6(ctx)
    }
}
