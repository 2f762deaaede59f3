//! What a single word means as a number, a time, an address.

use std::{fmt, net::IpAddr, ops::RangeInclusive, time::Duration};

use super::super::{
    diagnostic::{Class, quote},
    keywords::nearest_of,
    model::Family,
};

/// Why a word cannot be read as what it should be.
#[derive(Debug, PartialEq)]
pub struct Wrong {
    pub class: Class,
    pub message: String,
    pub help: Option<String>,
}

pub type Value<T> = Result<T, Wrong>;

impl Wrong {
    pub fn new(message: impl Into<String>) -> Self {
        Self { class: Class::BadValue, message: message.into(), help: None }
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { class: Class::Unsupported, ..Self::new(message) }
    }

    pub fn class(self, class: Class) -> Self {
        Self { class, ..self }
    }

    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

impl<E: std::error::Error> From<E> for Wrong {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// A decimal integer, as far as any setting needs one.
pub fn integer(word: &str) -> Value<i64> {
    let digits = word.strip_prefix('-').unwrap_or(word);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return word.parse().map_err(|_| Wrong::new(format!("{} is too large", quote(word))));
    }
    let wrong = Wrong::new(format!("{} is not a whole number", quote(word)));
    Err(match word {
        _ if word.starts_with("0x") || word.starts_with("0X") => wrong.help("write it in decimal"),
        _ if word.is_empty() || !word.starts_with(|c: char| c.is_ascii_digit()) => wrong,
        _ => wrong.help("digits only, without a unit"),
    })
}

pub fn number(range: RangeInclusive<u32>) -> impl Fn(&str) -> Value<u32> {
    move |word| {
        let number = integer(word)?;
        let outside = || Wrong::new(format!("{number} is not in {} to {}", range.start(), range.end()));
        u32::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(outside)
    }
}

pub fn weight(word: &str) -> Value<u16> {
    number(0..=65535)(word).and_then(|weight| Ok(u16::try_from(weight)?))
}

/// Seconds with up to six decimals. keepalived knows neither units nor a decimal comma.
pub fn seconds(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Value<Duration> {
    move |word| {
        let time = decimal(word)?;
        let in_seconds = |time: &Duration| time.as_secs_f64();
        if range.contains(&time) {
            return Ok(time);
        }
        let (from, to) = (in_seconds(range.start()), in_seconds(range.end()));
        Err(Wrong::new(format!("{word} is not in {from} to {to} seconds")))
    }
}

fn decimal(word: &str) -> Value<Duration> {
    let (whole, fraction) = word.split_once('.').unwrap_or((word, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        let wrong = Wrong::new(format!("{} is not a number of seconds", quote(word)));
        return Err(match word.replacen(',', ".", 1) {
            point if point != word && decimal(&point).is_ok() => wrong.help(format!("write {point}")),
            _ if word.starts_with(|c: char| c.is_ascii_digit()) => {
                wrong.help("digits and one `.`, without a unit")
            }
            _ => wrong,
        });
    }
    if fraction.len() > 6 {
        return Err(Wrong::new(format!("{} is finer than a microsecond", quote(word))));
    }
    let whole: u32 = match whole {
        "" => 0,
        whole => whole.parse().map_err(|_| Wrong::new(format!("{} is too large", quote(word))))?,
    };
    let micros: u64 = format!("{fraction:0<6}").parse()?;
    Ok(Duration::from_secs(u64::from(whole)) + Duration::from_micros(micros))
}

/// An address of one host, of either family.
pub fn host(word: &str) -> Value<IpAddr> {
    let Ok(host) = word.parse::<IpAddr>() else { return Err(no_address(word)) };
    let what = match host {
        _ if host.is_unspecified() => "no address",
        _ if host.is_multicast() => "a multicast address",
        IpAddr::V4(host) if host.is_broadcast() => "the broadcast address",
        IpAddr::V6(host) if host.to_ipv4_mapped().is_some() => "an IPv4 address in disguise",
        _ => return Ok(host),
    };
    Err(Wrong::new(format!("{host} is {what}, not that of a host")))
}

/// As [`host`], of an instance of this family.
pub fn host_of(family: Family) -> impl Fn(&str) -> Value<IpAddr> {
    move |word| {
        let host = host(word)?;
        if Family::of(host) == family { Ok(host) } else { Err(other_family(host, family)) }
    }
}

/// Where multicast adverts go.
pub fn group(family: Family) -> impl Fn(&str) -> Value<IpAddr> {
    move |word| match word.parse::<IpAddr>() {
        Ok(group) if Family::of(group) != family => Err(other_family(group, family)),
        Ok(group) if group.is_multicast() => Ok(group),
        _ => Err(Wrong::new(format!("{} is not a multicast address", quote(word)))),
    }
}

fn other_family(address: IpAddr, family: Family) -> Wrong {
    Wrong { class: Class::MixedFamilies, ..Wrong::new(format!("{address} in an instance of {family}")) }
}

fn no_address(word: &str) -> Wrong {
    let wrong = Wrong::new(format!("{} is not an IP address", quote(word)));
    let host = |text: &str| text.parse::<IpAddr>().is_ok();
    match (word.split_once('/'), word.split_once('-'), word.split_once('%')) {
        (Some((address, _)), ..) if host(address) => {
            wrong.help(format!("without a prefix length: {address}"))
        }
        (_, Some((address, _)), _) if host(address) => wrong.help("ranges stand in a virtual_server_group"),
        (.., Some((address, _))) if host(address) => wrong.help(format!("without an interface: {address}")),
        _ => wrong,
    }
}

pub fn port(word: &str) -> Value<u16> {
    Ok(u16::try_from(number(1..=65535)(word)?)?)
}

/// 0 = all of them.
pub fn service_port(word: &str) -> Value<u16> {
    Ok(u16::try_from(number(0..=65535)(word)?)?)
}

/// A name of an interface, or a label of an address: the same room in the kernel.
pub fn interface(word: &str) -> Value<String> {
    const IFNAMSIZ: usize = 16;
    if word.is_empty()
        || word == "."
        || word == ".."
        || word.contains(|c: char| c.is_whitespace() || c == '/')
    {
        return Err(Wrong::new(format!("{} is no name for an interface", quote(word))));
    }
    if word.len() >= IFNAMSIZ {
        let message = format!("{} has {} bytes, an interface name at most 15", quote(word), word.len());
        return Err(Wrong::new(message));
    }
    Ok(word.to_owned())
}

/// Text without blanks: names, paths, host names.
pub fn text(word: &str) -> Value<String> {
    if word.is_empty() {
        return Err(Wrong::new("an empty value"));
    }
    // What goes into a request line or a header must not be able to end it.
    if word.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Wrong::new(format!("{} holds a blank", quote(word))));
    }
    if let Some(inside) = word.strip_prefix('\'') {
        let inside = inside.trim_end_matches('\'');
        return Err(Wrong::new("single quotes are part of the value here")
            .class(Class::SingleQuotes)
            .help(format!("write \"{inside}\"")));
    }
    Ok(word.to_owned())
}

pub fn boolean(word: &str) -> Value<bool> {
    choice(&[("on", true), ("true", true), ("yes", true), ("off", false), ("false", false), ("no", false)])(
        word,
    )
}

/// One of a few words, in exactly this spelling.
pub fn choice<T: Copy>(choices: &[(&'static str, T)]) -> impl Fn(&str) -> Value<T> {
    move |word| {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == word) {
            return Ok(*value);
        }
        let names = choices.iter().map(|(name, _)| *name);
        let wrong = Wrong::new(format!("{} is not one of {}", quote(word), List(names.clone())));
        Err(match nearest_of(names, word) {
            Some(name) => wrong.help(format!("did you mean {name}?")),
            None => wrong,
        })
    }
}

struct List<I>(I);

impl<I: Iterator<Item = &'static str> + Clone> fmt::Display for List<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.clone().enumerate() {
            write!(f, "{}{name}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> impl Fn(&str) -> Value<Duration> {
        seconds(Duration::from_millis(1)..=Duration::from_secs(100))
    }

    #[test]
    fn seconds_take_a_point_and_nothing_else() {
        assert_eq!(range()("6"), Ok(Duration::from_secs(6)));
        assert_eq!(range()(".5"), Ok(Duration::from_millis(500)));
        assert_eq!(range()("1.000001"), Ok(Duration::from_micros(1_000_001)));
        for wrong in [
            "",
            ".",
            "1,5",
            "1s",
            "-1",
            "1e3",
            "+1",
            "0x1",
            "1.5.0",
            "0",
            "100.1",
            "1.0000001",
            "99999999999",
        ] {
            assert!(range()(wrong).is_err(), "{wrong}");
        }
        assert_eq!(range()("1,5").map_err(|wrong| wrong.help), Err(Some("write 1.5".to_owned())));
    }

    #[test]
    fn numbers_take_digits_and_nothing_else() {
        assert_eq!(number(1..=9)("9"), Ok(9));
        assert_eq!(number(1..=9)("007"), Ok(7));
        for wrong in ["", "-", "0", "10", "5x", "0x5", " 5", "+5", "1.0", "99999999999999999999999"] {
            assert!(number(1..=9)(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_answered_with_the_reason() {
        let said = |word| host(word).map_err(|wrong| wrong.message).unwrap_err();
        assert!(said("ff02::12").contains("multicast"));
        assert!(said("2001:db8::1/64").contains("not an IP address"));
        assert!(said("224.0.0.18").contains("multicast"));
        assert!(said("10.0.0.256").contains("not an IP address"));
    }

    #[test]
    fn an_interface_name_fits_the_kernel() {
        assert!(interface("enp0s31f6.1234").is_ok());
        assert!(interface("fifteen-letters").is_ok());
        assert!(interface("sixteen--letters").is_err());
        assert!(interface("a/b").is_err());
    }
}
