//! Does the real server's host answer an ICMP echo request?

use std::{io, time::Duration};

use tokio::time::timeout;

use super::connect::Icmp;
use crate::{checksum::Sum, config::model::Family};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    #[error("{0}")]
    Refused(io::ErrorKind),
    #[error("no echo within {0:?}")]
    NoReply(Duration),
}

/// What is echoed: as long as keepalived's.
const PAYLOAD: usize = 128;
const HEADER: usize = 8;
/// A raw socket of IPv4 shows the header, options and all.
const LONGEST: usize = 60 + HEADER + PAYLOAD;

/// `token` is what the echo must repeat.
pub async fn ask(socket: Icmp, token: u64, limit: Duration) -> Result<(), PingError> {
    let refused = |error: io::Error| PingError::Refused(error.kind());
    let request = request(socket.family, token);
    let has_header = socket.raw && socket.family == Family::V4;
    socket.socket.send(&request).await.map_err(refused)?;
    let echo = async {
        let mut packet = [0; LONGEST];
        loop {
            let length = socket.socket.recv(&mut packet).await.map_err(refused)?;
            // A raw socket sees every ICMP message of that host, the echoes of other checks among them.
            if is_echo(packet.get(..length).unwrap_or_default(), has_header, &request) {
                return Ok(());
            }
        }
    };
    timeout(limit, echo).await.unwrap_or(Err(PingError::NoReply(limit)))
}

/// What asks and what answers: RFC 792, RFC 4443 4.
const fn kinds(family: Family) -> [u8; 2] {
    match family {
        Family::V4 => [8, 0],
        Family::V6 => [128, 129],
    }
}

/// The identifier is for raw sockets; else the kernel sets its own. Over IPv6 it also sets the checksum.
fn request(family: Family, token: u64) -> [u8; HEADER + PAYLOAD] {
    let [kind, _] = kinds(family);
    let mut request = [0; HEADER + PAYLOAD];
    let [a, b, ..] = token.to_be_bytes();
    for (place, byte) in request.iter_mut().zip([kind, 0, 0, 0, a, b, 0, 1]) {
        *place = byte;
    }
    for (place, byte) in request.iter_mut().skip(HEADER).zip(token.to_be_bytes().into_iter().cycle()) {
        *place = byte;
    }
    Sum::default().put(&mut request, 2);
    request
}

fn is_echo(packet: &[u8], has_header: bool, request: &[u8]) -> bool {
    let message = match packet.first() {
        Some(first) if has_header => packet.get(usize::from(first & 0x0f) * 4..),
        Some(_) => Some(packet),
        None => None,
    };
    let Some(message) = message else { return false };
    let same = |from: usize, to: usize| message.get(from..to) == request.get(from..to);
    let answers =
        |[asks, answers]: [u8; 2]| request.starts_with(&[asks]) && message.starts_with(&[answers, 0]);
    // Type and code, sequence, payload.
    [Family::V4, Family::V6].map(kinds).into_iter().any(answers)
        && same(6, HEADER)
        && same(HEADER, request.len())
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
        sync::Arc,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::check::{connect, testing::check_of};

    fn checked(address: IpAddr) -> crate::config::model::Check {
        check_of(SocketAddr::from((address, 0)))
    }

    #[tokio::test]
    async fn this_host_answers() {
        let all = [Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)];
        for (address, raw) in all.into_iter().flat_map(|address| [(address, false), (address, true)]) {
            let socket = match connect::icmp(&checked(address), raw) {
                Ok(socket) => socket,
                Err(error) => {
                    lvs_tests::skip(&format!("no socket to {address}, raw {raw}: {error}"));
                    continue;
                }
            };
            assert_eq!(
                ask(socket, 0x1234_5678_9abc_def0, Duration::from_secs(20)).await,
                Ok(()),
                "{address}, raw {raw}"
            );
        }
    }

    #[tokio::test]
    async fn silence_times_out() {
        // On the loopback device nobody has an address for documentation (RFC 5737).
        let mut check = checked([192, 0, 2, 1].into());
        Arc::make_mut(&mut check.source).interface = Some("lo".into());
        let Ok(socket) = connect::icmp(&check, false).or_else(|_| connect::icmp(&check, true)) else {
            return lvs_tests::skip("neither raw sockets nor those of net.ipv4.ping_group_range are allowed");
        };
        let error = ask(socket, 1, Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.to_string(), "no echo within 100ms");
    }

    #[test]
    fn an_echo_repeats_the_request_behind_its_own_headers() {
        let request = request(Family::V4, 0x0102_0304_0506_0708);
        assert!(Sum::default().and(&request).is_sound());
        let mut reply = request;
        reply[0] = 0;
        assert!(is_echo(&reply, false, &request));
        let packet = [&[0x46; 24][..], &reply].concat();
        assert!(is_echo(&packet, true, &request));
        assert!(!is_echo(&request, false, &request), "one's own request on the loopback");
        reply[HEADER] ^= 1;
        assert!(!is_echo(&reply, false, &request), "another check's echo");
        reply[HEADER] ^= 1;
        assert!(!is_echo(&reply[..40], false, &request), "a part of it");
        reply[0] = 129;
        assert!(!is_echo(&reply, false, &request), "an answer of the other family");
    }

    proptest! {
        #[test]
        fn no_packet_panics(packet: Vec<u8>, raw: bool) {
            is_echo(&packet, raw, &request(Family::V6, 1));
        }
    }
}
