//! What a configuration means once it has been read: valid by construction, no text left to interpret.

mod check;
mod mail;
mod route;
mod routing_rule;
mod service;
mod vrrp;

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher as _},
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use crate::{
    file_value::Initial,
    script::{Account, Script},
};

pub use check::*;
pub use mail::*;
pub use route::*;
pub use routing_rule::*;
pub use service::*;
pub use vrrp::*;

/// Everything that one file (with its includes) says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub global: Global,
    pub trackers: Vec<Tracker>,
    pub instances: Vec<VrrpInstance>,
    pub groups: Vec<SyncGroup>,
    pub link_delays: Vec<LinkDelays>,
    /// `static_routes`: there while the daemon is.
    pub routes: Vec<VirtualRoute>,
    /// `static_rules`.
    pub rules: Vec<VirtualRule>,
    /// `static_ipaddress`, each with its interface.
    pub addresses: Vec<(String, VirtualAddress)>,
    pub services: Vec<VirtualServer>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Global {
    /// Name of this node, logged at the start and in the status; the hostname where absent.
    pub router_id: Option<String>,
    pub timeouts: Timeouts,
    /// `vrrp_garp_interval` and `vrrp_gna_interval`: between two announcements on one interface.
    pub garp_interval: Duration,
    pub gna_interval: Duration,
    /// `vrrp_startup_delay` and `vrrp_delay_after_boot`: until when no instance takes part.
    pub startup_delay: Duration,
    pub delay_after_boot: Duration,
    pub log_unknown_vrids: bool,
    /// `notify_fifo` and `vrrp_notify_fifo`.
    pub fifos: Vec<Fifo>,
    /// `fifo_write_vrrp_states_on_reload`
    pub fifo_states_on_reload: bool,
    /// `notify_fifo` and `lvs_notify_fifo`.
    pub lvs_fifos: Vec<Fifo>,
    pub mail: Option<Mail>,
    /// Interfaces may come after the start and go: nothing to complain of.
    pub dynamic_interfaces: bool,
    /// Where a real server stands at the start is told too.
    pub rs_init_notifies: bool,
    /// `startup_script` and `shutdown_script`: before anything else is done, and when all has ended.
    pub startup: Option<Once>,
    pub shutdown: Option<Once>,
    /// Whose members may use the control socket, by its number; root alone where absent.
    pub admin_group: Option<u32>,
}

/// A program that is waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct Once {
    pub script: Script,
    pub timeout: Duration,
}

/// `lvs_timeouts`: how long a silent flow is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp: Duration,
    /// `tcpfin`: after a FIN or RST.
    pub tcp_fin: Duration,
    pub udp: Duration,
}

impl Default for Timeouts {
    /// The kernel's for IPVS.
    fn default() -> Self {
        let [tcp, tcp_fin, udp] = [900, 120, 300].map(Duration::from_secs);
        Self { tcp, tcp_fin, udp }
    }
}

/// A named pipe that is told of state changes, and whose it is if it has to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Fifo {
    pub path: PathBuf,
    pub account: Account,
    /// Runs as long as lvsd does, with the path as its last argument.
    pub reader: Option<Script>,
}

/// What runs when the state changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notify {
    pub master: Option<Script>,
    pub backup: Option<Script>,
    pub fault: Option<Script>,
    pub stop: Option<Script>,
    /// After the one of the state, with arguments that say what happened.
    pub any: Option<Script>,
    /// `notify_deleted`: an instance that the file has lost is DELETED, not in FAULT; and what runs then.
    pub says_deleted: bool,
    pub deleted: Option<Script>,
    /// When a master hears a lower priority.
    pub master_rx_lower_pri: Option<Script>,
    /// FIFOs are told of priorities too.
    pub priority_changes: bool,
    /// `smtp_alert`: somebody is mailed too.
    pub mail: bool,
}

/// What runs when a real server, or a service's quorum, comes or goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpDown {
    // Boxed: few of many real servers have any.
    pub up: Option<Box<Script>>,
    pub down: Option<Box<Script>>,
    /// `smtp_alert`: somebody is mailed too.
    pub mail: bool,
}

fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
