//! Which backend gets the next connection.

pub mod affinity;
mod backend;
mod decay;
pub mod estimate;
pub mod health;
pub mod lease;
mod pick_cache;
pub mod pool;
pub mod rebalance;
pub mod settings;
pub mod strategy;
mod unseen;
