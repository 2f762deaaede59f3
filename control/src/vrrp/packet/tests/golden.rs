//! What keepalived sends: every captured frame decodes, and encodes to the same bytes.

use std::sync::Arc;

use bytes::BytesMut;

use super::*;
use crate::{
    announce::announcement,
    config::model::{Secret, Signing, SigningKey, SigningMode},
    vrrp::auth::{Ah, Guard, Numbers},
};

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VIRTUAL_MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];

struct Golden {
    file: &'static str,
    frames: &'static str,
    format: Format,
    priority: u8,
    mac: [u8; 6],
    is_signed: bool,
}

macro_rules! golden {
    ($file:literal, $format:expr, $priority:literal) => {
        golden!($file, $format, $priority, MAC)
    };
    ($file:literal, $format:expr, $priority:literal, $mac:expr) => {
        Golden {
            file: $file,
            frames: include_str!(concat!("../../../../testdata/keepalived-", $file, ".hex")),
            format: $format,
            priority: $priority,
            mac: $mac,
            is_signed: $file.ends_with("_hmac"),
        }
    };
}

fn all() -> Vec<Golden> {
    let three = Format {
        vrid: Vrid::new(52).unwrap(),
        interval: Duration::from_secs(3),
        addresses: [100, 101, 102].map(v4).to_vec(),
        ..v2()
    };
    let with = |authentication| Format { authentication, ..v2() };
    let unicast = |format| Format { peers: vec![PEER], ..format };
    let message_only = Format { checksum: Checksum::Message, ..v3(50) };
    let (pass, ah) = (Authentication::Pass(*b"s3cr3t\0\0"), Authentication::Ah(*b"s3cr3t\0\0"));
    vec![
        golden!("2.2.7/v2_noauth", v2(), 100),
        golden!("2.2.7/v2_noauth_3vips", three, 150),
        golden!("2.2.7/v2_pass", with(pass), 100),
        golden!("2.2.7/v2_pass_8", with(Authentication::Pass(*b"longpass")), 100),
        golden!("2.2.7/v2_ah", with(ah), 100),
        golden!("2.2.7/v2_ah_unicast", unicast(with(ah)), 100),
        golden!("2.2.7/v2_unicast", unicast(v2()), 100),
        golden!("2.2.7/v2_vmac", v2(), 100, VIRTUAL_MAC),
        golden!("2.2.7/v3_ipv4", v3(50), 100),
        golden!("2.2.7/v3_owner255", v3(100), 255),
        golden!("2.2.7/v3_unicast", unicast(v3(50)), 100),
        golden!("2.4.3/v2_noauth", v2(), 100),
        golden!("2.4.3/v2_pass", with(pass), 100),
        golden!("2.4.3/v2_vmac", v2(), 100, VIRTUAL_MAC),
        golden!("2.4.3/v2_hmac", v2(), 100),
        golden!("2.4.3/v3_hmac", v3(50), 100),
        golden!("2.4.3/v3_ipv4", v3(50), 100),
        golden!("2.4.3/v3_ipv4_chksum_as_v2", message_only, 100),
    ]
}

/// Whole Ethernet frames that keepalived sent, each behind a line `# kind`.
pub fn frames(text: &str) -> Vec<(&str, Vec<u8>)> {
    let mut lines = text.lines();
    std::iter::from_fn(|| {
        let kind = lines.next()?.strip_prefix("# ").unwrap();
        let hex = lines.next().unwrap().as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        Some((kind, hex.chunks(2).map(byte).collect()))
    })
    .collect()
}

/// A node about to send what was captured, or that has heard nothing yet.
fn guard(format: &Format, is_signed: bool, before: u16) -> Guard {
    if let Authentication::Ah(key) = format.authentication {
        // The captured sequence numbers are those of the packets.
        return Guard::Ah(Ah::new(key, !format.peers.is_empty(), Numbers::up_to(before.into())));
    }
    let secret = Secret::new((0..32).collect());
    let signing = Signing {
        keys: vec![SigningKey { id: 1, secret }],
        active: 1,
        window: Some(Duration::from_secs(5)),
        mode: SigningMode::Enforce,
    };
    Guard::new(format, is_signed.then_some(&signing), Arc::default(), Duration::ZERO)
}

/// When a signed advert was sent: its trailer says so, in parts of 65536.
fn signed_at(ip: &[u8]) -> Duration {
    let Some((_, &[_, _, _, _, a, b, c, d, e, f, ..])) = ip.split_last_chunk::<28>() else { unreachable!() };
    let nanos = (u64::from(u16::from_be_bytes([e, f])) * 1_000_000_000).div_ceil(1 << 16);
    Duration::from_secs(u32::from_be_bytes([a, b, c, d]).into()) + Duration::from_nanos(nanos)
}

#[test]
fn every_captured_advert_decodes_and_encodes_to_the_same_bytes() {
    for Golden { file, frames: text, format, priority, mac, is_signed } in all() {
        let mut adverts = 0;
        for (kind, frame) in frames(text) {
            if kind == "GARP" && format.peers.is_empty() {
                // The unicast captures hold an ordinary query for the peer instead.
                assert_eq!(*frame, *announcement(VIP, mac, false), "{file}");
            }
            if !kind.starts_with("VRRP") {
                continue;
            }
            let (ethernet, ip) = frame.split_at(14);
            assert_eq!(ethernet[12..], [8, 0]);
            let identification = u16::from_be_bytes([ip[4], ip[5]]);
            let priority = if kind.ends_with(" prio 0") { 0 } else { priority };

            let mut packet = BytesMut::from(&sent(&format, priority, identification)[..]);
            let wall = if is_signed { signed_at(ip) } else { Duration::ZERO };
            guard(&format, is_signed, identification - 1).seal(&format, &mut packet, wall);
            assert_eq!(packet, ip, "{file}: {kind} encoded");

            let mut receiver = guard(&format, is_signed, 0);
            let datagram = receiver.open(Datagram::parse(ip).unwrap());
            let advert = Advert { priority, interval: format.interval };
            let received = Received { advert, checksum: format.checksum, addresses_differ: false };
            assert_eq!(mirrored(&format).accept(&datagram), Ok(received), "{file}: {kind} decoded");
            let peer = mirrored(&format);
            assert_eq!(receiver.check(&peer, &datagram, wall), Ok(()), "{file}: {kind} verified");
            if is_signed || matches!(format.authentication, Authentication::Ah(_)) {
                let again = receiver.check(&peer, &datagram, wall);
                assert_eq!(again, Err(Rejection::Replay), "{file}: {kind} again");
            }
            adverts += 1;
        }
        assert_eq!(adverts, 2, "{file}");
    }
}
