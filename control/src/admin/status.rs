//! The state of a director as `lvsd status` shows it, as JSON and as text.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::vrrp::board::Counter;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of this director.
    pub router_id: String,
    /// VRRP packets that are malformed or of no instance here.
    pub strays: u64,
    pub instances: Vec<Instance>,
    pub services: Vec<Service>,
    /// How often what something else had changed was put back, by what it was.
    pub drifts: BTreeMap<String, u64>,
    /// Packets of QUIC services by what was made of the server IDs in their connection IDs.
    pub quic: BTreeMap<String, u64>,
    /// Packets by fate; `lvsd status` explains each.
    pub outcomes: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub name: String,
    /// MASTER, BACKUP, FAULT or INIT.
    pub state: String,
    /// With the weights of its trackers.
    pub priority: u8,
    /// `lvsd failover` wants another director to be master.
    pub handed_over: bool,
    pub vrid: u8,
    pub interface: String,
    pub vips: Vec<String>,
    /// 0 = holds none.
    pub lease_remaining_ms: u64,
    pub trackers: Vec<Tracker>,
    /// Its interfaces that adverts leave and come by; empty where that is one only.
    pub ways: Vec<Way>,
    /// The last host that said an address of this master's is its own.
    pub claim: Option<Claim>,
    pub counters: BTreeMap<String, u64>,
    /// Adverts that were refused, by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// Counters that say that something is wrong, and what to say of them.
const TROUBLE: [(Counter, &str); 5] = [
    (Counter::SendFailures, "adverts could not be sent"),
    (Counter::AnnouncementFailures, "gratuitous ARP frames could not be sent"),
    (Counter::AddressesDiffer, "adverts named other virtual addresses"),
    (Counter::OwnAddress, "adverts came from our own address"),
    (Counter::Unsigned, "adverts were not signed, and accepted"),
];

