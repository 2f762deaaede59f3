//! Which virtual addresses this node has, and on which interfaces.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use lvs_ebpf_common::{Interface, Vip, maps};

use super::{Desired, Steps, Tables, Write};

impl Tables {
    pub(super) fn plan_vips(&mut self, desired: &Desired, steps: &mut Steps) {
        for (address, vip) in &desired.vips {
            if self.vips.insert(*address, *vip) != Some(*vip) {
                steps.prepare.push(Write::Vip { address: *address, vip: *vip });
            }
        }
        let wanted: HashSet<IpAddr> = desired.vips.iter().map(|(address, _)| *address).collect();
        self.vips.retain(|address, _| {
            let keep = wanted.contains(address);
            if !keep {
                steps.retire.push(Write::VipGone { address: *address });
            }
            keep
        });
        for (slot, interface) in (0..).zip(interfaces(self.vips.values())) {
            let before = self.interfaces.get_mut(slot as usize);
            if let Some(before) = before.filter(|before| **before != interface) {
                *before = interface;
                steps.prepare.push(Write::Interface { slot, interface });
            }
        }
    }
}

/// Those that answer for virtual addresses. Of two that share an element neither is known.
fn interfaces<'a>(vips: impl Iterator<Item = &'a Vip>) -> [Interface; maps::INTERFACE_SLOTS as usize] {
    let all: HashMap<u32, [u8; 6]> = vips.map(|vip| (vip.ifindex, vip.mac)).collect();
    let mut slots = [Interface::default(); maps::INTERFACE_SLOTS as usize];
    let mut taken = HashSet::new();
    for (ifindex, mac) in all {
        let slot = Interface::slot(ifindex);
        let is_first = taken.insert(slot);
        slots[slot as usize] =
            if is_first { Interface { ifindex, mac, ..Interface::default() } } else { Interface::default() };
    }
    slots
}
