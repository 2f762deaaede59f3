//! Routing rules that are there while an instance is master.

use std::{net::IpAddr, ops::RangeInclusive};

use super::Family;

/// A line of `virtual_rules` or `static_rules`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VirtualRule {
    pub family: Family,
    pub priority: u32,
    pub action: RuleAction,
    /// `not`: it is for packets that it does not describe.
    pub inverted: bool,
    pub from: Option<(IpAddr, u8)>,
    pub to: Option<(IpAddr, u8)>,
    pub in_device: Option<String>,
    pub out_device: Option<String>,
    pub tos: u8,
    /// With the bits of it that count.
    pub mark: Option<(u32, u32)>,
    pub protocol: Option<u8>,
    pub source_ports: Option<RangeInclusive<u16>>,
    pub destination_ports: Option<RangeInclusive<u16>>,
    pub users: Option<RangeInclusive<u32>>,
    pub l3mdev: bool,
    /// Routes with a prefix of this length or less do not count.
    pub suppress_prefix_length: Option<u32>,
    /// What removes it has removed it.
    pub no_track: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleAction {
    Table(u32),
    /// To the rule of that priority.
    Goto(u32),
    Nothing,
    Blackhole,
    Unreachable,
    Prohibit,
}
