//! The pools of all services: takes the pods' reports and answers which pod gets a connection.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{
    Actor, AsyncContext as _, Context, Handler, Message, MessageResponse, Recipient, Supervised,
};

use super::{
    discovery::{BackendsChanged, ReplicasChanged},
    poll::{PollFinished, PollSettings, Pollers},
    registry::{MoveAll, MovePace, MoveSessions},
};
use crate::domain::{
    balance::{
        affinity::Preference,
        backend::Backend,
        events::PoolEvent,
        lease::{Lease, Load, Purpose},
        pool::{NoBackend, Pool},
        rebalance::{RebalanceSettings, Rebalancer},
        settings::PoolSettings,
        snapshot::{BackendSnapshot, BackendState},
    },
    service_id::ServiceId,
};

/// Asks for a lease on the preferred or least-loaded backend of a service.
#[derive(Debug, Message)]
#[rtype(result = "Result<Lease, NoBackend>")]
pub struct PickBackend {
    pub service: ServiceId,
    pub purpose: Purpose,
    pub preference: Preference,
    /// Backends that have already failed this connection.
    pub tried: Vec<Arc<Backend>>,
}

/// Asks for the current state of every backend.
#[derive(Debug, Message)]
#[rtype(result = "Backends")]
pub struct Snapshot;

/// Answer to [`Snapshot`], by service, in the order in which the services were first configured.
#[derive(Debug, MessageResponse)]
pub struct Backends(pub Vec<BackendSnapshot>);

impl Backends {
    /// Whether any backend has a session, a handshake or a plain request.
    pub fn are_busy(&self) -> bool {
        self.0.iter().any(|backend| backend.load != Load::default())
    }
}

/// An operator's request to drain backends, or to end their drain.
///
/// The answer is the state of these backends afterwards, or `None` if there is no such backend or
/// service.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Option<Backends>")]
pub struct SetDrain {
    pub target: DrainTarget,
    /// Whether the backends drain from now on, or take new connections again.
    pub drain: bool,
    /// The time over which their sessions are moved, instead of the configured one; zero means
    /// that sessions stay.
    pub over: Option<Duration>,
}

/// Backends that an operator drains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainTarget {
    /// The backends at this address, in every service.
    Address(String),
    /// All backends of this service, and those that discovery adds later.
    Service(String),
}

/// The rules for one service.
#[derive(Clone, Debug)]
pub struct ServiceRules {
    /// Name of the service.
    pub service: String,
    /// How its backends are chosen.
    pub settings: PoolSettings,
    /// Whether DNS counts its replicas; then the number in `settings` only holds until DNS answers.
    pub counts_replicas: bool,
    /// Its backends, or `None` if discovery finds them.
    pub backends: Option<Vec<Backend>>,
    /// How its backends are polled, or `None` if they have no metric route.
    pub polls: Option<PollSettings>,
    /// How sessions are rebalanced, or `None` if they are not.
    pub rebalance: Option<RebalanceSettings>,
    /// The time over which the sessions of a draining backend are moved; zero means that they stay.
    pub pod_drain_time: Duration,
    /// Whether the sessions of an ejected backend are closed.
    pub closes_ejected: bool,
}

/// Replaces the rules of all services. Backends that stay keep their reports and counts; the
/// backends of services that are not listed drain.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Reconfigure(pub Vec<(ServiceId, ServiceRules)>);

/// One service: its rules, its backends and the tasks that poll them.
struct ManagedService {
    rules: ServiceRules,
    /// Whether the settings still name the service.
    is_configured: bool,
    pool: Pool,
    /// Set when the actor starts.
    pollers: Option<Pollers>,
    rebalancer: Option<Rebalancer>,
}

impl ManagedService {
    fn new(rules: ServiceRules) -> Self {
        let backends = rules.backends.clone().unwrap_or_default();
        Self {
            is_configured: true,
            pool: Pool::new(backends, rules.settings.clone(), fastrand::u64(..)),
            pollers: None,
            rebalancer: rules.rebalance.map(Rebalancer::new),
            rules,
        }
    }

    fn is_discovered(&self) -> bool {
        self.is_configured && self.rules.backends.is_none()
    }

    /// Replaces the rules; pollers are replaced only if polls have changed.
    fn apply_rules(&mut self, mut rules: ServiceRules, now: Instant) {
        if rules.counts_replicas {
            rules.settings.replicas = self.pool.replicas();
        }
        self.is_configured = true;
        self.pool.set_settings(rules.settings.clone());
        if let Some(backends) = &rules.backends {
            self.pool.set_backends(backends.clone(), now);
        }
        if self.rules.rebalance != rules.rebalance {
            self.rebalancer = rules.rebalance.map(Rebalancer::new);
        }
        if self.rules.polls != rules.polls {
            self.pollers = None;
        }
        self.rules = rules;
    }

