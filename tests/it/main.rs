//! Integration tests: real sockets, scriptable pods, actix's test server.
//!
//! One binary, because each further one would link the whole dependency tree again.

mod activation;
mod affinity;
mod api;
mod backpressure;
mod discovery;
mod docs;
mod drain;
mod echo;
mod endings;
mod ends;
mod evidence;
mod handshake;
mod heads;
mod language;
mod layering;
mod life;
mod metrics;
mod plain;
mod process;
mod reload;
mod routes;
mod selection;
#[cfg(feature = "fault-hooks")]
mod supervision;
mod support;
mod tls;
