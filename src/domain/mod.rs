//! Which backend gets the next connection: plain data and arithmetic.
//!
//! No actor, no clock, no I/O: time comes in as a parameter and randomness from a seed, so that
//! the same code serves, is property-tested and can be simulated.

pub mod balance;
pub mod dns;
pub mod report;
pub mod routing;
pub mod service_id;
pub mod session;
