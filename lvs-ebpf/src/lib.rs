//! The XDP program's parts, compiled for BPF and, for unit tests, for the host.
#![no_std]

pub mod pipeline;

mod arp;
mod checksum;
mod claim;
mod event;
mod flow_table;
mod forward;
mod fragment;
mod icmp;
mod icmp_error;
mod icmpv6;
mod interface;
mod ip;
mod ipv6;
pub mod maps;
mod ndp;
mod packet;
mod parse;
mod quic;
mod reset;
mod schedule;
mod service;
pub mod veth;
mod vip;
pub mod virtual_mac;
mod vlan;
