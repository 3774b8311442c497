//! HTTP on both listeners: handshakes and plain requests on the traffic side, metrics and health on
//! the admin side.

mod accept;
pub mod admin;
mod affinity;
mod api;
pub mod arrivals;
mod bodies;
mod client;
mod convert;
mod dashboard;
mod dial;
mod distribution;
mod exchange;
pub mod forward;
mod front;
mod handshake;
pub mod headers;
pub mod health;
mod plain;
mod queue;
mod refusal;
pub mod reloads;
mod request;
mod reuse;
mod routing;
mod service;
pub mod thread;
pub mod traffic;
mod tries;
