//! Where a service's real servers have their elements of `REALS`, and who of them may be on the ring.

use std::collections::{HashMap, HashSet};

use lvs_ebpf_common::{Real, maps};

use super::{DesiredReal, DesiredService, PlanError, Pool, Source, Steps, Tables, Write, takes_flows};
use crate::{
    config::model::{Forwarding, Tunnel},
    dataplane::{maglev::Member, turns::Turns},
};

impl Tables {
    /// Sees to it that all wanted reals find a place in the service's range: true if that is another one now. Every
    /// real keeps its index, by which flows are remembered.
    pub(super) fn enlarge(
        &mut self,
        pool: &mut Pool,
        desired: &DesiredService,
        source: &impl Source,
        steps: &mut Steps,
    ) -> Result<bool, PlanError> {
        let used = self.members(pool).iter().filter(|real| real.address != 0);
        let mut all: HashSet<(u32, u16)> = used.map(|real| (real.address, real.port)).collect();
        all.extend(desired.reals.iter().map(identity));
        let reals = all.len();
        if reals > maps::REALS_PER_SERVICE as usize {
            return Err(PlanError::ServiceTooLarge { reals });
        }
        if reals <= pool.len as usize && pool.len > 0 {
            return Ok(false);
        }
        let len = (reals as u32).next_power_of_two().clamp(8, maps::REALS_PER_SERVICE);
        let base = self.ranges.find(len).ok_or(PlanError::NoRoomForReals { wanted: len })?;
        pool.used |= source.has_forwarded(pool.range());
        for (old, index) in pool.range().zip(base..) {
            let real = std::mem::take(&mut self.reals[old as usize]);
            if real != Real::default() {
                self.reals[index as usize] = real;
                steps.prepare.push(Write::Real { index, real });
                steps.retire.push(Write::Real { index: old, real: Real::default() });
            }
        }
        steps.free_ranges.push((pool.base, pool.len));
        (pool.base, pool.len) = (base, len);
        Ok(true)
    }

    /// Writes new and changed reals, lets removed ones drain, and says who is on the ring.
    pub(super) fn place_reals(
        &mut self,
        pool: &mut Pool,
        desired: &DesiredService,
        steps: &mut Steps,
    ) -> Vec<Member> {
        let mut members = Vec::with_capacity(desired.reals.len());
        let mut new = Vec::new();
        let known: HashMap<(u32, u16), u32> = pool
            .range()
            .filter_map(|index| Some((index, self.reals.get(index as usize)?)))
            .filter(|(_, real)| real.address != 0)
            .map(|(index, real)| ((real.address, real.port), index))
            .collect();
        let marks = desired.turns.is_some_and(Turns::follow_load);
        let mut leaving: HashSet<u32> = known.values().copied().collect();
        for real in &desired.reals {
            match known.get(&identity(real)) {
                Some(index) => {
                    leaving.remove(index);
                    self.write_real(*index, real, marks, steps);
                    members.push(member(index - pool.base, real));
                }
                None => new.push(real),
            }
        }
        let mut free = pool.range().filter(|i| self.reals[*i as usize].address == 0).collect::<Vec<_>>();
        free.reverse();
        for real in new {
            let Some(index) = free.pop() else { continue };
            self.write_real(index, real, marks, steps);
            members.push(member(index - pool.base, real));
        }
        for index in &leaving {
            let real = &mut self.reals[*index as usize];
            if takes_flows(real) || real.state == Real::DRAINING {
                real.state = Real::LEAVING;
                steps.prepare.push(Write::Real { index: *index, real: *real });
            }
        }
        pool.leaving = leaving.into_iter().map(|index| (index - pool.base) as u16).collect();
        members
    }

    /// `marks`: who is overloaded stays so, until the next look at the flows.
    fn write_real(&mut self, index: u32, desired: &DesiredReal, marks: bool, steps: &mut Steps) {
        let mut real = self.reals[index as usize];
        real.address = u32::from_ne_bytes(desired.address.octets());
        real.port = desired.port.to_be();
        (real.method, real.tunnel_port) = match desired.forwarding {
            Forwarding::Direct => (Real::DIRECT, 0),
            Forwarding::Tunnel(Tunnel::Ipip) => (Real::IPIP, 0),
            Forwarding::Tunnel(Tunnel::Gue { port }) => (Real::GUE, port.to_be()),
            Forwarding::Tunnel(Tunnel::Gre) => (Real::GRE, 0),
            // Who shares it is found when all services are there.
            Forwarding::Nat if real.method == Real::NAT_SHARED => (Real::NAT_SHARED, 0),
            Forwarding::Nat => (Real::NAT, 0),
        };
        real.state = match (desired.alive, desired.weight) {
            (false, _) => Real::DEAD,
            (true, 0) => Real::DRAINING,
            (true, _) if marks && real.state == Real::OVERLOADED => Real::OVERLOADED,
            (true, _) => Real::ALIVE,
        };
        // An unknown next hop never replaces a known one: packets on their way keep theirs.
        if let Some(hop) = desired.next_hop {
            real.mac = hop.mac;
            real.source_mac = hop.source_mac;
            real.ifindex = hop.ifindex;
            real.source = hop.source.map_or(0, |source| u32::from_ne_bytes(source.octets()));
            real.mtu = hop.mtu;
        }
        if real != self.reals[index as usize] {
            self.reals[index as usize] = real;
            steps.prepare.push(Write::Real { index, real });
        }
    }
}

/// As [`Real`] has it.
fn identity(real: &DesiredReal) -> (u32, u16) {
    (u32::from_ne_bytes(real.address.octets()), real.port.to_be())
}

fn member(index: u32, real: &DesiredReal) -> Member {
    Member {
        index: index as u16,
        weight: if real.alive && real.next_hop.is_some() { real.weight } else { 0 },
        identity: u64::from(u32::from(real.address)) << 16 | u64::from(real.port),
    }
}
