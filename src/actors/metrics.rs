//! Owns the pool: takes the pods' reports in, hands backends out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, AsyncContext as _, Context, Handler, Message, MessageResponse, Recipient};

use super::{
    discovery::{BackendsChanged, ReplicasChanged},
    poll::{PollSettings, Pollers},
    registry::{MoveAll, MoveSessions, Pace},
};
use crate::domain::{
    affinity::Preference,
    lease::{Backend, Lease, Load, Purpose},
    pool::{BackendSnapshot, News, NoBackend, Poll, Pool, State},
    rebalance::Rebalancer,
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

impl Backends {
    /// Whether a session, a handshake or a plain request is on any of them.
    pub fn are_busy(&self) -> bool {
        self.0.iter().any(|backend| backend.load != Load::default())
    }
}

/// Says on behalf of an operator whether backends take new connections. Answers with those that are
/// meant, as they stand then, unless there is nothing of that name.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Option<Backends>")]
pub struct OperatorDrain {
    /// Which ones.
    pub whose: Whose,
    /// They take none, or they take them again.
    pub drains: bool,
    /// Over how long their sessions are moved, instead of the configured time; zero means that they
    /// stay.
    pub over: Option<Duration>,
}

/// Which backends an operator means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those at this address, in whichever service.
    Address(String),
    /// All of this service, and those that are yet to come.
    Service(String),
}

/// The backends of one service, and how they are asked for their counts.
pub struct Watch {
    /// The service's name.
    pub service: String,
    /// What is known of them.
    pub pool: Pool,
    /// `None` where pods have no metric route.
    pub polls: Option<PollSettings>,
    /// Where sessions may be moved.
    pub rebalancer: Option<Rebalancer>,
    /// Over how long the sessions of a draining backend are moved; zero means that they stay.
    pub pod_drain_time: Duration,
    /// Whether the sessions of an ejected backend are closed.
    pub closes_ejected: bool,
}

/// Polls every backend and answers who gets the next connection.
pub struct MetricsActor {
    /// By index of the service.
    services: Vec<Watch>,
    /// Who polls, by index of the service; they stop when the actor does.
    pollers: Vec<Pollers>,
    /// Who moves sessions.
    mover: Recipient<MoveSessions>,
    /// Who moves all those of a backend.
    drainer: Recipient<MoveAll>,
}

/// How often backends that are away are looked at.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// How often it is asked whether sessions should be moved.
const REBALANCE_EVERY: Duration = Duration::from_secs(1);

impl MetricsActor {
    /// An actor over the pools of `services`. It polls once started, where there is something to
    /// ask.
    pub fn new(
        services: Vec<Watch>,
        mover: Recipient<MoveSessions>,
        drainer: Recipient<MoveAll>,
    ) -> Self {
        Self { services, pollers: Vec::new(), mover, drainer }
    }

    /// Starts pollers for backends that are new and stops those of backends that are forgotten.
    fn poll_what_is_there(&mut self, service: usize) {
        if let (Some(watch), Some(pollers)) =
            (self.services.get(service), self.pollers.get_mut(service))
        {
            pollers.poll(watch.pool.poll_targets());
        }
    }

    fn forget(&mut self) {
        for service in 0..self.services.len() {
            self.services[service].pool.forget(Instant::now());
            self.tell(service);
            self.poll_what_is_there(service);
        }
    }

    fn rebalance(&mut self) {
        let now = Instant::now();
        for Watch { pool, rebalancer, .. } in &mut self.services {
            let Some(rebalancer) = rebalancer else { continue };
            if let Some(moves) = rebalancer.plan(&pool.snapshot(now), pool.replicas(), now) {
                self.mover.do_send(MoveSessions(moves));
            }
        }
    }

    /// Logs what operators should hear of, and says what becomes of sessions that may have to go.
    fn tell(&mut self, service: usize) {
        let Some(watch) = self.services.get_mut(service) else { return };
        for news in watch.pool.take_news() {
            log(&news);
            match news {
                News::Drains { backend, .. } => {
                    let pace = pace(watch.pod_drain_time);
                    self.drainer.do_send(MoveAll { from: backend, pace });
                }
                News::DrainsNoMore { backend } | News::Forgotten { backend } => {
                    self.drainer.do_send(MoveAll { from: backend, pace: Pace::Never });
                }
                News::Ejected { backend, .. } | News::Down { backend, .. }
                    if watch.closes_ejected =>
                {
                    self.drainer.do_send(MoveAll { from: backend, pace: Pace::AtOnce });
                }
                News::Ejected { .. } | News::Down { .. } | News::FailsOpen => {}
            }
        }
    }
}

