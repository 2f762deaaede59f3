//! Routing rules, as the kernel takes them.

use std::ops::RangeInclusive;

use nix::errno::Errno;
use rtnetlink::packet_route::{
    AddressFamily,
    route::RouteProtocol,
    rule::{RuleAction as Action, RuleAttribute, RuleFlags, RuleMessage, RulePortRange, RuleUidRange},
};

use super::{Netlink, NetlinkError, ask, unless};
use crate::config::model::{Family, RuleAction, VirtualRule};

impl Netlink {
    /// False: there is such a rule already.
    pub async fn add_rule(&self, rule: &VirtualRule) -> Result<bool, NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = message(rule);
        let answer = async { unless(request.execute().await, Errno::EEXIST) };
        ask(&format!("add the rule of priority {}", rule.priority), answer).await
    }

    /// False: there was none.
    pub async fn remove_rule(&self, rule: &VirtualRule) -> Result<bool, NetlinkError> {
        let request = self.handle.rule().del(message(rule));
        let answer = async { unless(request.execute().await, Errno::ENOENT) };
        ask(&format!("remove the rule of priority {}", rule.priority), answer).await
    }
}

fn message(rule: &VirtualRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.src_len = rule.from.map_or(0, |(_, length)| length);
    message.header.dst_len = rule.to.map_or(0, |(_, length)| length);
    message.header.tos = rule.tos;
    if rule.inverted {
        message.header.flags |= RuleFlags::Invert;
    }
    let (action, target) = match rule.action {
        RuleAction::Table(table) => (Action::ToTable, Some(RuleAttribute::Table(table))),
        RuleAction::Goto(priority) => (Action::Goto, Some(RuleAttribute::Goto(priority))),
        RuleAction::Nothing => (Action::Nop, None),
        RuleAction::Blackhole => (Action::Blackhole, None),
        RuleAction::Unreachable => (Action::Unreachable, None),
        RuleAction::Prohibit => (Action::Prohibit, None),
    };
    message.header.action = action;
    let ports = |range: &RangeInclusive<u16>| RulePortRange { start: *range.start(), end: *range.end() };
    let users = |range: &RangeInclusive<u32>| RuleUidRange { start: *range.start(), end: *range.end() };
    let attributes = [
        Some(RuleAttribute::Protocol(RouteProtocol::KeepAlived)),
        Some(RuleAttribute::Priority(rule.priority)),
        target,
        // A prefix of no bits is none.
        rule.from.filter(|(_, length)| *length > 0).map(|(address, _)| RuleAttribute::Source(address)),
        rule.to.filter(|(_, length)| *length > 0).map(|(address, _)| RuleAttribute::Destination(address)),
        rule.in_device.clone().map(RuleAttribute::Iifname),
        rule.out_device.clone().map(RuleAttribute::Oifname),
        rule.mark.map(|(mark, _)| RuleAttribute::FwMark(mark)),
        rule.mark.map(|(_, mask)| RuleAttribute::FwMask(mask)),
        rule.protocol.map(|protocol| RuleAttribute::IpProtocol(i32::from(protocol).into())),
        rule.source_ports.as_ref().map(ports).map(RuleAttribute::SourcePortRange),
        rule.destination_ports.as_ref().map(ports).map(RuleAttribute::DestinationPortRange),
        rule.users.as_ref().map(users).map(RuleAttribute::UidRange),
        rule.l3mdev.then_some(RuleAttribute::L3MDev(true)),
        rule.suppress_prefix_length.map(RuleAttribute::SuppressPrefixLen),
    ];
    message.attributes.extend(attributes.into_iter().flatten());
    message
}
