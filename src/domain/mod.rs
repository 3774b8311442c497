//! Which backend gets the next connection: plain data and arithmetic.
//!
//! No actor, no clock, no I/O: time comes in as a parameter and randomness from a seed, so that
//! the same code serves, is property-tested and can be simulated.

pub mod admission;
pub mod affinity;
mod decay;
pub mod discovery;
mod entry;
pub mod estimate;
mod glance;
pub mod health;
pub mod lease;
pub mod life;
pub mod origin;
pub mod pool;
pub mod question;
pub mod rebalance;
pub mod report;
pub mod route;
pub mod share;
pub mod spread;
pub mod strategy;
mod unseen;
