//! How does an advert prove who sent it, beyond a password? By an IPsec authentication header around it, or by a
//! signature behind it.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use ::hmac::{Hmac, Mac as _};
use bytes::{BufMut as _, BytesMut};
use md5::Md5;

use self::hmac::{Signature, TRAILER};
use super::packet::{self, Datagram, Format, IPV4_HEADER, Rejection};
use crate::config::model::{Authentication, Signing};

pub mod hmac;

/// IP's number of the authentication header.
pub const AH_PROTOCOL: u8 = 51;
/// With the 96 bits of its integrity check value (RFC 2402 2, RFC 2403).
const AH: usize = 24;
const ICV: usize = 12;

/// What one instance adds to the adverts that it sends, and asks of those that it hears.
#[derive(Clone)]
pub enum Guard {
    /// Nothing; a password is part of the message.
    Open,
    Ah(Ah),
    Signature(Signature),
}

/// What an instance has counted up to. It outlives a reload, and for a moment guards of two threads count with it:
/// neither may send a number that peers have heard of the other, whatever the clock says meanwhile.
#[derive(Debug, Default)]
pub struct Numbers {
    /// The highest that was sent or heard. keepalived has one count for all senders, so who takes over goes on where
    /// the master ended.
    ah: AtomicU32,
    /// The last that was sent, zero before the first.
    signed: AtomicU64,
    heard_ah: Mutex<Senders<u32>>,
    heard_signed: Mutex<Senders<u64>>,
}

/// Who was heard, and the last sequence number of each; the one heard last at the end.
type Senders<S> = Vec<(IpAddr, S)>;

#[cfg(test)]
impl Numbers {
    pub fn up_to(ah: u32) -> Arc<Self> {
        Arc::new(Self { ah: ah.into(), ..Self::default() })
    }
}

/// What an advert carries for a [`Guard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof<'a> {
    None,
    Ah(AuthenticationHeader<'a>),
    Trailer(&'a [u8; TRAILER]),
}

impl Guard {
    /// The most that [`Guard::seal`] adds to a packet.
    pub const MOST: usize = TRAILER;

    /// `wall` is the time since the Unix epoch, here and below.
    pub fn new(format: &Format, signing: Option<&Signing>, numbers: Arc<Numbers>, wall: Duration) -> Self {
        match (format.authentication, signing) {
            (_, Some(signing)) => Self::Signature(Signature::new(signing, format.peers.len(), numbers)),
            (Authentication::Ah(key), None) => {
                numbers.ah.fetch_max(first_sequence(wall), Ordering::AcqRel);
                Self::Ah(Ah::new(key, !format.peers.is_empty(), numbers))
            }
            (Authentication::None | Authentication::Pass(_), None) => Self::Open,
        }
    }

    /// `packet` is an advert of this format with its IP header.
    pub fn seal(&mut self, format: &Format, packet: &mut BytesMut, wall: Duration) {
        match self {
            Self::Open => {}
            Self::Ah(ah) => ah.seal(packet),
            Self::Signature(signature) => signature.sign(format, packet, wall),
        }
    }

    /// Takes off what is behind the message.
    pub fn open<'a>(&self, datagram: Datagram<'a>) -> Datagram<'a> {
        match (self, hmac::split(&datagram)) {
            (Self::Signature(_), Some((message, trailer))) => {
                Datagram { message, proof: Proof::Trailer(trailer), ..datagram }
            }
            _ => datagram,
        }
    }

    /// Whether an opened advert that counts otherwise is what it seems.
    pub fn check(
        &mut self,
        format: &Format,
        datagram: &Datagram<'_>,
        wall: Duration,
    ) -> Result<(), Rejection> {
        match (self, &datagram.proof) {
            (Self::Open, Proof::None) => Ok(()),
            (Self::Ah(ah), Proof::Ah(header)) => ah.check(datagram.source, header, datagram.message),
            (Self::Signature(signature), Proof::None) => signature.check_unsigned(),
            (Self::Signature(signature), Proof::Trailer(trailer)) => {
                signature.check(format, datagram, trailer, wall)
            }
            _ => Err(Rejection::Integrity),
        }
    }
}

/// `auth_type AH`.
#[derive(Clone)]
pub struct Ah {
    /// With the key in it.
    mac: Hmac<Md5>,
    is_unicast: bool,
    numbers: Arc<Numbers>,
    /// Identification and number of the last advert that was sent.
    last: Option<(u16, u32)>,
    heard: Heard<u32>,
}

/// An authentication header with what it covers in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthenticationHeader<'a> {
    pub ip_header: &'a [u8],
    pub header: &'a [u8; AH],
}

impl<'a> AuthenticationHeader<'a> {
    /// Takes it off what follows the IP header. `None` where it is not one of VRRP's.
    pub fn split(ip_header: &'a [u8], payload: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, message) = payload.split_first_chunk::<AH>()?;
        // In words of four bytes, without two (RFC 2402 2.2).
        let length = (AH / 4 - 2) as u8;
        let is_ours = header.first_chunk() == Some(&[packet::PROTOCOL, length]);
        is_ours.then_some((Self { ip_header, header }, message))
    }

    fn sequence(&self) -> u32 {
        let [.., a, b, c, d] = self.numbers();
        u32::from_be_bytes([a, b, c, d])
    }

    /// All but the integrity check value.
    fn numbers(&self) -> [u8; AH - ICV] {
        let mut numbers = [0; AH - ICV];
        numbers.iter_mut().zip(self.header).for_each(|(to, from)| *to = *from);
        numbers
    }

