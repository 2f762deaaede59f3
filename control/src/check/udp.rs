//! Does the real server refuse a datagram, and does it answer with the expected one?
//!
//! keepalived's rule: silence is a success unless a reply is required; only an ICMP error is a refusal.

use std::{io, time::Duration};

use tokio::{net::UdpSocket, time::timeout};

use crate::config::model::{Reply, UdpCheck};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UdpError {
    #[error("{0}")]
    Refused(io::ErrorKind),
    #[error("no reply within {0:?}")]
    NoReply(Duration),
    #[error("a reply of {got} bytes is not in {min} to {max}")]
    Length { got: usize, min: usize, max: usize },
    #[error("byte {at} of the reply is {got:02x}")]
    Differs { at: usize, got: u8 },
}

pub async fn ask(socket: &UdpSocket, check: &UdpCheck, limit: Duration) -> Result<(), UdpError> {
    socket.send(&check.payload).await.map_err(|error| UdpError::Refused(error.kind()))?;
    let room = match &check.reply {
        Reply::Like { max, .. } => *max,
        Reply::NotNeeded | Reply::Any => 0,
    };
    // One byte more shows what is too long.
    let mut reply = vec![0; room.saturating_add(1)];
    match (timeout(limit, socket.recv(&mut reply)).await, &check.reply) {
        (Ok(Ok(got)), expected) => judge(reply.get(..got).unwrap_or_default(), expected),
        (Ok(Err(error)), _) => Err(UdpError::Refused(error.kind())),
        (Err(_), Reply::NotNeeded) => Ok(()),
        (Err(_), _) => Err(UdpError::NoReply(limit)),
    }
}

pub fn judge(reply: &[u8], expected: &Reply) -> Result<(), UdpError> {
    let Reply::Like { bytes, min, max } = expected else { return Ok(()) };
    if !(*min..=*max).contains(&reply.len()) {
        return Err(UdpError::Length { got: reply.len(), min: *min, max: *max });
    }
    // As far as both go.
    let differs = reply.iter().zip(bytes).position(|(got, (value, mask))| got & mask != value & mask);
    match differs.and_then(|at| Some((at, *reply.get(at)?))) {
        Some((at, got)) => Err(UdpError::Differs { at, got }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(20);

    fn like(bytes: &[(u8, u8)]) -> Reply {
        Reply::Like { bytes: bytes.to_vec(), min: 1, max: 4 }
    }

    /// What is said of a server that answers each datagram with `answer`.
    async fn check(answer: &[u8], reply: Reply) -> Result<(), UdpError> {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = client(server.local_addr().unwrap()).await;
        let serve = async {
            let mut asked = [0; 16];
            let (length, from) = server.recv_from(&mut asked).await.unwrap();
            assert_eq!(asked[..length], [1, 2, 3]);
            server.send_to(answer, from).await.unwrap();
        };
        let check = UdpCheck { payload: vec![1, 2, 3], reply };
        tokio::join!(ask(&client, &check, LONG), serve).0
    }

    async fn client(server: SocketAddr) -> UdpSocket {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(server).await.unwrap();
        client
    }

    #[tokio::test]
    async fn any_answer_is_good_unless_one_is_described() {
        assert_eq!(check(b"", Reply::NotNeeded).await, Ok(()));
        assert_eq!(check(&[7; 9000], Reply::Any).await, Ok(()));
    }

    #[tokio::test]
    async fn a_described_answer_is_compared_under_its_mask_as_far_as_both_go() {
        let expected = || like(&[(0xa0, 0xf0), (0x00, 0x00), (0xff, 0xff)]);
        for good in [&[0xa7, 9, 0xff][..], &[0xa0], &[0xaf, 1, 0xff, 3]] {
            assert_eq!(check(good, expected()).await, Ok(()), "{good:?}");
        }
        assert_eq!(check(&[0xb7, 9], expected()).await, Err(UdpError::Differs { at: 0, got: 0xb7 }));
        assert_eq!(
            check(&[0xa7, 9, 1], expected()).await.unwrap_err().to_string(),
            "byte 2 of the reply is 01"
        );
    }

    #[tokio::test]
    async fn an_answer_that_is_too_short_or_too_long_fails() {
        assert_eq!(check(b"", like(&[])).await, Err(UdpError::Length { got: 0, min: 1, max: 4 }));
        assert_eq!(check(&[0; 2000], like(&[])).await, Err(UdpError::Length { got: 5, min: 1, max: 4 }));
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let check = UdpCheck { payload: vec![1], reply: Reply::NotNeeded };
        let error = ask(&client(gone).await, &check, LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }

    #[tokio::test]
    async fn silence_is_a_success_unless_a_reply_is_required() {
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = client(silent.local_addr().unwrap()).await;
        let with = |reply| UdpCheck { payload: vec![1], reply };
        assert_eq!(ask(&client, &with(Reply::NotNeeded), SHORT).await, Ok(()));
        let error = ask(&client, &with(Reply::Any), SHORT).await.unwrap_err();
        assert_eq!(error.to_string(), "no reply within 200ms");
    }
}