impl Instance {
    fn troubles(&self) -> impl Iterator<Item = String> {
        let counters = TROUBLE.iter().filter_map(|(counter, text)| {
            let count = self.counters.get(counter.name()).filter(|count| **count > 0)?;
            Some(format!("{count} {text}"))
        });
        let rejected = self.rejected.iter().filter(|(_, count)| **count > 0);
        counters.chain(rejected.map(|(kind, count)| format!("{count} adverts refused: {kind}")))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Way {
    pub interface: String,
    /// down: no link. Of a backup: heard, or silent while others are heard. up: of others, who listen to nobody.
    pub state: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub mac: String,
    pub seconds_ago: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tracker {
    /// track_script, track_interface or track_file.
    pub kind: String,
    pub name: String,
    /// 0 = the instance is in FAULT while it is down.
    pub weight: i32,
    pub reverse: bool,
    /// up, down, or untried before the first result; of a file its number.
    pub state: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub address: String,
    pub port: u16,
    pub protocol: String,
    pub scheduler: String,
    /// Of the real servers that have no other.
    pub forwarding: String,
    /// `quic_config_id`: its connection IDs say whose they are.
    pub quic_config_id: Option<u8>,
    pub quorum: Quorum,
    /// By ha_suspend: the address is not on this host, so nothing is asked and all stays as it was.
    pub suspended: bool,
    pub sorry_server: Option<SorryServer>,
    pub reals: Vec<Real>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quorum {
    pub up: bool,
    /// Of the real servers that are up.
    pub weight: u32,
    pub required: u32,
    pub hysteresis: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SorryServer {
    pub address: String,
    pub port: u16,
    pub forwarding: String,
    /// up: it stands for all real servers; down or draining: it does not.
    pub state: String,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Real {
    pub address: String,
    pub port: u16,
    /// As `lvs_method` has it.
    pub forwarding: String,
    /// As configured.
    pub weight: u16,
    /// By `lvsd weight` or `lvsd drain`: holds over the configured one.
    pub ordered_weight: Option<u16>,
    /// As checks or an order have changed it; 0 while down.
    pub effective_weight: u16,
    /// up, down or draining.
    pub state: String,
    /// In hexadecimal.
    pub quic_server_id: Option<String>,
    pub packets: u64,
    pub bytes: u64,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub kind: String,
    /// up, down, or unchecked before the first result.
    pub state: String,
    pub error: Option<String>,
}

/// As operators call it.
fn endpoint(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Reads like `ipvsadm -Ln`, with the VRRP instances on top.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VRRP instance        State   Prio VRID Interface    Lease  Virtual addresses")?;
        for i in &self.instances {
            let lease = match i.lease_remaining_ms {
                0 => "-".to_owned(),
                ms => format!("{ms}ms"),
            };
            writeln!(
                f,
                "{:<20} {:<7} {:>4} {:>4} {:<12} {:>6} {}",
                i.name,
                i.state,
                i.priority,
                i.vrid,
                i.interface,
                lease,
                i.vips.join(" ")
            )?;
            if i.handed_over {
                writeln!(
                    f,
                    "  handed over: backup while another is master, until `lvsd failback` or a restart"
                )?;
            }
            for Way { interface, state } in &i.ways {
                writeln!(f, "  adverts over {interface}: {state}")?;
            }
            if let Some(Claim { mac, seconds_ago }) = &i.claim {
                let count = i.counters.get(Counter::Claims.name()).copied().unwrap_or_default();
                writeln!(
                    f,
                    "  split brain: {mac} claimed its addresses, last {seconds_ago} s ago ({count} times seen)"
                )?;
            }
            for Tracker { kind, name, weight, state, .. } in &i.trackers {
                writeln!(f, "  {kind} {name} {state} (weight {weight})")?;
            }
            for trouble in i.troubles() {
                writeln!(f, "  {trouble}")?;
            }
        }
        writeln!(f, "\nProt LocalAddress:Port Scheduler")?;
        writeln!(f, "  -> RemoteAddress:Port           Forward Weight State         Packets          Bytes")?;
        for service in &self.services {
            let protocol = service.protocol.to_uppercase();
            let name = endpoint(&service.address, service.port);
            write!(f, "{protocol:<4} {name} {}", service.scheduler)?;
            if let Some(config) = service.quic_config_id {
                write!(f, " quic config {config}")?;
            }
            let Quorum { up, weight, required, .. } = &service.quorum;
            if !up {
                write!(f, " no quorum: {weight} of {required}")?;
            }
            writeln!(
                f,
                "{}",
                if service.suspended { " checks suspended: the address is not here" } else { "" }
            )?;
            for real in &service.reals {
                let name = endpoint(&real.address, real.port);
                let weight = if real.state == "up" { real.effective_weight } else { real.weight };
                writeln!(
                    f,
                    "  -> {name:<28} {:<7} {:<6} {:<8} {:>12} {:>14}",
                    real.forwarding, weight, real.state, real.packets, real.bytes
                )?;
                if let Some(id) = &real.quic_server_id {
                    writeln!(f, "     quic server ID {id}")?;
                }
                if let Some(ordered) = real.ordered_weight {
                    writeln!(f, "     overridden: weight {ordered}, configured {}", real.weight)?;
                }
                for check in real.checks.iter().filter(|check| check.error.is_some()) {
                    let error = check.error.as_deref().unwrap_or_default();
                    writeln!(f, "     {} {}: {error}", check.kind, check.state)?;
                }
            }
            if let Some(sorry) = &service.sorry_server {
                let name = endpoint(&sorry.address, sorry.port);
                writeln!(
                    f,
                    "  -> {name:<28} {:<7} {:<6} {:<8} {:>12} {:>14}",
                    sorry.forwarding, "sorry", sorry.state, sorry.packets, sorry.bytes
                )?;
            }
        }
        let mut drifts = self.drifts.iter().filter(|(_, count)| **count > 0).peekable();
        if drifts.peek().is_some() {
            writeln!(f, "\nChanged by something else and put back")?;
        }
        for (name, count) in drifts {
            writeln!(f, "{name:<20} {count:>14}")?;
        }
        if self.services.iter().any(|service| service.quic_config_id.is_some()) {
            writeln!(f, "\nPackets of QUIC by server ID")?;
            for what in lvs_ebpf_common::ById::ALL {
                let count = self.quic.get(what.name()).copied().unwrap_or_default();
                writeln!(f, "{:<20} {count:>14} {}", what.name(), what.describe())?;
            }
        }
        writeln!(f, "\nPackets by outcome")?;
        for outcome in lvs_ebpf_common::Outcome::ALL {
            match self.outcomes.get(outcome.name()) {
                None | Some(0) => {}
                Some(count) => {
                    writeln!(f, "{:<20} {count:>14} {}", outcome.name(), outcome.describe())?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_every_instance_real_and_failing_check() {
        let real = Real {
            address: "10.0.0.2".into(),
            port: 80,
            forwarding: "TUN".into(),
            weight: 1,
            ordered_weight: Some(4),
            effective_weight: 0,
            state: "down".into(),
            quic_server_id: Some("0a01".into()),
            packets: 7,
            bytes: 490,
            checks: vec![Check {
                kind: "TCP_CHECK".into(),
                state: "down".into(),
                error: Some("refused".into()),
            }],
        };
        let status = Status {
            instances: vec![Instance {
                name: "VI_1".into(),
                state: "MASTER".into(),
                priority: 150,
                handed_over: true,
                vrid: 51,
                interface: "eth0".into(),
                vips: vec!["10.0.0.100".into()],
                lease_remaining_ms: 2400,
                trackers: vec![Tracker {
                    kind: "track_script".into(),
                    name: "chk".into(),
                    weight: -20,
                    reverse: false,
                    state: "down".into(),
                }],
                ways: vec![Way { interface: "eth1".into(), state: "silent".into() }],
                claim: Some(Claim { mac: "02:00:00:00:00:07".into(), seconds_ago: 3 }),
                counters: [("adverts_sent", 9), ("send_failures", 3), ("own_address", 0)]
                    .map(|(name, count)| (name.to_owned(), count))
                    .into(),
                rejected: [("ttl".to_owned(), 2), ("password".to_owned(), 0)].into(),
            }],
            router_id: "lb1".into(),
            strays: 0,
            services: vec![Service {
                address: "10.0.0.100".into(),
                port: 80,
                protocol: "tcp".into(),
                scheduler: "mh".into(),
                forwarding: "DR".into(),
                quic_config_id: Some(2),
                quorum: Quorum { up: false, weight: 0, required: 1, hysteresis: 0 },
                suspended: true,
                sorry_server: Some(SorryServer {
                    address: "10.0.0.9".into(),
                    port: 80,
                    forwarding: "DR".into(),
                    state: "up".into(),
                    packets: 1,
                    bytes: 60,
                }),
                reals: vec![real],
            }],
            drifts: [("tables".to_owned(), 3), ("pins".to_owned(), 0)].into(),
            quic: [("led", 5), ("dead_real", 0)].map(|(name, count)| (name.to_owned(), count)).into(),
            outcomes: [("forwarded".to_owned(), 7), ("no_real".to_owned(), 0)].into(),
        };
        let text = status.to_string();
        for part in [
            "VI_1",
            "MASTER",
            "track_script chk down (weight -20)",
            "2400ms",
            "adverts over eth1: silent",
            "split brain: 02:00:00:00:00:07 claimed its addresses, last 3 s ago",
            "handed over",
            "3 adverts could not be sent",
            "2 adverts refused: ttl",
            "TCP  10.0.0.100:80 mh quic config 2 no quorum: 0 of 1 checks suspended",
            "quic server ID 0a01",
            "led                               5 Its connection ID",
            "-> 10.0.0.2:80                  TUN     1      down",
            "overridden: weight 4, configured 1",
            "TCP_CHECK down: refused",
            "-> 10.0.0.9:80                  DR      sorry  up",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        for part in ["adverts_sent", "own address", "password"] {
            assert!(!text.contains(part), "{part} is nothing to worry about:\n{text}");
        }
        assert!(text.contains("tables ") && !text.contains("pins"), "only what was put back:\n{text}");
        assert!(text.contains("forwarded") && !text.contains("no_real"), "only what happened:\n{text}");
    }
}
