//! Owns the pool: takes the pods' reports in, hands backends out.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{
    Actor, AsyncContext as _, Context, Handler, Message, MessageResponse, Recipient, Supervised,
};

use super::{
    discovery::{BackendsChanged, ReplicasChanged},
    poll::{PollSettings, Pollers},
    registry::{MoveAll, MoveSessions, Pace},
};
use crate::domain::{
    balance::{
        affinity::Preference,
        lease::{Backend, Lease, Load, Purpose},
        pool::{BackendSnapshot, News, NoBackend, Poll, Pool, PoolSettings, State},
        rebalance::{RebalanceSettings, Rebalancer},
    },
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
    /// All of this service, and those that are yet to come, while the settings name it.
    Service(String),
}

/// What one service is to be.
#[derive(Clone, Debug)]
pub struct ServiceRules {
    /// Its name.
    pub service: String,
    /// How its backends are chosen.
    pub settings: PoolSettings,
    /// Whether its replicas are counted; then the number in `settings` is but the first.
    pub counts_replicas: bool,
    /// All of them, unless discovery says who they are.
    pub backends: Option<Vec<Backend>>,
    /// `None` where pods have no metric route.
    pub polls: Option<PollSettings>,
    /// Where sessions may be moved.
    pub rebalance: Option<RebalanceSettings>,
    /// Over how long the sessions of a draining backend are moved; zero means that they stay.
    pub pod_drain_time: Duration,
    /// Whether the sessions of an ejected backend are closed.
    pub closes_ejected: bool,
}

/// Other rules for all services, each with its index: the one it has had before, or the next.
/// Those that are not among them are no more: their backends drain. What is known of backends that
/// stay is kept.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Reconfigure(pub Vec<(usize, ServiceRules)>);

/// The backends of one service, and how they are asked for their counts.
struct Watch {
    service: String,
    /// Whether the settings name it.
    is_configured: bool,
    pool: Pool,
    is_discovered: bool,
    polls: Option<PollSettings>,
    rebalance: Option<RebalanceSettings>,
    rebalancer: Option<Rebalancer>,
    pod_drain_time: Duration,
    closes_ejected: bool,
}

impl Watch {
    fn new(rules: ServiceRules) -> Self {
        let backends = rules.backends.clone().unwrap_or_default();
        Self {
            service: rules.service,
            is_configured: true,
            is_discovered: rules.backends.is_none(),
            pool: Pool::new(backends, rules.settings, fastrand::u64(..)),
            polls: rules.polls,
            rebalance: rules.rebalance,
            rebalancer: rules.rebalance.map(Rebalancer::new),
            pod_drain_time: rules.pod_drain_time,
            closes_ejected: rules.closes_ejected,
        }
    }

    /// Takes `rules` over; polls are the caller's.
    fn heed(&mut self, mut rules: ServiceRules, now: Instant) {
        if rules.counts_replicas {
            rules.settings.replicas = self.pool.replicas();
        }
        self.is_configured = true;
        self.pool.set_settings(rules.settings);
        self.pod_drain_time = rules.pod_drain_time;
        self.closes_ejected = rules.closes_ejected;
        self.is_discovered = rules.backends.is_none();
        if let Some(backends) = rules.backends {
            self.pool.set_backends(backends, now);
        }
        if self.rebalance != rules.rebalance {
            self.rebalance = rules.rebalance;
            self.rebalancer = rules.rebalance.map(Rebalancer::new);
        }
    }
}

/// Polls every backend and answers who gets the next connection.
pub struct MetricsActor {
    /// By index of the service. An index is never another service's, so that whoever holds one for a
    /// while always means the same.
    services: Vec<Watch>,
    /// Who polls, by index of the service; they stop when the actor does.
    pollers: Vec<Pollers>,
    /// Who moves sessions.
    mover: Recipient<MoveSessions>,
    /// Who moves all those of a backend.
    drainer: Recipient<MoveAll>,
    #[cfg(feature = "fault-hooks")]
    panics_at_next_pick: bool,
}

