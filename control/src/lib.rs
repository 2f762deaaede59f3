//! The parts of `lvsd`.

pub mod admin;
pub mod announce;
pub mod check;
pub mod config;
pub mod dataplane;
pub mod director;
pub mod netlink;
pub mod vrrp;
