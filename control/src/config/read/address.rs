//! What virtual_ipaddress and virtual_ipaddress_excluded say: the addresses that move, and of which family an instance
//! is.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{Item, Items, Reader, value, value::Wrong};
use crate::{
    config::{
        diagnostic::{Class, Report, quote},
        model::{Family, Version, VirtualAddress},
        room::push,
        source::Span,
        tree::Statement,
    },
    vrrp::packet::max_addresses,
};

const ADVERTISED: &str = "virtual_ipaddress";
const EXCLUDED: &str = "virtual_ipaddress_excluded";

/// The addresses of one instance.
pub struct Addresses {
    pub advertised: Vec<VirtualAddress>,
    pub excluded: Vec<VirtualAddress>,
}

/// One line.
struct Entry {
    address: VirtualAddress,
    span: Span,
    has_length: bool,
}

impl Reader<'_> {
    /// As keepalived has it: the first advertised address tells, else whatever else is an address.
    pub fn family(&mut self, items: &Items<'_>) -> Family {
        let lines = |word| items.all(word).flat_map(|block| block.body()).map(|entry| entry.word());
        let values = ["unicast_src_ip", "mcast_src_ip"].into_iter().filter_map(|word| items.last(word));
        let values = values.filter_map(|item| item.statement.words().nth(1));
        let old = self.flag(items, "native_ipv6").then_some(Family::V6);
        let family_of = |text: &str| {
            let address = text.split('/').next().unwrap_or(text);
            address.parse().ok().map(Family::of)
        };
        let advertised = lines(ADVERTISED).find_map(|word| family_of(word.text));
        let others = values.chain(lines("unicast_peer")).find_map(|word| family_of(word.text));
        advertised.or(old).or(others).unwrap_or(Family::V4)
    }

    pub fn addresses(
        &mut self,
        items: &Items<'_>,
        item: Item<'_>,
        family: Family,
        version: Version,
    ) -> Addresses {
        let mut here = HashMap::new();
        let advertised = self.entries(items, ADVERTISED, &mut here);
        let excluded = self.entries(items, EXCLUDED, &mut here);
        for entry in advertised.iter().filter(|entry| Family::of(entry.address.address) != family) {
            let message = format!("virtual_ipaddress: {} in an instance of {family}", entry.address.address);
            let report = Report::error(Class::MixedFamilies, entry.span, message);
            self.reports
                .push(report.help("move it to virtual_ipaddress_excluded, or to an instance of its own"));
        }
        let without_length = advertised.iter().chain(&excluded).find(|entry| !entry.has_length);
        if let Some(Entry { address, span, .. }) = without_length {
            let message = format!(
                "virtual_ipaddress: no prefix length means {}/{}",
                address.address, address.prefix_len
            );
            let report = Report::warning(Class::HostAddress, *span, message);
            let whole = Family::of(address.address).bits();
            self.reports
                .push(report.help(format!("write the length of the subnet, or /{whole} if it is meant")));
        }
        let may_be_empty = self.flag(items, "no_virtual_ipaddress");
        let empty = items.all(ADVERTISED).all(|block| block.body().is_empty());
        if empty && !may_be_empty && !items.misspelt.contains(&ADVERTISED) {
            let message = "vrrp_instance without virtual_ipaddress";
            let span = item.statement.span();
            let report = match version {
                Version::V2 if !excluded.is_empty() => Report::warning(Class::Missing, span, message),
                Version::V2 => Report::warning(Class::Missing, span, format!("{message}: it moves nothing")),
                Version::V3 => Report::error(Class::Missing, span, message),
            };
            self.reports.push(report.help("write no_virtual_ipaddress if that is meant"));
        }
        let most = max_addresses(family);
        if advertised.len() > most {
            let message = format!("{} addresses, an advert holds {most}", advertised.len());
            let report = Report::error(Class::TooManyAddresses, item.statement.span(), message);
            self.reports.push(report.help("move others to virtual_ipaddress_excluded"));
        }
        let bare = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.address).collect();
        Addresses { advertised: bare(advertised), excluded: bare(excluded) }
    }

    /// Addresses that do not move, with their interfaces.
    pub(super) fn static_addresses(
        &mut self,
        items: &Items<'_>,
        usual: &str,
    ) -> Vec<(String, VirtualAddress)> {
        const STATIC: &str = "static_ipaddress";
        let mut addresses: Vec<(String, VirtualAddress)> = Vec::new();
        let mut seen = HashSet::new();
        for block in items.all(STATIC) {
            self.extra(block, &block.statement.arguments());
            for statement in block.body() {
                let Some(Entry { address, span, .. }) = self.virtual_address(STATIC, statement) else {
                    continue;
                };
                let interface = address.device.clone().unwrap_or_else(|| usual.to_owned());
                if address.vmac {
                    self.error(
                        Class::Conflict,
                        span,
                        "use_vmac: an address that does not move has no virtual MAC",
                    );
                } else if let Some(first) = self.vips.get(&address.address).copied() {
                    let message = format!("{} belongs to a vrrp_instance, which moves it", address.address);
                    self.reports.push(Report::error(Class::Conflict, span, message).first(first));
                } else if !seen.insert((interface.clone(), address.address)) {
                    let message = format!("{} is listed twice: the first counts", address.address);
                    self.warn(Class::Duplicate, span, message);
                } else {
                    push(&mut addresses, (interface, address));
                }
            }
        }
        addresses
    }

    /// The lines of all blocks of a word; `here` are the addresses of this instance so far.
    fn entries(
        &mut self,
        items: &Items<'_>,
        word: &'static str,
        here: &mut HashMap<IpAddr, Span>,
    ) -> Vec<Entry> {
        let mut entries = Vec::new();
        for block in items.all(word) {
            self.extra(block, &block.statement.arguments());
            for statement in block.body() {
                let Some(entry) = self.virtual_address(word, statement) else { continue };
                let (address, span) = (entry.address.address, entry.span);
                if let Some(first) = here.insert(address, span) {
                    let message = format!("{address} is listed twice: the first counts");
                    self.reports.push(Report::warning(Class::Duplicate, span, message).first(first));
                    continue;
                }
                if let Some(first) = self.vips.insert(address, span) {
                    let message = format!("{address} belongs to another vrrp_instance");
                    self.reports.push(Report::error(Class::Duplicate, span, message).first(first));
                }
                push(&mut entries, entry);
            }
        }
        entries
    }

    /// `ADDRESS[/LENGTH] [dev IF] [label L] [brd B] [scope S]` and flags.
    fn virtual_address(&mut self, block: &str, entry: Statement<'_>) -> Option<Entry> {
        self.address_has_no_block(entry);
        let (address, length) = self.word(block, &entry.word(), |word| match word.split_once('/') {
            Some((address, length)) => {
                let address = value::host(address)?;
                let bits = Family::of(address).bits();
                Ok((address, Some(value::number(0..=bits.into())(length)?)))
            }
            None => Ok((value::host(word)?, None)),
        })?;
        let span = entry.word().span;
        if address.is_loopback() {
            let message = format!("{block}: a loopback address never leaves the node");
            self.error(Class::BadValue, span, message);
        }
        let bits = Family::of(address).bits();
        let mut read = VirtualAddress {
            prefix_len: length.and_then(|length| u8::try_from(length).ok()).unwrap_or(bits),
            ..VirtualAddress::of(address)
        };
        // As in keepalived: deprecated, so that the kernel takes it for no connection's source of its own accord.
        if address.is_ipv6() && read.prefix_len == bits {
            read.preferred = Some(0);
        }
        self.address_options(entry, &mut read);
        // Who has it stands in two tables.
        if !self.fits(size_of::<Entry>() + size_of::<VirtualAddress>() + 2 * 64, span) {
            return None;
        }
        Some(Entry { address: read, span, has_length: length.is_some() })
    }

    fn address_options(&mut self, entry: Statement<'_>, read: &mut VirtualAddress) {
        const TAKE_A_VALUE: [&str; 8] =
            ["dev", "label", "brd", "broadcast", "scope", "peer", "preferred_lft", "track_group"];
        const ALL: [&str; 12] = [
            "dev",
            "label",
            "brd",
            "broadcast",
            "scope",
            "preferred_lft",
            "-nodad",
            "home",
            "mngtmpaddr",
            "noprefixroute",
            "autojoin",
            "use_vmac",
        ];
        let arguments = entry.arguments();
        let mut words = arguments.as_slice();
        while let [word, rest @ ..] = words {
            let text = word.text;
            let (value, rest) = match rest {
                [] if TAKE_A_VALUE.contains(&text) => {
                    self.error(Class::BadValue, word.span, format!("{text} needs a value"));
                    return;
                }
                [value, rest @ ..] if TAKE_A_VALUE.contains(&text) => (value, rest),
                rest => (word, rest),
            };
            let is_v6 = read.address.is_ipv6();
            match text {
                "-nodad" | "home" | "mngtmpaddr" if !is_v6 => {
                    self.error(Class::Conflict, word.span, format!("{text} is a word of IPv6"));
                }
                "label" | "brd" | "broadcast" if is_v6 => {
                    self.error(Class::Conflict, word.span, format!("{text} is a word of IPv4"));
                }
                "dev" => read.device = self.word("dev", value, value::interface),
                "label" => read.label = self.word("label", value, value::interface),
                "brd" | "broadcast" => {
                    let prefix_len = read.prefix_len;
                    let of = |word: &str| broadcast(read.address, prefix_len, word);
                    read.broadcast = self.word("brd", value, of).flatten();
                }
                "scope" => read.scope = self.word("scope", value, scope).unwrap_or(0),
                "preferred_lft" => read.preferred = self.word("preferred_lft", value, lifetime).flatten(),
                "-nodad" => read.flags.detect_duplicates = true,
                "home" => read.flags.home = true,
                "mngtmpaddr" => read.flags.manage_temporary = true,
                "noprefixroute" => read.flags.no_prefix_route = true,
                "autojoin" => read.flags.auto_join = true,
                "use_vmac" => read.vmac = true,
                "peer" => {
                    self.warn(Class::Unsupported, word.span, "peer is not supported: the address has none");
                }
                "no_track" => {
                    let message = "no_track has no effect: an address that something removes is put back";
                    self.warn(Class::Ignored, word.span, message);
                }
                "track_group" => {
                    let message = "track_group has no effect: an address that something removes is put back";
                    self.warn(Class::Ignored, word.span, message);
                }
                _ => return self.one_entry_a_line(word, &ALL),
            }
            words = rest;
        }
    }
}

