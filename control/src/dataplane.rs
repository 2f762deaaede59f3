//! Owner of the BPF objects.
pub mod lease;