    fn icv(&self) -> &'a [u8] {
        self.header.last_chunk::<ICV>().map_or(&[], |icv| icv)
    }
}

/// RFC 2104: a key is padded with zeros to the length of a block, of MD5 and SHA-256 alike. The reader takes none that is
/// longer.
fn padded(key: &[u8]) -> [u8; 64] {
    let mut block = [0; 64];
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    block
}

impl Ah {
    pub fn new(key: [u8; 8], is_unicast: bool, numbers: Arc<Numbers>) -> Self {
        let heard = Heard::new(SENDERS, &numbers.heard_ah);
        Self { mac: Hmac::new(&padded(&key).into()), is_unicast, numbers, last: None, heard }
    }

    fn seal(&mut self, packet: &mut BytesMut) {
        let Some((ip_header, message)) = packet.split_first_chunk::<IPV4_HEADER>() else { return };
        let (mut ip_header, end) = (*ip_header, IPV4_HEADER + message.len());
        let sequence = self.sequence(u16::from_be_bytes([ip_header[4], ip_header[5]]));
        packet::readdress(&mut ip_header, AH_PROTOCOL, end + AH);

        let mut header = [0; AH];
        let mut fields = header.as_mut_slice();
        fields.put_slice(&[packet::PROTOCOL, (AH / 4 - 2) as u8, 0, 0]);
        // The security parameters index: keepalived's is the source address.
        fields.put_slice(&ip_header[12..16]);
        fields.put_u32(sequence);
        let icv = {
            let covered = AuthenticationHeader { ip_header: &ip_header, header: &header };
            self.digest(&covered, &packet[IPV4_HEADER..]).finalize().into_bytes()
        };
        header[AH - ICV..].copy_from_slice(&icv[..ICV]);

        packet.put_bytes(0, AH);
        packet.copy_within(IPV4_HEADER..end, IPV4_HEADER + AH);
        packet[..IPV4_HEADER].copy_from_slice(&ip_header);
        packet[IPV4_HEADER..IPV4_HEADER + AH].copy_from_slice(&header);
    }

    /// One for all copies of an advert, however many peers there are: so numbers grow no faster than adverts are sent.
    fn sequence(&mut self, identification: u16) -> u32 {
        if let Some((last, sequence)) = self.last
            && last == identification
        {
            return sequence;
        }
        let sequence = self.numbers.ah.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        self.last = Some((identification, sequence));
        sequence
    }

    fn check(
        &mut self,
        sender: IpAddr,
        header: &AuthenticationHeader<'_>,
        message: &[u8],
    ) -> Result<(), Rejection> {
        let mac = self.digest(header, message);
        // In constant time.
        mac.verify_truncated_left(header.icv()).map_err(|_| Rejection::Integrity)?;
        let sequence = header.sequence();
        if self.heard.last(sender).is_some_and(|last| sequence <= last) {
            return Err(Rejection::Replay);
        }
        self.heard.remember(sender, sequence, &self.numbers.heard_ah);
        self.numbers.ah.fetch_max(sequence, Ordering::AcqRel);
        Ok(())
    }

    /// What routers may change counts as zero (RFC 2402 3.3.3.1). keepalived leaves the TTL of multicast in, which
    /// is 255 at both ends.
    fn digest(&self, header: &AuthenticationHeader<'_>, message: &[u8]) -> Hmac<Md5> {
        let mut mac = self.mac.clone();
        for (offset, byte) in header.ip_header.iter().enumerate() {
            let mutable = matches!(offset, 1 | 6 | 7 | 10 | 11) || (offset == 8 && self.is_unicast);
            mac.update(&[if mutable { 0 } else { *byte }]);
        }
        mac.update(&header.numbers());
        mac.update(&[0; ICV]);
        mac.update(message);
        mac
    }
}

/// What stands against adverts that come again. Only who has proven itself gets in.
#[derive(Clone)]
struct Heard<S> {
    senders: Senders<S>,
    most: usize,
}

/// As many as are ever masters at once.
const SENDERS: usize = 16;

impl<S: Copy> Heard<S> {
    /// Goes on from what a predecessor has left.
    fn new(most: usize, left: &Mutex<Senders<S>>) -> Self {
        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut senders = Vec::with_capacity(most.max(left.len()));
        senders.extend_from_slice(&left);
        left.reserve(most);
        Self { senders, most }
    }

    fn last(&self, sender: IpAddr) -> Option<S> {
        self.senders.iter().find(|(known, _)| *known == sender).map(|(_, sequence)| *sequence)
    }

    /// Leaves it for a successor too. Where that one is looking at this moment it is not waited for.
    fn remember(&mut self, sender: IpAddr, sequence: S, left: &Mutex<Senders<S>>) {
        match self.senders.iter().position(|(known, _)| *known == sender) {
            Some(index) => {
                self.senders.remove(index);
            }
            None if self.senders.len() >= self.most => {
                self.senders.remove(0);
            }
            None => {}
        }
        self.senders.push((sender, sequence));
        if let Ok(mut left) = left.try_lock() {
            left.clone_from(&self.senders);
        }
    }
}

/// A start that grows faster than adverts are sent, so that peers do not take what a restarted daemon sends for old.
/// It lasts until 2054.
fn first_sequence(wall: Duration) -> u32 {
    const EPOCH: Duration = Duration::from_secs(1_577_836_800); // 2020
    const STEP: u128 = 256;
    (wall.saturating_sub(EPOCH).as_millis() / STEP) as u32
}

#[cfg(test)]
mod tests;
