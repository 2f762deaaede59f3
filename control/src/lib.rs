//! The parts of `lvsd`.
pub mod config;
pub mod dataplane;
pub mod netlink;
