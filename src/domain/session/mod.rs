//! The rules of sessions: how many are admitted, when they time out, how they end, and how many of
//! them are closed over a period.

pub mod admission;
pub mod close_code;
pub mod departures;
pub mod ending;
pub mod side;
pub mod timeouts;
