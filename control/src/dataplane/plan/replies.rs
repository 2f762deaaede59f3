//! Which services the answers of real servers belong to that are reached by address translation.

use std::collections::{HashMap, HashSet};

use lvs_ebpf_common::{Face, Real, Reply, ServiceKey};

use super::{Endpoint, Tables, Write};

/// Who is reached by address translation, by address and port: the services that have it, and its elements of `REALS`.
#[derive(Default)]
pub(super) struct Translated {
    owners: HashMap<ServiceKey, Vec<(Face, u32)>>,
    /// Those whose replies are to be looked at again.
    doubtful: HashSet<ServiceKey>,
}

impl Translated {
    /// Follows `REALS`: a real server that left its service answers on until its last flow has ended.
    pub(super) fn replace(&mut self, service: &Endpoint, index: u32, before: &Real, now: &Real) {
        let service = service.packed();
        let name = |real: &Real| {
            let address = real.address.to_v4().filter(|_| translates(real))?;
            Some(ServiceKey { address, port: real.port, ..service })
        };
        let [before, now] = [name(before), name(now)];
        if before == now {
            return;
        }
        if let Some(name) = before
            && let Some(owners) = self.owners.get_mut(&name)
        {
            owners.retain(|(_, other)| *other != index);
            if owners.is_empty() {
                self.owners.remove(&name);
            }
        }
        if let Some(name) = now {
            let face = Face { address: service.address, port: service.port, _pad: 0 };
            self.owners.entry(name).or_default().push((face, index));
        }
        self.doubtful.extend(before.into_iter().chain(now));
    }

    pub(super) fn doubt<'a>(&mut self, names: impl Iterator<Item = &'a ServiceKey>) {
        self.doubtful.extend(names);
    }
}

impl Tables {
    /// Answers of a real server that several services have are told apart by their flows, which the program remembers if
    /// its real server says so. Entries are added before and removed after what else changes.
    pub(super) fn plan_replies(&mut self, add: &mut Vec<Write>, remove: &mut Vec<Write>) {
        for key in std::mem::take(&mut self.translated.doubtful) {
            let owners = self.translated.owners.get(&key).map(Vec::as_slice).unwrap_or_default();
            // What a real server sends from whatever port is not all of a service with all ports.
            let shared = owners.len() > 1 || key.port == 0;
            let method = if shared { Real::NAT_SHARED } else { Real::NAT };
            for (_, index) in owners {
                let real = &mut self.reals[*index as usize];
                if real.method != method {
                    real.method = method;
                    add.push(Write::Real { index: *index, real: *real });
                }
            }
            // Any of them: it only says where the real server is.
            let Some((face, real)) = owners.iter().min_by_key(|(_, index)| *index).copied() else {
                if self.replies.remove(&key).is_some() {
                    remove.push(Write::ReplyGone { key });
                }
                continue;
            };
            let reply = Reply { face: if shared { Face::default() } else { face }, real };
            if self.replies.insert(key, reply) != Some(reply) {
                add.push(Write::Reply { key, reply });
            }
        }
    }
}

fn translates(real: &Real) -> bool {
    matches!(real.method, Real::NAT | Real::NAT_SHARED)
}