    /// Drains all backends, because the settings do not name the service any more.
    fn retire(&mut self, now: Instant) {
        self.is_configured = false;
        self.pool.remove_all_backends(now);
    }

    /// Starts pollers for backends that are new and stops those of forgotten backends.
    fn update_pollers(&mut self, id: ServiceId, results: &Recipient<PollFinished>) {
        let pollers = self
            .pollers
            .get_or_insert_with(|| Pollers::new(id, self.rules.polls.as_ref(), results.clone()));
        pollers.set_targets(self.pool.poll_targets());
    }

    /// Logs the pool's events and moves the sessions of backends that drain or fail.
    fn handle_events(&mut self, move_all: &Recipient<MoveAll>) {
        for event in self.pool.take_events() {
            log_event(&event);
            let (from, pace) = match event {
                PoolEvent::DrainStarted { backend, .. } => {
                    (backend, pace(self.rules.pod_drain_time))
                }
                PoolEvent::DrainEnded { backend } | PoolEvent::Removed { backend } => {
                    (backend, MovePace::Never)
                }
                PoolEvent::Ejected { backend, .. } | PoolEvent::ReportedDown { backend, .. }
                    if self.rules.closes_ejected =>
                {
                    (backend, MovePace::AtOnce)
                }
                PoolEvent::Ejected { .. }
                | PoolEvent::ReportedDown { .. }
                | PoolEvent::AllEjected { .. } => continue,
            };
            move_all.do_send(MoveAll { from, pace });
        }
    }
}

/// Owns the pools of all services, polls their backends and picks the backend of each connection.
pub struct MetricsActor {
    services: BTreeMap<ServiceId, ManagedService>,
    /// Moves a few idle sessions of a backend.
    move_sessions: Recipient<MoveSessions>,
    /// Moves all sessions of a backend.
    move_all: Recipient<MoveAll>,
    #[cfg(feature = "fault-hooks")]
    panics_at_next_pick: bool,
}

/// How often backends are forgotten that left longer ago than `discovery_grace`.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// How often the rebalancers decide whether sessions are moved.
const REBALANCE_INTERVAL: Duration = Duration::from_secs(1);

impl MetricsActor {
    /// Creates the actor for `services`. Polls begin when it starts.
    pub fn new(
        services: Vec<(ServiceId, ServiceRules)>,
        move_sessions: Recipient<MoveSessions>,
        move_all: Recipient<MoveAll>,
    ) -> Self {
        let services = services.into_iter().map(|(id, rules)| (id, ManagedService::new(rules)));
        Self {
            services: services.collect(),
            move_sessions,
            move_all,
            #[cfg(feature = "fault-hooks")]
            panics_at_next_pick: false,
        }
    }

    fn update_pollers(&mut self, results: &Recipient<PollFinished>) {
        for (id, service) in &mut self.services {
            service.update_pollers(*id, results);
        }
    }

    fn handle_events(&mut self) {
        for service in self.services.values_mut() {
            service.handle_events(&self.move_all);
        }
    }

    fn forget_backends(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        for service in self.services.values_mut() {
            service.pool.remove_expired(now);
        }
        self.handle_events();
        self.update_pollers(&ctx.address().recipient());
    }

    fn rebalance(&mut self) {
        let now = Instant::now();
        for ManagedService { pool, rebalancer, .. } in self.services.values_mut() {
            let Some(rebalancer) = rebalancer else { continue };
            if let Some(moves) = rebalancer.plan(&pool.snapshot(now), pool.replicas(), now) {
                self.move_sessions.do_send(MoveSessions(moves));
            }
        }
    }
}

/// The pace for a configured drain time; zero means that sessions stay.
fn pace(over: Duration) -> MovePace {
    if over.is_zero() { MovePace::Never } else { MovePace::Over(over) }
}

impl Actor for MetricsActor {
    type Context = Context<Self>;

    /// Runs again after a panic; pollers that exist continue.
    fn started(&mut self, ctx: &mut Self::Context) {
        self.update_pollers(&ctx.address().recipient());
        ctx.run_interval(REBALANCE_INTERVAL, |metrics, _| metrics.rebalance());
        ctx.run_interval(FORGET_INTERVAL, Self::forget_backends);
    }
}

