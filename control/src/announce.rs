//! How, and how often, does the network learn that an address lives here now? By gratuitous ARP, or for IPv6 by
//! unsolicited neighbour advertisements.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use bytes::BufMut as _;

use crate::{checksum::Sum, config::model::Garp, vrrp::Monotonic};

/// Bursts that others provoke come no closer than this, however many adverts they send.
const PAUSE: Duration = Duration::from_millis(100);

/// When a master announces its addresses. All figures are frames per address.
#[derive(Clone, Debug)]
pub struct Schedule {
    garp: Garp,
    last_burst: Monotonic,
    provoked_at: Option<Monotonic>,
    /// The second burst, and how many frames it has.
    again: Option<(Monotonic, u32)>,
    refresh_at: Option<Monotonic>,
}

impl Schedule {
    /// The new master's first burst, and what follows it.
    pub fn start(garp: Garp, now: Monotonic) -> (Self, u32) {
        let refresh_at = (!garp.refresh.is_zero()).then(|| now + garp.refresh);
        let mut schedule = Self { garp, last_burst: now, provoked_at: None, again: None, refresh_at };
        let frames = schedule.burst(garp.repeat, garp.delay, now);
        (schedule, frames)
    }

    /// Somebody else may have announced the addresses: one more burst, and a second one later.
    pub fn provoke(&mut self, now: Monotonic) -> u32 {
        let at = self.last_burst + PAUSE;
        if self.garp.lower_prio_repeat == 0 {
            return 0;
        }
        if now >= at {
            return self.answer(now);
        }
        self.provoked_at = Some(at);
        0
    }

    /// What is to be sent at `now`.
    pub fn due(&mut self, now: Monotonic) -> u32 {
        let mut frames = 0;
        if self.provoked_at.is_some_and(|at| now >= at) {
            frames = self.answer(now);
        }
        if let Some((_, repeat)) = self.again.take_if(|(at, _)| now >= *at) {
            self.last_burst = now;
            frames = repeat;
        }
        if let Some(at) = self.refresh_at.filter(|at| now >= *at) {
            self.refresh_at = Some(at.next_after(self.garp.refresh, now));
            frames = frames.max(self.garp.refresh_repeat);
        }
        frames
    }

    pub fn next(&self) -> Option<Monotonic> {
        let again = self.again.map(|(at, _)| at);
        self.provoked_at.into_iter().chain(again).chain(self.refresh_at).min()
    }

    fn answer(&mut self, now: Monotonic) -> u32 {
        self.burst(self.garp.lower_prio_repeat, self.garp.lower_prio_delay, now)
    }

    fn burst(&mut self, repeat: u32, delay: Duration, now: Monotonic) -> u32 {
        self.last_burst = now;
        self.provoked_at = None;
        self.again = (!delay.is_zero()).then(|| (now + delay, repeat));
        repeat
    }
}

/// Without padding: that is the network driver's work.
pub type Frame = Box<[u8]>;

/// Says that `address` is at `mac`, and for IPv6 whether a router is there.
pub fn announcement(address: IpAddr, mac: [u8; 6], router: bool) -> Frame {
    match address {
        IpAddr::V4(address) => gratuitous_arp(address, mac).into(),
        IpAddr::V6(address) => unsolicited_advertisement(address, mac, router).into(),
    }
}

/// A broadcast ARP request in which the address asks for itself (RFC 5227 3: an announcement).
fn gratuitous_arp(address: Ipv4Addr, mac: [u8; 6]) -> [u8; 42] {
    const BROADCAST: [u8; 6] = [0xff; 6];
    let mut frame = [0; 42];
    let mut out = frame.as_mut_slice();
    out.put_slice(&BROADCAST);
    out.put_slice(&mac);
    out.put_u16(0x0806);
    out.put_u16(1); // hardware: Ethernet
    out.put_u16(0x0800); // protocol: IPv4
    out.put_slice(&[6, 4]);
    out.put_u16(1); // operation: request
    out.put_slice(&mac);
    out.put_slice(&address.octets());
    out.put_slice(&BROADCAST);
    out.put_slice(&address.octets());
    frame
}

