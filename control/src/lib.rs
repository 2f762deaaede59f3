//! The parts of `lvsd`.
pub mod config;
