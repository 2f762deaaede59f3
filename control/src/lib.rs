//! The parts of `lvsd`.

pub mod admin;
pub mod announce;
pub mod check;
mod checksum;
pub mod cli;
mod clock;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod director;
mod drift;
pub mod file_value;
pub mod host;
pub mod netlink;
pub mod notify;
mod packet_socket;
pub mod pool;
pub mod script;
pub mod vrrp;
