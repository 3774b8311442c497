//! The rules of the balancer: plain data and arithmetic.
//!
//! Nothing here uses actors, clocks or I/O. Time is a parameter and randomness comes from a seed, so
//! that the same code serves connections, is tested with random inputs, and runs in a simulation.

pub mod balance;
pub mod dns;
#[doc(hidden)]
pub mod fixtures;
pub mod report;
pub mod routing;
pub mod service_id;
pub mod session;
