//! What the pool of one service needs from the configuration.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use super::{affinity, health::HealthSettings, strategy::Strategy};

/// The settings of one service's pool. The defaults are those of `config/default.toml`.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// How the next backend is chosen.
    pub strategy: Strategy,
    /// The number of balancer replicas that share the pods, at least 1.
    pub replicas: u32,
    /// A report older than this is stale; own counts are used instead.
    pub stale_after: Duration,
    /// The most sessions of this replica, on all backends together.
    pub max_sessions: Option<NonZeroU32>,
    /// The most connections of one backend, compared with its estimate.
    pub max_sessions_per_pod: Option<NonZeroU32>,
    /// When a backend is ejected, and how it returns.
    pub health: HealthSettings,
    /// How long a backend is kept after it has left the service.
    pub grace: Duration,
    /// The key for the tags in affinity cookies; `None` without affinity cookies.
    pub affinity_key: Option<affinity::Key>,
    /// The configured capacities of backends, by address. Others have the default capacity.
    pub capacities: BTreeMap<String, Capacity>,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            strategy: Strategy::LeastConnections,
            replicas: 1,
            stale_after: Duration::from_secs(30),
            max_sessions: None,
            max_sessions_per_pod: None,
            health: HealthSettings::default(),
            grace: Duration::from_secs(60),
            affinity_key: None,
            capacities: BTreeMap::new(),
        }
    }
}

/// The configured capacity of one backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// The backend's part of the connections relative to other backends. A reported weight
    /// multiplies it.
    pub weight: f64,
    /// The most connections; the smaller one counts if the backend reports a limit too.
    pub max_connections: Option<u64>,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { weight: 1.0, max_connections: None }
    }
}
