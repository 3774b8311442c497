//! The traffic listener: handshakes and plain requests of clients, from accept to answer.

mod attempts;
mod client;
mod connection;
mod handshake;
pub mod headers;
pub mod lifecycle;
pub mod listener;
mod plain;
mod queue;
pub mod refusal;
mod request_reader;
mod routing;
mod service;
pub mod state;
mod upstream;
pub mod worker;