/// No time means that sessions stay.
fn pace(over: Duration) -> Pace {
    if over.is_zero() { Pace::Never } else { Pace::Over(over) }
}

impl Actor for MetricsActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let reports = ctx.address().recipient();
        if self.services.iter().any(|service| service.rebalancer.is_some()) {
            ctx.run_interval(REBALANCE_EVERY, |metrics, _| metrics.rebalance());
        }
        let pollers = |(service, watch): (usize, &Watch)| {
            Pollers::new(service, watch.polls.as_ref(), reports.clone())
        };
        self.pollers = self.services.iter().enumerate().map(pollers).collect();
        for service in 0..self.services.len() {
            self.poll_what_is_there(service);
        }
        ctx.run_interval(FORGET_EVERY, |metrics, _| metrics.forget());
    }
}

impl Handler<PickBackend> for MetricsActor {
    type Result = Result<Lease, NoBackend>;

    fn handle(&mut self, message: PickBackend, _: &mut Self::Context) -> Self::Result {
        let PickBackend { service, purpose, preference, tried } = message;
        let Watch { pool, .. } = self.services.get_mut(service).ok_or(NoBackend::Empty)?;
        let picked = pool.pick(purpose, &tried, preference, Instant::now());
        self.tell(service);
        picked
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
        self.tell(service);
    }
}

impl Handler<Snapshot> for MetricsActor {
    type Result = Backends;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> Backends {
        let now = Instant::now();
        let services = self.services.iter_mut();
        let pods = services.flat_map(|Watch { pool, .. }| pool.snapshot(now)).collect();
        (0..self.services.len()).for_each(|service| self.tell(service));
        Backends(pods)
    }
}

impl Handler<BackendsChanged> for MetricsActor {
    type Result = ();

    fn handle(&mut self, changed: BackendsChanged, _: &mut Self::Context) {
        let BackendsChanged { service, backends } = changed;
        if let Some(Watch { pool, .. }) = self.services.get_mut(service) {
            pool.set_backends(backends, Instant::now());
            self.tell(service);
            self.poll_what_is_there(service);
        }
    }
}

impl Handler<ReplicasChanged> for MetricsActor {
    type Result = ();

    fn handle(&mut self, changed: ReplicasChanged, _: &mut Self::Context) {
        if let Some(Watch { pool, .. }) = self.services.get_mut(changed.service) {
            pool.set_replicas(changed.replicas);
        }
    }
}

impl Handler<OperatorDrain> for MetricsActor {
    type Result = Option<Backends>;

    fn handle(&mut self, drain: OperatorDrain, _: &mut Self::Context) -> Option<Backends> {
        let OperatorDrain { whose, drains, over } = drain;
        let now = Instant::now();
        let mut found: Option<Vec<BackendSnapshot>> = None;
        for service in 0..self.services.len() {
            self.tell(service);
            let watch = &mut self.services[service];
            let meant = match &whose {
                Whose::Service(name) if *name != watch.service => continue,
                Whose::Service(_) => watch.pool.drain(None, drains),
                Whose::Address(address) => watch.pool.drain(Some(address), drains),
            };
            if matches!(whose, Whose::Address(_)) && meant.is_empty() {
                continue;
            }
            watch.pool.take_news().iter().for_each(log);
            let mut snapshot = watch.pool.snapshot(now);
            snapshot.retain(|pod| meant.contains(&pod.backend));
            for pod in &snapshot {
                let drains = pod.state == State::Draining;
                let over =
                    if drains { over.unwrap_or(watch.pod_drain_time) } else { Duration::ZERO };
                let from = pod.backend.clone();
                self.drainer.do_send(MoveAll { from, pace: pace(over) });
            }
            found.get_or_insert_default().extend(snapshot);
        }
        found.map(Backends)
    }
}

/// Draining is everyday life; the rest is not.
fn log(news: &News) {
    match news {
        News::Drains { .. } | News::DrainsNoMore { .. } | News::Forgotten { .. } => {
            log::info!("{news}");
        }
        News::Ejected { .. } | News::Down { .. } | News::FailsOpen => log::warn!("{news}"),
    }
}
