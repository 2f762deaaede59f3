//! The configuration that the hosts of a lab run: one text for `lvsd` and keepalived alike.

use std::{fmt::Write as _, net::Ipv4Addr, time::Duration};

use crate::{RealServer, VIP};

/// One VRRP instance with the lab's VIP.
#[derive(Clone, Debug)]
pub struct Vrrp {
    pub version: u8,
    pub priority: u8,
    pub advert_interval: Duration,
    /// VRRPv2's clear text password, at most 8 characters.
    pub password: Option<&'static str>,
    /// The password is the key of an IPsec authentication header instead.
    pub ah: bool,
    pub preempt: bool,
    /// Source and peer of unicast adverts.
    pub unicast: Option<[Ipv4Addr; 2]>,
}

impl Vrrp {
    pub fn v2(priority: u8) -> Self {
        Self { version: 2, ..Self::v3(priority, Duration::from_secs(1)) }
    }

    pub fn v3(priority: u8, advert_interval: Duration) -> Self {
        Self {
            version: 3,
            priority,
            advert_interval,
            password: None,
            ah: false,
            preempt: true,
            unicast: None,
        }
    }

    /// How long a master lives on without a further advert: three intervals. Its lease ends then.
    pub fn lifetime(&self) -> Duration {
        self.advert_interval * 3
    }

    /// How much longer a backup of this priority waits (RFC 9568 6.1).
    pub fn skew(&self) -> Duration {
        // RFC 3768 6.1: in v2 the skew does not depend on the interval.
        let unit = if self.version == 2 { Duration::from_secs(1) } else { self.advert_interval };
        unit * (256 - u32::from(self.priority)) / 256
    }

    /// keepalived.conf text.
    pub fn text(&self) -> String {
        self.text_with("")
    }

    /// The same with more lines in the instance.
    pub fn text_with(&self, lines: &str) -> String {
        let Self { version, priority, advert_interval, password, ah, preempt, unicast } = self;
        let nopreempt = if *preempt { "" } else { "    nopreempt\n" };
        let kind = if *ah { "AH" } else { "PASS" };
        let authentication = match password {
            Some(password) => {
                format!(
                    "    authentication {{\n        auth_type {kind}\n        auth_pass {password}\n    }}\n"
                )
            }
            None => String::new(),
        };
        let unicast = match unicast {
            Some([source, peer]) => {
                format!("    unicast_src_ip {source}\n    unicast_peer {{\n        {peer}\n    }}\n")
            }
            None => String::new(),
        };
        format!(
            "global_defs {{\n    vrrp_version {version}\n}}\n\
             vrrp_instance VI_1 {{\n    state BACKUP\n    interface eth0\n    virtual_router_id 51\n    \
             priority {priority}\n    advert_int {interval}\n{nopreempt}{authentication}{unicast}{lines}\n    \
             virtual_ipaddress {{\n        {vip}/24\n    }}\n}}\n",
            interval = advert_interval.as_secs_f64(),
            vip = VIP.ip(),
        )
    }
}

/// The longest that [`web_service`] takes to find a server that refuses connections.
pub const CHECK_TIME: Duration = Duration::from_millis(400);

/// The VIP's HTTP service by direct routing, over `reals` with their weights. Each is asked for its page every
/// 200 ms; a failure is confirmed once, 200 ms later. One that is only slow, on a busy machine, has time to answer.
pub fn web_service(reals: &[(&RealServer, u16)]) -> String {
    service_with("", reals)
}

/// The same by another scheduler, with no words of its own.
pub fn scheduled_service(scheduler: &str, reals: &[(&RealServer, u16)]) -> String {
    web_service(reals).replace("lvs_sched mh\n    mh-port\n", &format!("lvs_sched {scheduler}\n"))
}

/// The same, with further lines in its virtual_server.
pub fn service_with(lines: &str, reals: &[(&RealServer, u16)]) -> String {
    let mut text = format!(
        "virtual_server {} {} {{\n    lvs_sched mh\n    mh-port\n    lvs_method DR\n    protocol TCP\n{lines}",
        VIP.ip(),
        VIP.port()
    );
    for (real, weight) in reals {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "    real_server {} {} {{\n        weight {weight}\n        HTTP_GET {{\n            \
             url {{\n                path /\n                status_code 200\n            }}\n            \
             delay_loop 0.2\n            connect_timeout 3\n            retry 1\n            \
             delay_before_retry 0.2\n            warmup 0\n        }}\n    }}\n",
            real.node.address(),
            VIP.port()
        );
    }
    text + "}\n"
}
