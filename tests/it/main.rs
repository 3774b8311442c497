//! Integration tests: real sockets, scriptable pods, actix's test server.
//!
//! One binary, because each further one would link the whole dependency tree again.

mod affinity;
mod api;
mod backpressure;
mod discovery;
mod docs;
mod drain;
mod echo;
mod ends;
mod handshake;
mod layering;
mod life;
mod metrics;
mod plain;
mod process;
mod routes;
mod selection;
mod support;
mod tls;
