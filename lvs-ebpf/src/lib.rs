//! The XDP program's parts, compiled for BPF and, for unit tests, for the host.
#![no_std]
