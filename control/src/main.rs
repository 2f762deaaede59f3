//! `lvsd`.
fn main() {}
