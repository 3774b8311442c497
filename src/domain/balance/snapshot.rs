//! A backend's state at one instant, for the admin listener and for rebalancing.

use std::{sync::Arc, time::Duration};

use super::{backend::Backend, lease::Load};
use crate::domain::report::{Report, ReportError};

/// Whether a backend takes new connections, and how much is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Its last report is fresh.
    Up,
    /// It is new, or back after an ejection, and gets only a limited part of the arrivals.
    Cold,
    /// Its last report is too old to be used.
    Stale,
    /// It has not given a readable report.
    Unknown,
    /// It takes no new connections: an operator or the pod itself asked for that, or it has left
    /// the service.
    Draining,
    /// It has reached its limit of connections.
    Full,
    /// It has failed too often, or reports that it is down.
    Ejected,
}

/// What the pool knows of a backend at one instant.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    pub backend: Arc<Backend>,
    pub state: BackendState,
    /// Why the backend is in this state, unless the state says it.
    pub reason: Option<String>,
    /// The last report and its age.
    pub report: Option<(Report, Duration)>,
    /// Why the last poll gave no report.
    pub error: Option<ReportError>,
    /// This replica's own load on it.
    pub load: Load,
    /// The connections that it is estimated to hold.
    pub estimate: u64,
    /// Its part of the connections relative to other backends.
    pub weight: f64,
    /// The most connections that it may hold.
    pub limit: Option<u64>,
    /// The rest of its ejection.
    pub ejected_for: Option<Duration>,
}
