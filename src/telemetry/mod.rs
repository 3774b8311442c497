//! What the process reports about itself: counters for Prometheus, and log lines.

pub mod counters;
pub mod logging;
