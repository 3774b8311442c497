//! Connections to pods and from clients, below HTTP; and DNS look-ups.
//!
//! Covers DNS, TCP, TLS, Unix-domain sockets, inherited sockets and the PROXY protocol.

pub mod activation;
pub mod connect;
pub mod dns;
pub mod listen;
pub mod proxy_protocol;
pub mod rewind;
pub mod tcp;
pub mod tls;
pub mod write_timeout;

use crate::relay::Io;

/// A client's connection of any kind: TCP or Unix-domain, with or without TLS.
pub type ClientStream = Box<dyn Io + Send>;