impl Supervised for MetricsActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        for service in self.services.values_mut() {
            service.pool.invalidate_cache();
        }
    }
}

impl Handler<PickBackend> for MetricsActor {
    type Result = Result<Lease, NoBackend>;

    fn handle(&mut self, message: PickBackend, _: &mut Self::Context) -> Self::Result {
        #[cfg(feature = "fault-hooks")]
        assert!(!std::mem::take(&mut self.panics_at_next_pick), "panic requested by a test");
        let PickBackend { service, purpose, preference, tried } = message;
        let service = self.services.get_mut(&service).ok_or(NoBackend::Empty)?;
        let picked = service.pool.pick(purpose, &tried, preference, Instant::now());
        service.handle_events(&self.move_all);
        picked
    }
}

impl Handler<PollFinished> for MetricsActor {
    type Result = ();

    fn handle(&mut self, message: PollFinished, _: &mut Self::Context) {
        let PollFinished { service, poll, result } = message;
        let Some(service) = self.services.get_mut(&service) else { return };
        let address = &poll.backend().address;
        match (&result, service.pool.last_error(poll.backend())) {
            (Err(error), known) if known != Some(error) => {
                log::warn!("pod {address}: metrics unavailable or stale: {error}");
            }
            (Ok(_), Some(_)) => log::info!("pod {address}: metrics available again"),
            _ => {}
        }
        service.pool.record(poll, result, Instant::now());
        service.handle_events(&self.move_all);
    }
}

impl Handler<Snapshot> for MetricsActor {
    type Result = Backends;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> Backends {
        let now = Instant::now();
        let services = self.services.values_mut();
        let backends = services.flat_map(|service| service.pool.snapshot(now)).collect();
        self.handle_events();
        Backends(backends)
    }
}

impl Handler<BackendsChanged> for MetricsActor {
    type Result = ();

    fn handle(&mut self, changed: BackendsChanged, ctx: &mut Self::Context) {
        let BackendsChanged { service: id, backends } = changed;
        let Some(service) = self.services.get_mut(&id) else { return };
        // The message may have been sent before a reload that ended the discovery.
        if service.is_discovered() {
            service.pool.set_backends(backends, Instant::now());
            service.handle_events(&self.move_all);
            service.update_pollers(id, &ctx.address().recipient());
        }
    }
}

impl Handler<ReplicasChanged> for MetricsActor {
    type Result = ();

    fn handle(&mut self, changed: ReplicasChanged, _: &mut Self::Context) {
        if let Some(service) = self.services.get_mut(&changed.service) {
            service.pool.set_replicas(changed.replicas);
        }
    }
}

impl Handler<Reconfigure> for MetricsActor {
    type Result = ();

    fn handle(&mut self, Reconfigure(services): Reconfigure, ctx: &mut Self::Context) {
        let now = Instant::now();
        let configured: HashSet<ServiceId> = services.iter().map(|(id, _)| *id).collect();
        for (id, rules) in services {
            match self.services.get_mut(&id) {
                Some(service) => service.apply_rules(rules, now),
                None => {
                    self.services.insert(id, ManagedService::new(rules));
                }
            }
        }
        for (id, service) in &mut self.services {
            if !configured.contains(id) {
                service.retire(now);
            }
        }
        self.update_pollers(&ctx.address().recipient());
        self.handle_events();
    }
}

#[cfg(feature = "fault-hooks")]
impl Handler<super::supervision::Panic> for MetricsActor {
    type Result = ();

    fn handle(&mut self, _: super::supervision::Panic, _: &mut Self::Context) {
        panic!("panic requested by a test");
    }
}

#[cfg(feature = "fault-hooks")]
impl Handler<super::supervision::PanicAtNextPick> for MetricsActor {
    type Result = ();

    fn handle(&mut self, _: super::supervision::PanicAtNextPick, _: &mut Self::Context) {
        self.panics_at_next_pick = true;
    }
}

impl Handler<SetDrain> for MetricsActor {
    type Result = Option<Backends>;

