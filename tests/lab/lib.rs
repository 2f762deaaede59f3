//! Namespaces as hosts.
