//! The trailer that signs an advert (draft-cassen-vrrp-auth-hmac): HMAC-SHA256 and a sequence number made of time.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{BufMut as _, BytesMut};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::{Heard, Numbers, SENDERS};
use crate::{
    config::model::{Family, Signing, SigningMode},
    vrrp::packet::{self, Datagram, Format, Rejection},
};

pub const TRAILER: usize = 28;
/// All but the HMAC, of which half is sent.
const PREFIX: usize = 12;
const HMAC: usize = 16;
const SHA256: u8 = 1;

/// `auth_hmac`.
#[derive(Clone)]
pub struct Signature {
    keys: Vec<(u8, Hmac<Sha256>)>,
    active: u8,
    window: Option<Duration>,
    mode: SigningMode,
    numbers: Arc<Numbers>,
    heard: Heard<u64>,
}

impl Signature {
    pub fn new(signing: &Signing, peers: usize, numbers: Arc<Numbers>) -> Self {
        let heard = Heard::new(SENDERS.max(peers), &numbers.heard_signed);
        Self {
            keys: signing
                .keys
                .iter()
                .map(|key| (key.id, Hmac::new(&super::padded(key.secret.bytes()).into())))
                .collect(),
            active: signing.active,
            window: signing.window,
            mode: signing.mode,
            numbers,
            heard,
        }
    }

    pub fn sign(&mut self, format: &Format, packet: &mut BytesMut, wall: Duration) {
        if self.mode == SigningMode::ReceiveOnly {
            return;
        }
        let number = self.next(sequence(wall));
        let Some((_, key)) = self.keys.iter().find(|(id, _)| *id == self.active) else { return };
        let mut prefix = [0; PREFIX];
        let mut fields = prefix.as_mut_slice();
        fields.put_slice(&[SHA256, self.active, 0, 0]);
        fields.put_u64(number);
        let Some((_, message)) = packet::parts(packet, format.family()) else { return };
        let digest = digest(key, format, format.source, message, &prefix).finalize().into_bytes();
        let mut trailer = [0; TRAILER];
        let mut fields = trailer.as_mut_slice();
        fields.put_slice(&prefix);
        fields.put_slice(&digest[..HMAC]);
        packet::append(packet, format, &trailer);
    }

    /// The time, or one more than the last where that does not grow.
    fn next(&self, time: u64) -> u64 {
        let after = |last| if last == 0 || is_after(time, last) { time } else { last.wrapping_add(1) };
        let signed = &self.numbers.signed;
        let mut last = signed.load(Ordering::Acquire);
        loop {
            let number = after(last);
            match signed.compare_exchange_weak(last, number, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return number,
                Err(other) => last = other,
            }
        }
    }

    pub fn check_unsigned(&self) -> Result<(), Rejection> {
        if self.mode == SigningMode::Enforce { Err(Rejection::Unsigned) } else { Ok(()) }
    }

    pub fn check(
        &mut self,
        format: &Format,
        datagram: &Datagram<'_>,
        trailer: &[u8; TRAILER],
        wall: Duration,
    ) -> Result<(), Rejection> {
        let Some((prefix, signature)) = trailer.split_first_chunk::<PREFIX>() else {
            return Err(Rejection::Integrity);
        };
        let [kind, id, 0, 0, rest @ ..] = *prefix else { return Err(Rejection::Integrity) };
        if kind != SHA256 {
            return Err(Rejection::Integrity);
        }
        let sequence = u64::from_be_bytes(rest);
        // Before the digest, which costs more. A time that is not proven yet may refuse, but not grant.
        if !self.is_fresh(sequence, wall) {
            return Err(Rejection::Stale);
        }
        let Some((_, key)) = self.keys.iter().find(|(known, _)| *known == id) else {
            return Err(Rejection::UnknownKey { id });
        };
        // In constant time.
        digest(key, format, datagram.source, datagram.message, prefix)
            .verify_truncated_left(signature)
            .map_err(|_| Rejection::Integrity)?;
        self.remember(datagram.source, sequence, wall)
    }

    /// Its numbers have to grow, sender by sender.
    fn remember(&mut self, sender: IpAddr, sequence: u64, wall: Duration) -> Result<(), Rejection> {
        // What would be refused for its time needs no order: a sender whose clock was set back is heard again.
        let last = self.heard.last(sender).filter(|last| self.is_fresh(*last, wall));
        if last.is_some_and(|last| !is_after(sequence, last)) {
            return Err(Rejection::Replay);
        }
        self.heard.remember(sender, sequence, &self.numbers.heard_signed);
        Ok(())
    }

    fn is_fresh(&self, of: u64, wall: Duration) -> bool {
        // Seconds wrap around in 2106.
        let age = ((sequence(wall) >> 32) as u32).wrapping_sub((of >> 32) as u32).cast_signed();
        self.window.is_none_or(|window| u64::from(age.unsigned_abs()) <= window.as_secs())
    }
}

/// Takes the trailer off an advert that has one.
pub fn split<'a>(datagram: &Datagram<'a>) -> Option<(&'a [u8], &'a [u8; TRAILER])> {
    let length = packet::length(datagram.message, Family::of(datagram.source))?;
    datagram.message.split_last_chunk::<TRAILER>().filter(|(advert, _)| advert.len() == length)
}

/// Seconds, then the 16 upper bits of a second's fraction; 16 bits more tell numbers of one time apart.
fn sequence(wall: Duration) -> u64 {
    let fraction = (u64::from(wall.subsec_nanos()) << 16) / 1_000_000_000;
    (wall.as_secs() << 32) | (fraction << 16)
}

/// RFC 1982.
fn is_after(a: u64, b: u64) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Of the advert without its checksum, between what tells virtual routers apart and what the trailer says.
fn digest(
    key: &Hmac<Sha256>,
    format: &Format,
    source: IpAddr,
    message: &[u8],
    prefix: &[u8; PREFIX],
) -> Hmac<Sha256> {
    let mut mac = key.clone();
    let (family, address) = match source {
        IpAddr::V4(source) => {
            let mut address = [0; 16];
            address.iter_mut().zip(source.octets()).for_each(|(to, from)| *to = from);
            (4, address)
        }
        IpAddr::V6(source) => (6, source.octets()),
    };
    mac.update(&[family, packet::wire_version(format.version), format.vrid.get(), 0]);
    mac.update(&address);
    for (offset, byte) in message.iter().enumerate() {
        mac.update(&[if matches!(offset, 6 | 7) { 0 } else { *byte }]);
    }
    mac.update(prefix);
    mac.update(&[0; HMAC]);
    mac
}

#[cfg(test)]
mod tests;
