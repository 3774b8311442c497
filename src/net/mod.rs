//! Connections before anything is said on them, to pods and from clients; and where pods are.
//!
//! Knows DNS, TCP, TLS, Unix-domain sockets and the PROXY protocol, and nothing of HTTP.

pub mod activation;
pub mod connect;
pub mod dns;
pub mod listen;
pub mod patient;
pub mod proxy_protocol;
pub mod rewind;
pub mod tcp;
pub mod tls;

use crate::relay::Io;

/// A client's connection, whatever it is made of.
pub type Stream = Box<dyn Io + Send>;