    fn handle(&mut self, message: SetDrain, _: &mut Self::Context) -> Option<Backends> {
        let SetDrain { target, drain, over } = message;
        let now = Instant::now();
        self.handle_events();
        let mut found: Option<Vec<BackendSnapshot>> = None;
        for ManagedService { rules, is_configured, pool, .. } in self.services.values_mut() {
            let matching = match &target {
                DrainTarget::Service(name) if *name != rules.service || !*is_configured => continue,
                DrainTarget::Service(_) => pool.set_operator_drain(None, drain),
                DrainTarget::Address(address) => pool.set_operator_drain(Some(address), drain),
            };
            if matches!(target, DrainTarget::Address(_)) && matching.is_empty() {
                continue;
            }
            // Their moves are started below, at the pace that the operator asks for.
            pool.take_events().iter().for_each(log_event);
            let mut snapshot = pool.snapshot(now);
            snapshot.retain(|pod| matching.contains(&pod.backend));
            for pod in &snapshot {
                let pace = match pod.state {
                    BackendState::Draining => pace(over.unwrap_or(rules.pod_drain_time)),
                    _ => MovePace::Never,
                };
                self.move_all.do_send(MoveAll { from: pod.backend.clone(), pace });
            }
            found.get_or_insert_default().extend(snapshot);
        }
        found.map(Backends)
    }
}

/// Drains are expected; ejections and missing pods need an operator's attention.
fn log_event(event: &PoolEvent) {
    match event {
        PoolEvent::DrainStarted { .. }
        | PoolEvent::DrainEnded { .. }
        | PoolEvent::Removed { .. } => {
            log::info!("{event}");
        }
        PoolEvent::Ejected { .. }
        | PoolEvent::ReportedDown { .. }
        | PoolEvent::AllEjected { .. } => log::warn!("{event}"),
    }
}

#[cfg(test)]
mod tests {
    use actix::Addr;

    use super::*;
    use crate::domain::{
        balance::health::HealthSettings, fixtures::backend, service_id::ServiceIds,
    };

    /// Ignores all requests to move sessions.
    struct IgnoreMoves;

    impl Actor for IgnoreMoves {
        type Context = Context<Self>;
    }

    impl Handler<MoveSessions> for IgnoreMoves {
        type Result = ();

        fn handle(&mut self, _: MoveSessions, _: &mut Self::Context) {}
    }

    impl Handler<MoveAll> for IgnoreMoves {
        type Result = ();

        fn handle(&mut self, _: MoveAll, _: &mut Self::Context) {}
    }

    fn rules(backends: Option<Vec<Backend>>) -> ServiceRules {
        let health = HealthSettings { cold_time: Duration::ZERO, ..HealthSettings::default() };
        let settings = PoolSettings { health, ..PoolSettings::default() };
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

    fn start_actor(services: Vec<(ServiceId, ServiceRules)>) -> Addr<MetricsActor> {
        let moves = IgnoreMoves.start();
        MetricsActor::new(services, moves.clone().recipient(), moves.recipient()).start()
    }

    /// Addresses of the backends that do not drain.
    async fn addresses(actor: &Addr<MetricsActor>) -> Vec<String> {
        let Backends(backends) = actor.send(Snapshot).await.unwrap();
        let active = backends.into_iter().filter(|backend| backend.state != BackendState::Draining);
        active.map(|backend| backend.backend.address.clone()).collect()
    }

    #[actix_rt::test]
    async fn backends_that_were_discovered_before_a_reload_are_ignored_after_it() {
        let id = ServiceIds::default().get_or_issue("default");
        let actor = start_actor(vec![(id, rules(None))]);
        let found =
            |address: &str| BackendsChanged { service: id, backends: vec![backend(address)] };
        actor.send(found("found:1")).await.unwrap();
        assert_eq!(addresses(&actor).await, ["found:1"]);
        let fixed = rules(Some(vec![backend("fixed:1")]));
        actor.send(Reconfigure(vec![(id, fixed)])).await.unwrap();
        actor.send(found("late:1")).await.unwrap();
        assert_eq!(addresses(&actor).await, ["fixed:1"]);
        actor.send(Reconfigure(vec![(id, rules(None))])).await.unwrap();
        assert_eq!(addresses(&actor).await, ["fixed:1"], "kept until discovery answers");
        actor.send(found("found:2")).await.unwrap();
        assert_eq!(addresses(&actor).await, ["found:2"]);
        actor.send(Reconfigure(Vec::new())).await.unwrap();
        actor.send(found("late:2")).await.unwrap();
        assert!(addresses(&actor).await.is_empty(), "the service was removed");
    }

    #[test]
    fn a_discovered_number_of_replicas_survives_a_reload() {
        let mut service = ManagedService::new(rules(None));
        service.pool.set_replicas(3);
        let counted = ServiceRules { counts_replicas: true, ..rules(None) };
        service.apply_rules(counted, Instant::now());
        assert_eq!(service.pool.replicas(), 3);
        service.apply_rules(rules(None), Instant::now());
        assert_eq!(service.pool.replicas(), 1, "as configured");
    }
}