/// `+` is the broadcast address of the subnet, `-` none, as for `ip address`.
fn broadcast(address: IpAddr, prefix_len: u8, word: &str) -> value::Value<Option<Ipv4Addr>> {
    match (word, address) {
        ("-", _) => Ok(None),
        ("+", _) if prefix_len > 30 => Err(Wrong::new(format!("a /{prefix_len} has no broadcast address"))),
        ("+", IpAddr::V4(address)) => {
            let hosts = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
            Ok(Some(Ipv4Addr::from_bits(address.to_bits() | hosts)))
        }
        _ => {
            word.parse().map(Some).map_err(|_| Wrong::new(format!("{} is not an IPv4 address", quote(word))))
        }
    }
}

/// Seconds for which the kernel may choose the address as a source; `forever` is the default.
fn lifetime(word: &str) -> value::Value<Option<u32>> {
    match word {
        "forever" => Ok(None),
        seconds => value::number(0..=u32::MAX - 1)(seconds).map(Some),
    }
}

/// Numbers of linux/rtnetlink.h.
pub(super) fn scope(word: &str) -> value::Value<u8> {
    match word.parse() {
        Ok(number) => Ok(number),
        Err(_) => {
            value::choice(&[("global", 0), ("site", 200), ("link", 253), ("host", 254), ("nowhere", 255)])(
                word,
            )
        }
    }
}
