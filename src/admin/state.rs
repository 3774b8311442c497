//! The state that the handlers of the admin listener share.

use std::sync::Arc;

use actix::Addr;

use crate::{
    actors::{discovery::DiscoveryActor, metrics::MetricsActor, registry::RegistryActor},
    config::live::LiveConfig,
    telemetry::counters::Counters,
    traffic::{lifecycle::Lifecycle, state::TrafficState},
};

/// Addresses and counters that the handlers read.
#[derive(Clone)]
pub struct AdminState {
    pub metrics: Addr<MetricsActor>,
    pub discovery: Addr<DiscoveryActor>,
    pub registry: Arc<Addr<RegistryActor>>,
    /// Whether the process is ready for new connections.
    pub lifecycle: Arc<Lifecycle>,
    pub counters: Arc<Counters>,
    /// Requests reloads, and has the active settings.
    pub live_config: Arc<LiveConfig>,
}

impl AdminState {
    /// Creates the state of the admin listener that belongs to `traffic`.
    pub fn new(
        traffic: &TrafficState,
        discovery: Addr<DiscoveryActor>,
        live_config: Arc<LiveConfig>,
    ) -> Self {
        Self {
            metrics: traffic.metrics.clone(),
            discovery,
            registry: traffic.registry.clone(),
            lifecycle: traffic.lifecycle.clone(),
            counters: traffic.counters.clone(),
            live_config,
        }
    }
}
