//! Changes in a pool that operators should know of, and their log lines.

use std::{fmt, sync::Arc, time::Duration};

use super::backend::Backend;

/// A change in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolEvent {
    /// A backend gets no connections for a while, because it failed.
    Ejected { backend: Arc<Backend>, length: Duration, reason: String },
    /// A backend has started to report that it is down.
    ReportedDown { backend: Arc<Backend>, reason: String },
    /// All backends that might take connections are ejected, so ejected ones are chosen.
    AllEjected { service: String },
    /// A backend takes no new connections from now on.
    DrainStarted { backend: Arc<Backend>, reason: &'static str },
    /// A backend that was draining takes new connections again.
    DrainEnded { backend: Arc<Backend> },
    /// A backend that left the service is no longer kept.
    Removed { backend: Arc<Backend> },
}

impl fmt::Display for PoolEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ejected { backend, length, reason } => {
                write!(f, "pod {} ejected for {length:.1?}: {reason}", backend.address)
            }
            Self::ReportedDown { backend, reason } => {
                write!(f, "pod {} reports that it is down: {reason}", backend.address)
            }
            Self::AllEjected { service } => {
                write!(f, "service {service}: all pods are ejected, so ejected pods are used")
            }
            Self::DrainStarted { backend, reason } => {
                write!(f, "pod {} draining: {reason}", backend.address)
            }
            Self::DrainEnded { backend } => {
                write!(f, "pod {} accepts new sessions again", backend.address)
            }
            Self::Removed { backend } => write!(
                f,
                "pod {} removed: it left the service and has no sessions",
                backend.address
            ),
        }
    }
}
