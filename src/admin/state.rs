//! What the handlers of the admin listener need.

use std::sync::Arc;

use actix::Addr;

use crate::{
    actors::{discovery::DiscoveryActor, metrics::MetricsActor, registry::RegistryActor},
    config::live::LiveConfig,
    telemetry::counters::Counters,
    traffic::{lifecycle::Lifecycle, state::TrafficState},
};

/// What the handlers ask.
#[derive(Clone)]
pub struct AdminState {
    /// Who knows the pods.
    pub metrics: Addr<MetricsActor>,
    /// Who looks names up.
    pub discovery: Addr<DiscoveryActor>,
    /// Who knows the sessions.
    pub registry: Arc<Addr<RegistryActor>>,
    /// Whether the process takes connections.
    pub health: Arc<Lifecycle>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Who reads settings again.
    pub live_config: Arc<LiveConfig>,
}

impl AdminState {
    /// What belongs to `traffic`, who looks names up for it, and who reads settings again.
    pub fn new(
        traffic: &TrafficState,
        discovery: Addr<DiscoveryActor>,
        live_config: Arc<LiveConfig>,
    ) -> Self {
        Self {
            metrics: traffic.metrics.clone(),
            discovery,
            registry: traffic.registry.clone(),
            health: traffic.lifecycle.clone(),
            counters: traffic.counters.clone(),
            live_config,
        }
    }
}