/// How often backends that are away are looked at.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// How often it is asked whether sessions should be moved.
const REBALANCE_EVERY: Duration = Duration::from_secs(1);

impl MetricsActor {
    /// An actor for `services`, by index. It polls once started, where there is something to ask.
    pub fn new(
        services: Vec<ServiceRules>,
        mover: Recipient<MoveSessions>,
        drainer: Recipient<MoveAll>,
    ) -> Self {
        let services = services.into_iter().map(Watch::new).collect();
        Self {
            services,
            pollers: Vec::new(),
            mover,
            drainer,
            #[cfg(feature = "fault-hooks")]
            panics_at_next_pick: false,
        }
    }

    /// Gives the service at `index` other rules, or begins it.
    fn reconfigure(&mut self, index: usize, rules: ServiceRules, reports: Recipient<Polled>) {
        let polls = rules.polls.clone();
        match self.services.get_mut(index) {
            Some(watch) => {
                watch.heed(rules, Instant::now());
                if watch.polls != polls {
                    self.pollers[index] = Pollers::new(index, polls.as_ref(), reports);
                    watch.polls = polls;
                }
            }
            None => {
                self.services.push(Watch::new(rules));
                self.pollers.push(Pollers::new(index, polls.as_ref(), reports));
            }
        }
        self.poll_what_is_there(index);
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
        ctx.run_interval(REBALANCE_EVERY, |metrics, _| metrics.rebalance());
        let pollers = |(service, watch): (usize, &Watch)| {
            Pollers::new(service, watch.polls.as_ref(), reports.clone())
        };
        // After a panic there are some, which go on.
        let known = self.pollers.len();
        self.pollers.extend(self.services.iter().enumerate().skip(known).map(pollers));
        for service in 0..self.services.len() {
            self.poll_what_is_there(service);
        }
        ctx.run_interval(FORGET_EVERY, |metrics, _| metrics.forget());
    }
}

impl Supervised for MetricsActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        for Watch { pool, .. } in &mut self.services {
            pool.mend();
        }
    }
}

impl Handler<PickBackend> for MetricsActor {
    type Result = Result<Lease, NoBackend>;

