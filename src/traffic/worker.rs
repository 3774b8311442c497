//! What one worker thread needs for its connections: the current state and its connections to pods.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use super::{
    plain::idle::IdleConnections,
    service::ServiceState,
    state::{CurrentState, TrafficState},
    upstream::UpstreamConnector,
};
use crate::{domain::service_id::ServiceMap, net::connect::ConnectSettings};

/// One worker thread. Gives each request the state of the moment; a request keeps that state until
/// it is done, even when the settings are reloaded meanwhile.
pub struct Worker {
    current: Arc<CurrentState>,
    state: RefCell<Rc<WorkerState>>,
}

impl Worker {
    /// Creates the worker of the current thread.
    pub fn new(current: Arc<CurrentState>) -> Self {
        let state = WorkerState::new(current.load_full(), None);
        Self { current, state: RefCell::new(Rc::new(state)) }
    }

    /// Returns the state by the settings that hold now.
    pub fn state(&self) -> Rc<WorkerState> {
        let traffic = self.current.load();
        let mut state = self.state.borrow_mut();
        if !Arc::ptr_eq(&state.traffic, &traffic) {
            *state = Rc::new(WorkerState::new(traffic.clone(), Some(&state.upstreams)));
        }
        state.clone()
    }
}

/// What the connections of one worker thread share as long as the settings stay the same.
pub struct WorkerState {
    /// What all workers share.
    pub traffic: Arc<TrafficState>,
    /// This thread's handles to the pods of each service.
    pub upstreams: ServiceMap<Rc<UpstreamHandle>>,
}

impl WorkerState {
    /// Creates the state for `traffic`. Handles of `previous` that connect to the same service with
    /// the same settings are kept, and with them their idle connections.
    pub fn new(
        traffic: Arc<TrafficState>,
        previous: Option<&ServiceMap<Rc<UpstreamHandle>>>,
    ) -> Self {
        let upstream = |service: &Arc<ServiceState>| {
            let known = previous.and_then(|upstreams| upstreams.get(service.id));
            let known = known.filter(|upstream| upstream.connects_as(service)).cloned();
            (service.id, known.unwrap_or_else(|| Rc::new(UpstreamHandle::new(service))))
        };
        Self { upstreams: traffic.services.values().map(upstream).collect(), traffic }
    }
}

/// One worker's handle to the pods of one service.
pub struct UpstreamHandle {
    connect: ConnectSettings,
    /// Opens connections.
    pub connector: UpstreamConnector,
    /// Open connections that wait for the next plain request.
    pub idle: IdleConnections,
}

impl UpstreamHandle {
    /// Creates the current thread's handle to the pods of `service`.
    pub fn new(service: &ServiceState) -> Self {
        Self {
            connect: service.settings.connect.clone(),
            connector: UpstreamConnector::new(
                service.settings.connect.clone(),
                service.settings.read_timeout,
            ),
            idle: IdleConnections::default(),
        }
    }

    /// Returns whether this handle connects as the settings of `service` say.
    fn connects_as(&self, service: &ServiceState) -> bool {
        self.connect == service.settings.connect
            && self.connector.read_timeout == service.settings.read_timeout
    }
}
