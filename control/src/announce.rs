//! How, and how often, does the network learn that an address lives here now? By gratuitous ARP.

use std::net::Ipv4Addr;

use bytes::BufMut as _;

use crate::{config::model::Garp, vrrp::Monotonic};

/// When a master announces its addresses again. The first burst is the machine's own decision.
#[derive(Clone, Debug)]
pub struct Schedule {
    garp: Garp,
    last_burst: Monotonic,
    again_at: Option<Monotonic>,
    refresh_at: Option<Monotonic>,
}

impl Schedule {
    /// Begins with a burst at `now`; its size is `garp.repeat`.
    pub fn start(garp: Garp, now: Monotonic) -> Self {
        let mut schedule = Self {
            garp,
            last_burst: now,
            again_at: None,
            refresh_at: (!garp.refresh.is_zero()).then(|| now + garp.refresh),
        };
        schedule.burst(now);
        schedule
    }

    /// One more burst now and a second one later: somebody else announced the addresses. Returns frames per address.
    pub fn burst(&mut self, now: Monotonic) -> u32 {
        self.last_burst = now;
        self.again_at = (!self.garp.delay.is_zero()).then(|| now + self.garp.delay);
        self.garp.repeat
    }

    pub fn last_burst(&self) -> Monotonic {
        self.last_burst
    }

    /// Frames per address that are to be sent at `now`.
    pub fn due(&mut self, now: Monotonic) -> u32 {
        let mut frames = 0;
        if self.again_at.is_some_and(|at| now >= at) {
            self.again_at = None;
            frames = self.garp.repeat;
        }
        if let Some(at) = self.refresh_at.filter(|at| now >= *at) {
            self.refresh_at = Some(at.next_after(self.garp.refresh, now));
            frames = frames.max(self.garp.refresh_repeat);
        }
        frames
    }

    pub fn next(&self) -> Option<Monotonic> {
        self.again_at.into_iter().chain(self.refresh_at).min()
    }
}

/// An Ethernet frame as long as it has content; the driver pads it.
pub type Frame = [u8; 42];

/// A broadcast ARP request in which the address asks for itself (RFC 5227 3: an announcement).
pub fn gratuitous_arp(address: Ipv4Addr, mac: [u8; 6]) -> Frame {
    const BROADCAST: [u8; 6] = [0xff; 6];
    let mut frame = [0; size_of::<Frame>()];
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_second_burst_follows_after_the_delay_and_then_only_refreshes() {
        let garp = Garp { refresh: Duration::from_secs(60), refresh_repeat: 2, ..Garp::default() };
        let mut schedule = Schedule::start(garp, at(100));
        assert_eq!((schedule.due(at(104)), schedule.next()), (0, Some(at(105))));
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
        assert_eq!(Schedule::start(garp, at(1)).next(), None);
    }

    #[test]
    fn a_new_burst_moves_the_second_one() {
        let mut schedule = Schedule::start(Garp::default(), at(0));
        assert_eq!(schedule.burst(at(3)), 5);
        assert_eq!(schedule.next(), Some(at(8)));
    }
}
