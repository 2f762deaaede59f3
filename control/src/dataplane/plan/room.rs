//! How large are the maps that grow with the configuration?

use lvs_ebpf_common::maps;

use super::{chunks, reals};
use crate::{
    config::model::VirtualServer,
    dataplane::{maglev, turns},
};

/// Elements that the maps have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub reals: u32,
    /// Of `RINGS`.
    pub chunks: u32,
}

impl Room {
    /// As much as anybody has.
    pub const LEAST: Self = Self { reals: maps::REAL_SLOTS, chunks: maps::RING_CHUNKS };

    /// For these services, and as much again as anybody has, so that others may come by a reload. A ring takes three times
    /// its own: beside it lie its old owners, and a new ring is written before the old one is freed. Where all change at
    /// once that is not enough, and they change one after the other.
    pub fn of(services: &[VirtualServer]) -> Self {
        services.iter().fold(Self::LEAST, |room, service| {
            let count = service.destinations().count();
            let reals = reals::range(count);
            let turns = u32::try_from(turns::longest(service.scheduler, count)).unwrap_or(u32::MAX);
            let slots = chunks(maglev::length(count)).saturating_add(chunks(turns));
            Self {
                reals: room.reals.saturating_add(reals + reals / 2),
                chunks: room.chunks.saturating_add(slots.saturating_mul(3)),
            }
        })
    }
}
