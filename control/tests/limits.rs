//! How much time and memory may a configuration take, whatever it is?
//!
//! A binary of its own: its allocator counts.

#[path = "limits/fuzz.rs"]
mod fuzz;
#[path = "limits/peak.rs"]
mod peak;
#[path = "limits/speed.rs"]
mod speed;
#[path = "limits/tables.rs"]
mod tables;