    fn handle(&mut self, message: PickBackend, _: &mut Self::Context) -> Self::Result {
        #[cfg(feature = "fault-hooks")]
        assert!(!std::mem::take(&mut self.panics_at_next_pick), "as it was told to");
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
        // One that has just ceased to be discovered may have been told of on the way.
        if let Some(Watch { pool, is_discovered: true, .. }) = self.services.get_mut(service) {
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

impl Handler<Reconfigure> for MetricsActor {
    type Result = ();

    fn handle(&mut self, Reconfigure(services): Reconfigure, ctx: &mut Self::Context) {
        let reports = ctx.address().recipient();
        let stay: HashSet<usize> = services.iter().map(|(index, _)| *index).collect();
        for (index, rules) in services {
            self.reconfigure(index, rules, reports.clone());
        }
        for (index, watch) in self.services.iter_mut().enumerate() {
            if !stay.contains(&index) {
                watch.is_configured = false;
                watch.is_discovered = false;
                watch.pool.retire(Instant::now());
            }
        }
        (0..self.services.len()).for_each(|index| self.tell(index));
    }
}

#[cfg(feature = "fault-hooks")]
impl Handler<super::supervision::Panic> for MetricsActor {
    type Result = ();

    fn handle(&mut self, _: super::supervision::Panic, _: &mut Self::Context) {
        panic!("as it was told to");
    }
}

#[cfg(feature = "fault-hooks")]
impl Handler<super::supervision::PanicAtNextPick> for MetricsActor {
    type Result = ();

    fn handle(&mut self, _: super::supervision::PanicAtNextPick, _: &mut Self::Context) {
        self.panics_at_next_pick = true;
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
                Whose::Service(name) if *name != watch.service || !watch.is_configured => continue,
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

#[cfg(test)]
mod tests {
    use actix::Addr;

    use super::*;
    use crate::domain::balance::{health::HealthSettings, lease::Transport, strategy::Strategy};

    /// Nobody is moved.
    struct Deaf;

    impl Actor for Deaf {
        type Context = Context<Self>;
    }

    impl Handler<MoveSessions> for Deaf {
        type Result = ();

        fn handle(&mut self, _: MoveSessions, _: &mut Self::Context) {}
    }

    impl Handler<MoveAll> for Deaf {
        type Result = ();

        fn handle(&mut self, _: MoveAll, _: &mut Self::Context) {}
    }

    fn backend(address: &str) -> Backend {
        let service = "default".to_owned();
        let url = format!("http://{address}");
        Backend { service, url, address: address.to_owned(), transport: Transport::Tcp }
    }

    fn rules(backends: Option<Vec<Backend>>) -> ServiceRules {
        let health = HealthSettings {
            eject_after: 3,
            eject_time: Duration::from_secs(30),
            eject_time_max: Duration::from_secs(600),
            cold_time: Duration::ZERO,
        };
        let settings = PoolSettings {
            strategy: Strategy::LeastConnections,
            replicas: 1,
            stale_after: Duration::from_secs(30),
            max_sessions: None,
            max_sessions_per_pod: None,
            health,
            grace: Duration::from_secs(60),
            affinity_key: None,
            shares: Default::default(),
        };
        ServiceRules {
            service: "default".to_owned(),
            settings,
            counts_replicas: false,
            backends,
            polls: None,
            rebalance: None,
            pod_drain_time: Duration::ZERO,
            closes_ejected: false,
        }
    }

    fn actor(services: Vec<ServiceRules>) -> Addr<MetricsActor> {
        let deaf = Deaf.start();
        MetricsActor::new(services, deaf.clone().recipient(), deaf.recipient()).start()
    }

    async fn addresses(actor: &Addr<MetricsActor>) -> Vec<String> {
        let Backends(backends) = actor.send(Snapshot).await.unwrap();
        let there = backends.into_iter().filter(|known| known.state != State::Draining);
        there.map(|known| known.backend.address.clone()).collect()
    }

    #[actix_rt::test]
    async fn what_discovery_tells_on_the_way_counts_only_where_it_is_still_wanted() {
        let actor = actor(vec![rules(None)]);
        let found =
            |address: &str| BackendsChanged { service: 0, backends: vec![backend(address)] };
        actor.send(found("found:1")).await.unwrap();
        assert_eq!(addresses(&actor).await, ["found:1"]);
        let fixed = rules(Some(vec![backend("fixed:1")]));
        actor.send(Reconfigure(vec![(0, fixed)])).await.unwrap();
        actor.send(found("late:1")).await.unwrap();
        assert_eq!(addresses(&actor).await, ["fixed:1"]);
        actor.send(Reconfigure(vec![(0, rules(None))])).await.unwrap();
        assert_eq!(addresses(&actor).await, ["fixed:1"], "until discovery knows better");
        actor.send(found("found:2")).await.unwrap();
        assert_eq!(addresses(&actor).await, ["found:2"]);
        actor.send(Reconfigure(Vec::new())).await.unwrap();
        actor.send(found("late:2")).await.unwrap();
        assert!(addresses(&actor).await.is_empty(), "the service is no more");
    }

    #[test]
    fn replicas_that_were_counted_stay_counted() {
        let mut watch = Watch::new(rules(None));
        watch.pool.set_replicas(3);
        let counted = ServiceRules { counts_replicas: true, ..rules(None) };
        watch.heed(counted, Instant::now());
        assert_eq!(watch.pool.replicas(), 3);
        watch.heed(rules(None), Instant::now());
        assert_eq!(watch.pool.replicas(), 1, "as configured");
    }
}
