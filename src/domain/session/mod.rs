//! The rules of sessions: how many there may be, when they time out, how they are closed over time.

pub mod admission;
pub mod departures;
pub mod timeouts;
