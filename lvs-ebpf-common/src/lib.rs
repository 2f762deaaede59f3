//! What both sides of the kernel boundary must agree on, and nothing else: the layout of map
//! values, the names and sizes of maps, the flow hash and the list of packet outcomes.
#![no_std]

pub mod address;
pub mod claim;
pub mod flow;
pub mod flow_table;
pub mod lease;
pub mod maps;
pub mod nat;
pub mod outcome;
pub mod protocol;
pub mod quic;
pub mod service;

pub use address::Address;
pub use claim::Claim;
pub use lease::{Interface, Lease, LeaseOwner, Vip, virtual_mac, virtual_mac_key};
pub use nat::{Face, LastHop, NatFlow, Reply, Wanted};
pub use outcome::Outcome;
pub use quic::{ById, ConnectionIds, ServerId};
pub use service::{AddressFilter, Counter, Real, RingRef, Service, ServiceKey, TableRef, Turn};
