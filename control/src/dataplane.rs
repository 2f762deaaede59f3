//! Owner of the BPF objects.
pub mod lease;
mod maglev;
mod mapped;
pub mod plan;
