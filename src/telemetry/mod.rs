//! What the process says of itself to those who watch it.

pub mod counters;
pub mod logging;
