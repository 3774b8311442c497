//! Starts the control actors on a thread of their own.

use std::sync::Arc;

use actix::{Addr, Arbiter};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{
    actors::{
        discovery::DiscoveryActor, metrics::MetricsActor, registry::RegistryActor,
        supervision::Supervisor,
    },
    config::Config,
    domain::service_id::ServiceIds,
    services,
};

/// The control actors; they stop when this is dropped.
pub struct ControlActors {
    arbiter: Arbiter,
    pub metrics: Addr<MetricsActor>,
    pub registry: Arc<Addr<RegistryActor>>,
    pub discovery: Addr<DiscoveryActor>,
    /// Why an actor was given up.
    pub(super) failures: UnboundedReceiver<String>,
    /// The ids of the services in the settings.
    pub ids: ServiceIds,
}

impl ControlActors {
    /// Starts the actors for the services of `config`. Polls and lookups begin at once.
    pub fn start(config: &Config) -> Self {
        let arbiter = Arbiter::new();
        let mut ids = ServiceIds::default();
        let rules = services::rules(&mut ids, config);
        let lookups = services::lookups(&mut ids, config);
        let (failed, failures) = unbounded_channel();
        let supervisor = Supervisor::new(arbiter.handle(), failed);
        let registry = supervisor.start("RegistryActor", |_| RegistryActor::default());
        let (move_sessions, move_all) =
            (registry.clone().recipient(), registry.clone().recipient());
        let metrics =
            supervisor.start("MetricsActor", |_| MetricsActor::new(rules, move_sessions, move_all));
        let (backends, replicas) = (metrics.clone().recipient(), metrics.clone().recipient());
        let discovery = supervisor
            .start("DiscoveryActor", |_| DiscoveryActor::new(lookups, backends, replicas));
        Self { arbiter, metrics, registry: Arc::new(registry), discovery, failures, ids }
    }
}

impl Drop for ControlActors {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}
