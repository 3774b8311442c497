//! Integration tests: real sockets, scriptable pods, actix's test server.
//!
//! One binary, because each further one would link the whole dependency tree again.

mod backpressure;
mod docs;
mod echo;
mod ends;
mod handshake;
mod layering;
mod metrics;
mod plain;
mod process;
mod selection;
mod support;
