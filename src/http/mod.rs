//! HTTP on both listeners: handshakes on the traffic side, metrics and health on the admin side.

pub mod admin;
mod dial;
mod distribution;
mod handshake;
mod headers;
pub mod health;
mod refusal;
pub mod traffic;
