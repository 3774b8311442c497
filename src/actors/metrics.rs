//! Owns the pool: takes the pods' reports in, hands backends out.

use std::{sync::Arc, time::Instant};

use actix::{Actor, AsyncContext as _, Context, Handler, Message, MessageResponse};

use super::{
    discovery::{BackendsChanged, ReplicasChanged},
    poll::{PollSettings, Poller},
};
use crate::domain::{
    affinity::Preference,
    lease::{Backend, Lease, Purpose},
    pool::{BackendSnapshot, NoBackend, Poll, Pool},
    report::{Report, ReportError},
};

/// Asks for a slot on a service's preferred or least-loaded backend.
#[derive(Debug, Message)]
#[rtype(result = "Result<Lease, NoBackend>")]
pub struct PickBackend {
    /// Index of the service.
    pub service: usize,
    /// What the slot is for.
    pub purpose: Purpose,
    /// Which backend would be best.
    pub preference: Preference,
    /// Backends that have already failed this connection.
    pub tried: Vec<Arc<Backend>>,
}

/// What one poll of one backend brought.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Polled {
    /// Index of the service.
    pub service: usize,
    /// The poll, begun when its request was sent.
    pub poll: Poll,
    /// The report, or why there is none.
    pub result: Result<Report, ReportError>,
}

/// Asks for every backend as it stands.
#[derive(Debug, Message)]
#[rtype(result = "Backends")]
pub struct Snapshot;

/// Answer to [`Snapshot`], by service, in configured order.
#[derive(Debug, MessageResponse)]
pub struct Backends(pub Vec<BackendSnapshot>);

/// The backends of one service, and how they are asked for their counts.
pub struct Watch {
    /// What is known of them.
    pub pool: Pool,
    /// `None` where pods have no metric route.
    pub polls: Option<PollSettings>,
}

/// Polls every backend and answers who gets the next connection.
pub struct MetricsActor {
    /// By index of the service.
    services: Vec<Watch>,
    /// One per backend; they stop when the actor does.
    pollers: Vec<Poller>,
}

impl MetricsActor {
    /// An actor over the pools of `services`. It polls once started, where there is something to
    /// ask.
    pub fn new(services: Vec<Watch>) -> Self {
        Self { services, pollers: Vec::new() }
    }
}

impl Actor for MetricsActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let reports = ctx.address().recipient();
        for (service, Watch { pool, polls }) in self.services.iter().enumerate() {
            if let Some(polls) = polls {
                let targets = pool.poll_targets();
                self.pollers.extend(Poller::start_all(service, targets, polls, &reports));
            }
        }
    }
}

impl Handler<PickBackend> for MetricsActor {
    type Result = Result<Lease, NoBackend>;

    fn handle(&mut self, message: PickBackend, _: &mut Self::Context) -> Self::Result {
        let PickBackend { service, purpose, preference, tried } = message;
        let service = self.services.get_mut(service).ok_or(NoBackend::Empty)?;
        service.pool.pick(purpose, &tried, preference, Instant::now())
    }
}

impl Handler<Polled> for MetricsActor {
    type Result = ();

    fn handle(&mut self, Polled { service, poll, result }: Polled, _: &mut Self::Context) {
        let Some(Watch { pool, .. }) = self.services.get_mut(service) else { return };
        let url = &poll.backend().url;
        match (&result, pool.last_error(poll.backend())) {
            (Err(error), known) if known != Some(error) => {
                log::warn!("{url}: its count is unknown or ages: {error}");
            }
            (Ok(_), Some(_)) => log::info!("{url}: reports again"),
            _ => {}
        }
        pool.record(poll, result, Instant::now());
    }
}

impl Handler<Snapshot> for MetricsActor {
    type Result = Backends;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> Backends {
        let now = Instant::now();
        Backends(self.services.iter().flat_map(|service| service.pool.snapshot(now)).collect())
    }
}

impl Handler<BackendsChanged> for MetricsActor {
    type Result = ();

    fn handle(
        &mut self,
        BackendsChanged { service, backends }: BackendsChanged,
        _: &mut Self::Context,
    ) {
        log::debug!("service {service}: {} backends discovered", backends.len());
    }
}

impl Handler<ReplicasChanged> for MetricsActor {
    type Result = ();

    fn handle(
        &mut self,
        ReplicasChanged { service, replicas }: ReplicasChanged,
        _: &mut Self::Context,
    ) {
        log::debug!("service {service}: {replicas} replicas discovered");
    }
}
