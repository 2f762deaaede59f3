//! A laboratory of network namespaces: hosts on one switch, with real daemons, real packets and real HTTP.
//!
//! [`Lab`] owns it all and leaves nothing behind. [`Scene`] is the usual line-up of a client, two directors and
//! three real servers. What a test sees, it sees through [`Capture`] (frames), [`Load`] (requests) and
//! [`Director::status`].

mod arp_probe;
mod background;
mod capture;
mod clock;
mod config;
mod crowd;
mod datagrams;
mod dice;
mod director;
pub mod echo;
mod frr;
mod http;
mod keepalived;
mod lab;
mod need;
mod neighbours;
mod node;
mod pair;
mod process;
mod realtime;
mod scene;
mod signals;
mod sum;
mod wire;

pub use arp_probe::ArpProbe;
pub use capture::{Capture, send};
pub use clock::{Stamp, pause, wait_for};
pub use config::{CHECK_TIME, Vrrp, scheduled_service, service_with, web_service};
pub use crowd::{Reloaded, reload_under_load};
pub use datagrams::{Datagrams, Tally};
pub use dice::Dice;
pub use director::{Director, Entry, Status};
pub use frr::Frr;
pub use http::{Conversation, Load, Outage, Request, get, outage, spread};
pub use keepalived::Keepalived;
pub use lab::{Lab, remove_leftovers};
pub use need::{Need, find_program, require, skip};
pub use neighbours::{ask, believes, wait_until_believed};
pub use node::{Mac, Node};
pub use pair::{PACE, PATIENCE, Pair};
pub use process::Process;
pub use realtime::enter as at_real_time;
pub use scene::{GUE_PORT, RealServer, Scene, VIP, serve, serve_at};
pub use sum::Sum;
pub use wire::{Advert, Advertisement, Arp, masters, turns};
