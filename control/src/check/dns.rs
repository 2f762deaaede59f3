//! Does the real server answer a question of DNS?
//!
//! keepalived's rule: an answer to this question without an error code is a success, whatever it holds.

use std::{io, time::Duration};

use simple_dns::{PacketFlag, RCODE, header_buffer};
use tokio::{net::UdpSocket, time::timeout};

use crate::config::model::DnsCheck;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    #[error("{0}")]
    Refused(io::ErrorKind),
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("the answer has code {0:?}")]
    Code(RCODE),
}

/// RFC 1035 4.2.1. What is behind it in a longer one changes nothing.
const ANSWER: usize = 512;

/// `number` is what the answer must repeat.
pub async fn ask(socket: &UdpSocket, check: &DnsCheck, number: u16, limit: Duration) -> Result<(), DnsError> {
    let refused = |error: io::Error| DnsError::Refused(error.kind());
    socket.send(&query(check, number)).await.map_err(refused)?;
    let answer = async {
        let mut answer = [0; ANSWER];
        loop {
            let length = socket.recv(&mut answer).await.map_err(refused)?;
            if let Some(judged) = judge(answer.get(..length).unwrap_or_default(), number) {
                return judged;
            }
        }
    };
    timeout(limit, answer).await.unwrap_or(Err(DnsError::NoAnswer(limit)))
}

pub fn query(check: &DnsCheck, number: u16) -> Vec<u8> {
    let mut query = check.query.clone();
    if let Some(id) = query.first_chunk_mut() {
        *id = number.to_be_bytes();
    }
    query
}

/// `None`: an answer to an earlier question, or no DNS at all, which leaves the time that is left.
pub fn judge(answer: &[u8], number: u16) -> Option<Result<(), DnsError>> {
    let code = code(answer, number)?;
    Some(if code == RCODE::NoError { Ok(()) } else { Err(DnsError::Code(code)) })
}

/// The code of an answer with this number.
fn code(answer: &[u8], number: u16) -> Option<RCODE> {
    let ours = header_buffer::id(answer).ok()? == number
        && header_buffer::has_flags(answer, PacketFlag::RESPONSE).ok()?;
    if ours { header_buffer::rcode(answer).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use simple_dns::{Name, Packet};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// What is said of a server that sends `answers` to one question.
    async fn check(answers: impl Fn(&[u8]) -> Vec<Vec<u8>>, limit: Duration) -> Result<(), DnsError> {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(server.local_addr().unwrap()).await.unwrap();
        let serve = async {
            let mut asked = [0; 600];
            let (length, from) = server.recv_from(&mut asked).await.unwrap();
            for answer in answers(&asked[..length]) {
                server.send_to(&answer, from).await.unwrap();
            }
        };
        let check = DnsCheck::new("www.example.org", simple_dns::TYPE::AAAA).unwrap();
        tokio::join!(ask(&client, &check, 0xabcd, limit), serve).0
    }

    fn answer(asked: &[u8], code: RCODE) -> Vec<u8> {
        let mut answer = Packet::parse(asked).unwrap().into_reply();
        *answer.rcode_mut() = code;
        answer.build_bytes_vec().unwrap()
    }

    #[tokio::test]
    async fn an_answer_without_an_error_is_good_though_it_be_empty() {
        assert_eq!(check(|asked| vec![answer(asked, RCODE::NoError)], LONG).await, Ok(()));
    }

    #[tokio::test]
    async fn an_error_code_fails() {
        let error = check(|asked| vec![answer(asked, RCODE::ServerFailure)], LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "the answer has code ServerFailure");
    }

    #[tokio::test]
    async fn garbage_and_answers_to_other_questions_are_waited_through() {
        let answers = |asked: &[u8]| {
            let mut other = answer(asked, RCODE::Refused);
            other[0] ^= 1;
            vec![
                Vec::new(),
                b"garbage".to_vec(),
                vec![0xff; 900],
                asked.to_vec(),
                other,
                answer(asked, RCODE::NoError),
            ]
        };
        assert_eq!(check(answers, LONG).await, Ok(()));
    }

    #[tokio::test]
    async fn silence_and_nothing_but_garbage_time_out() {
        let limit = Duration::from_millis(100);
        assert_eq!(check(|_| Vec::new(), limit).await, Err(DnsError::NoAnswer(limit)));
        assert_eq!(check(|_| vec![b"x".to_vec()], limit).await, Err(DnsError::NoAnswer(limit)));
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(gone).await.unwrap();
        let check = DnsCheck::new("", simple_dns::TYPE::SOA).unwrap();
        assert_eq!(
            ask(&client, &check, 1, LONG).await,
            Err(DnsError::Refused(io::ErrorKind::ConnectionRefused))
        );
    }

    #[test]
    fn the_question_is_a_recursive_one_for_the_name_and_type() {
        let query = DnsCheck::new("www.example.org", simple_dns::TYPE::AAAA).unwrap().query;
        let packet = Packet::parse(&query).unwrap();
        let [question] = packet.questions.as_slice() else { panic!("{packet:?}") };
        assert_eq!(question.qname, Name::new("www.example.org").unwrap());
        assert_eq!(u16::from(question.qtype), 28);
        assert!(packet.has_flags(PacketFlag::RECURSION_DESIRED));
        // RFC 1035 4.1: header, then the root's empty name, SOA, IN.
        let root = DnsCheck::new("", simple_dns::TYPE::SOA).unwrap().query;
        assert_eq!(root, [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1]);
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer: Vec<u8>, number: u16) {
            let _ = code(&answer, number);
        }
    }
}
