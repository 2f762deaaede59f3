//! Which services the answers of real servers belong to that are reached by address translation.

use std::collections::HashMap;

use lvs_ebpf_common::{Face, Real, Reply, ServiceKey};

use super::{Tables, Write};

impl Tables {
    /// Follows `REALS`: a real server that left its service answers on until its last flow has ended. Answers of one
    /// that several services have are told apart by their flows, which the program remembers if its real server says
    /// so. Entries are added before and removed after what else changes.
    pub(super) fn plan_replies(&mut self, add: &mut Vec<Write>, remove: &mut Vec<Write>) {
        let mut owners: HashMap<ServiceKey, Vec<(Face, u32)>> = HashMap::new();
        for (service, pool) in &self.pools {
            let face = Face { address: service.address, port: service.port, _pad: 0 };
            for index in pool.range() {
                if let Some(real) = self.reals.get(index as usize).filter(|real| translates(real)) {
                    let key = ServiceKey { address: real.address, port: real.port, ..*service };
                    owners.entry(key).or_default().push((face, index));
                }
            }
        }
        for (key, owners) in &owners {
            let shared = owners.len() > 1;
            let method = if shared { Real::NAT_SHARED } else { Real::NAT };
            for (_, index) in owners {
                let real = &mut self.reals[*index as usize];
                if real.method != method {
                    real.method = method;
                    add.push(Write::Real { index: *index, real: *real });
                }
            }
            // Any of them: it only says where the real server is.
            let Some((face, real)) = owners.iter().min_by_key(|(_, index)| *index).copied() else { continue };
            let reply = Reply { face: if shared { Face::default() } else { face }, real };
            if self.replies.insert(*key, reply) != Some(reply) {
                add.push(Write::Reply { key: *key, reply });
            }
        }
        self.replies.retain(|key, _| {
            let stays = owners.contains_key(key);
            if !stays {
                remove.push(Write::ReplyGone { key: *key });
            }
            stays
        });
    }
}

fn translates(real: &Real) -> bool {
    real.address != 0 && matches!(real.method, Real::NAT | Real::NAT_SHARED)
}