/// A neighbour advertisement to all nodes that overrides what they know (RFC 4861 7.2.6).
fn unsolicited_advertisement(address: Ipv6Addr, mac: [u8; 6], router: bool) -> [u8; 86] {
    const ALL_NODES: [u8; 16] = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    const ROUTER: u32 = 1 << 31;
    const OVERRIDE: u32 = 1 << 29;
    let mut frame = [0; 86];
    let mut out = frame.as_mut_slice();
    out.put_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    out.put_slice(&mac);
    out.put_u16(0x86dd);
    out.put_u32(6 << 28);
    out.put_u16(32); // payload
    out.put_u8(58); // ICMPv6
    out.put_u8(255);
    out.put_slice(&address.octets());
    out.put_slice(&ALL_NODES);
    out.put_u16(136 << 8); // neighbour advertisement
    out.put_u16(0); // checksum
    out.put_u32(OVERRIDE | if router { ROUTER } else { 0 });
    out.put_slice(&address.octets());
    out.put_slice(&[2, 1]); // the target's link-layer address, of eight bytes
    out.put_slice(&mac);
    // Of the pseudo header, length and protocol are not addresses; all else stands in the frame already.
    Sum::default().and(&[0, 32, 0, 58]).put(&mut frame[22..], 56 - 22);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_second_burst_follows_after_the_delay_and_then_only_refreshes() {
        let garp = Garp { refresh: Duration::from_secs(60), refresh_repeat: 2, ..Garp::default() };
        let (mut schedule, first) = Schedule::start(garp, at(100));
        assert_eq!((first, schedule.due(at(104)), schedule.next()), (5, 0, Some(at(105))));
        assert_eq!((schedule.due(at(105)), schedule.next()), (5, Some(at(160))));
        assert_eq!((schedule.due(at(160)), schedule.next()), (2, Some(at(220))));
        assert_eq!(
            (schedule.due(at(400)), schedule.next()),
            (2, Some(at(460))),
            "missed refreshes are skipped"
        );
    }

    #[test]
    fn zero_delay_and_zero_refresh_mean_one_burst_only() {
        let garp = Garp { delay: Duration::ZERO, ..Garp::default() };
        assert_eq!(Schedule::start(garp, at(1)).0.next(), None);
    }

    #[test]
    fn a_provoked_burst_moves_the_second_one() {
        let (mut schedule, _) = Schedule::start(Garp::default(), at(0));
        assert_eq!(schedule.provoke(at(3)), 5);
        assert_eq!(schedule.next(), Some(at(8)));
    }

    #[test]
    fn a_provoked_burst_has_a_size_and_a_delay_of_its_own() {
        let garp = Garp { lower_prio_repeat: 2, lower_prio_delay: Duration::from_secs(1), ..Garp::default() };
        let (mut schedule, _) = Schedule::start(garp, at(0));
        assert_eq!((schedule.provoke(at(3)), schedule.next()), (2, Some(at(4))));
        assert_eq!((schedule.due(at(4)), schedule.next()), (2, None));
    }

    #[test]
    fn where_no_burst_answers_a_provocation_the_second_one_stays() {
        let (mut schedule, _) = Schedule::start(Garp { lower_prio_repeat: 0, ..Garp::default() }, at(0));
        assert_eq!((schedule.provoke(at(3)), schedule.next()), (0, Some(at(5))));
    }

    #[test]
    fn a_thousand_provocations_make_one_burst_a_pause_later() {
        let (mut schedule, _) = Schedule::start(Garp::default(), at(10));
        let frames: u32 = (1..1000).map(|step| schedule.provoke(at(10) + Duration::from_micros(step))).sum();
        assert_eq!((frames, schedule.next()), (0, Some(at(10) + PAUSE)));
        assert_eq!((schedule.due(at(10) + PAUSE), schedule.next()), (5, Some(at(15) + PAUSE)));
    }
}
