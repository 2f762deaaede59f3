//! Where a service's real servers have their elements of `REALS`, and who of them may be on the ring.

use std::collections::{HashMap, HashSet};

use lvs_ebpf_common::{Address, Real, maps};

use super::{
    DesiredReal, DesiredService, Draft, PlanError, ServerIds, Source, Steps, Tables, draft, takes_flows,
};
use crate::{
    config::model::{Forwarding, Tunnel},
    dataplane::maglev::{self, Member},
};

impl Tables {
    /// Sees to it that all wanted reals find a place in the service's range, by another one if need be. Every real keeps
    /// its index, by which flows are remembered.
    pub(super) fn enlarge(
        &mut self,
        draft: &mut Draft,
        desired: &DesiredService,
        source: &impl Source,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let used = draft.reals.iter().filter(|real| real.address != Address::default());
        let mut all: HashSet<(Address, u16)> = used.map(|real| (real.address, real.port)).collect();
        all.extend(desired.reals.iter().map(identity));
        let reals = all.len();
        if reals > maps::REALS_PER_SERVICE as usize {
            return Err(PlanError::ServiceTooLarge { reals });
        }
        let pool = &mut draft.pool;
        if reals <= pool.len as usize && pool.len > 0 {
            return Ok(());
        }
        let len = range(reals);
        let base = self
            .ranges
            .find(len)
            .ok_or(PlanError::NoRoomForReals { wanted: len, of: source.room().reals })?;
        steps.taken.ranges.push((base, len));
        steps.freed.ranges.push((pool.base, pool.len));
        steps.rebuild = true;
        pool.used |= source.has_forwarded(pool.range());
        (pool.base, pool.len) = (base, len);
        draft.reals.resize(len as usize, Real::default());
        Ok(())
    }
}

impl Draft {
    /// New and changed reals; removed ones drain. Who is to be on the ring.
    pub(super) fn place_reals(&mut self, desired: &DesiredService) -> Vec<Member> {
        let used = self.reals.iter().enumerate().filter(|(_, real)| real.address != Address::default());
        let mut known: HashMap<(Address, u16), usize> =
            used.map(|(index, real)| ((real.address, real.port), index)).collect();
        let mut free = (0..self.reals.len())
            .filter(|index| self.reals[*index].address == Address::default())
            .collect::<Vec<_>>();
        free.reverse();
        let limited = desired.reals.iter().any(|real| real.limit.is_some());
        let marks = desired.turns.is_some_and(|turns| turns.follow_load(limited));
        let beside_local = desired.reals.iter().any(|real| is_local(real, &Real::default()));
        let mut server_ids = ServerIds::default();
        let mut members = Vec::with_capacity(desired.reals.len());
        for real in &desired.reals {
            let Some(index) = known.remove(&identity(real)).or_else(|| free.pop()) else { continue };
            change(&mut self.reals[index], real, marks, beside_local);
            server_ids.add(real, index);
            members.push(member(index, real));
        }
        for index in known.values() {
            let real = &mut self.reals[*index];
            if takes_flows(real) || real.state == Real::DRAINING {
                real.state = Real::LEAVING;
            }
        }
        self.pool.leaving = known.into_values().map(|index| index as u16).collect();
        if self.pool.connection_ids == draft::packed(desired.connection_ids) {
            server_ids.keep(&self.pool.server_ids, &self.pool.leaving);
        }
        self.pool.server_ids = server_ids;
        members
    }
}

/// How many elements a service with so many real servers takes, so that some may be added without a move.
pub(super) fn range(reals: usize) -> u32 {
    let reals = u32::try_from(reals).unwrap_or(u32::MAX).min(maps::REALS_PER_SERVICE);
    reals.next_power_of_two().clamp(8, maps::REALS_PER_SERVICE)
}

/// `marks`: who is overloaded stays so, until the next look at the flows. `beside_local`: one of the service's is this node.
fn change(real: &mut Real, desired: &DesiredReal, marks: bool, beside_local: bool) {
    real.address = desired.address.into();
    real.port = desired.port.to_be();
    (real.method, real.tunnel_port) = match desired.forwarding {
        _ if is_local(desired, real) => (Real::LOCAL, 0),
        Forwarding::Direct if beside_local => (Real::DIRECT_BESIDE_LOCAL, 0),
        Forwarding::Direct => (Real::DIRECT, 0),
        Forwarding::Tunnel(Tunnel::Ipip) => (Real::IPIP, 0),
        Forwarding::Tunnel(Tunnel::Gue { port }) => (Real::GUE, port.to_be()),
        Forwarding::Tunnel(Tunnel::Gre) => (Real::GRE, 0),
        // Who shares it is found when all services are there.
        Forwarding::Nat if real.method == Real::NAT_SHARED => (Real::NAT_SHARED, 0),
        Forwarding::Nat => (Real::NAT, 0),
    };
    real.state = match (desired.alive, desired.weight) {
        (false, _) if beside_local => Real::DEAD_BESIDE_LOCAL,
        (false, _) if desired.resets => Real::RESETTING,
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
        real.source = hop.source.map_or_else(Address::default, Address::from);
        real.mtu = hop.mtu;
    }
}

/// As [`Real`] has it.
fn identity(real: &DesiredReal) -> (Address, u16) {
    (real.address.into(), real.port.to_be())
}

/// Where its next hop is not known, it is what it was `before`.
fn is_local(real: &DesiredReal, before: &Real) -> bool {
    real.next_hop.map_or(before.method == Real::LOCAL, |hop| hop.is_local())
}

fn member(index: usize, real: &DesiredReal) -> Member {
    Member {
        index: index as u16,
        weight: if real.alive && real.next_hop.is_some() { real.weight } else { 0 },
        identity: maglev::identity(real.address, real.port),
        limit: real.limit,
    }
}
