//! Reading keepalived.conf.
pub mod model;
