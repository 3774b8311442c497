//! Chooses the backend for each new connection.
//!
//! [`pool::Pool`] holds the backends of one service and answers picks with a [`lease::Lease`].

pub mod affinity;
pub mod backend;
mod decay;
pub mod estimate;
pub mod events;
pub mod health;
pub mod lease;
pub mod poll;
pub mod pool;
pub mod rebalance;
pub mod settings;
pub mod snapshot;
pub mod strategy;
