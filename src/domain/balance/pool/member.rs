//! One backend of a pool: its load, reports and health, and whether it may get a connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::domain::{
    balance::{
        affinity::{self, Preference, Tag},
        backend::Backend,
        estimate::{Estimator, ReportedCount},
        events::PoolEvent,
        health::Health,
        lease::{Gauge, Load, Purpose},
        poll::Poll,
        settings::{Capacity, PoolSettings},
        snapshot::{BackendSnapshot, BackendState},
        strategy::Tier,
    },
    report::{Report, ReportError},
};

/// Weights are kept between this and its reciprocal, so that no pod can report an infinite load.
const LEAST_WEIGHT: f64 = 1e-6;

/// A backend with everything that the pool knows of it.
#[derive(Debug)]
pub(super) struct PoolMember {
    pub backend: Arc<Backend>,
    pub gauge: Arc<Gauge>,
    pub health: Health,
    /// Why the last poll gave no report.
    pub error: Option<ReportError>,
    /// When the backend left the service.
    pub left_at: Option<Instant>,
    /// An operator wants no new connections on it.
    pub operator_drains: bool,
    /// Whether it was draining, and reported that it is down, at the last check for events.
    was_draining: bool,
    was_down: bool,
    report: Option<AcceptedReport>,
    /// Its name in affinity cookies.
    tag: Option<Tag>,
    /// The hash of its address, for rendezvous hashing.
    hash: u64,
    capacity: Capacity,
    /// The gauge's count of failure changes at the last health check.
    seen_changes: u32,
}

/// A report, and the own sessions that were open when it was requested.
#[derive(Debug)]
pub(super) struct AcceptedReport {
    report: Report,
    sent_at: Instant,
    own_when_polled: u32,
    /// This replica's arrivals on all backends when the report came.
    pub arrivals: u64,
}

/// The difference between a report and what the pool expected.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportDeviation {
    /// Reported sessions beyond the expected ones; may be negative.
    pub unexpected: f64,
    /// This replica's arrivals on all backends since the previous report.
    pub arrivals: u64,
}

impl PoolMember {
    pub fn new(backend: Backend, settings: &PoolSettings, health: Health) -> Self {
        let hash = affinity::hash(backend.address.as_bytes());
        let mut member = Self {
            backend: Arc::new(backend),
            gauge: Arc::default(),
            health,
            error: None,
            left_at: None,
            operator_drains: false,
            was_draining: false,
            was_down: false,
            report: None,
            tag: None,
            hash,
            capacity: Capacity::default(),
            seen_changes: 0,
        };
        member.apply_settings(settings);
        member
    }

    /// Copies what `settings` contain for this backend.
    pub fn apply_settings(&mut self, settings: &PoolSettings) {
        let Backend { service, address, .. } = &*self.backend;
        self.capacity = settings.capacities.get(address).copied().unwrap_or_default();
        self.tag = settings.affinity_key.as_ref().map(|key| key.tag(service, address));
    }

    /// Returns how strongly a client with `preference` prefers this backend, if it does at all.
    pub fn preference_score(&self, preference: Preference) -> Option<u64> {
        match preference {
            Preference::None => None,
            Preference::Tag(tag) => (self.tag == Some(tag)).then_some(0),
            Preference::Hash(client) => Some(affinity::score(client, self.hash)),
        }
    }

    /// Evaluates the failures that leases have recorded since the last time. Returns an event if
    /// they eject the backend.
    pub fn update_health(
        &mut self,
        settings: &PoolSettings,
        rng: &mut fastrand::Rng,
        now: Instant,
    ) -> Option<PoolEvent> {
        let changes = self.gauge.failures.changes();
        // Nearly all backends have no problems: skip them quickly.
        if changes == self.seen_changes && self.health.is_calm() {
            return None;
        }
        self.seen_changes = changes;
        let ejection = self.health.update(&self.gauge.failures, &settings.health, rng, now)?;
        Some(PoolEvent::Ejected {
            backend: self.backend.clone(),
            length: ejection.until.duration_since(now),
            reason: ejection.reason.clone(),
        })
    }

    /// Returns an event for each change since the last call: the backend has started or stopped
    /// draining, or has started to report that it is down.
    pub fn drain_events(&mut self) -> Vec<PoolEvent> {
        let (backend, mut events) = (&self.backend, Vec::new());
        let reason = self.drain_reason();
        if reason.is_some() != std::mem::replace(&mut self.was_draining, reason.is_some()) {
            let backend = backend.clone();
            events.push(match reason {
                Some(reason) => PoolEvent::DrainStarted { backend, reason },
                None => PoolEvent::DrainEnded { backend },
            });
        }
        let reason = self.report.as_ref().and_then(|accepted| accepted.report.down.clone());
        let was_down = std::mem::replace(&mut self.was_down, reason.is_some());
        if let Some(reason) = reason.filter(|_| !was_down) {
            events.push(PoolEvent::ReportedDown { backend: backend.clone(), reason });
        }
        events
    }

    /// Returns how good a choice the backend is at `now`. `fair_share` is its part of all arrivals
    /// if all backends get the same.
    pub fn tier(
        &mut self,
        purpose: Purpose,
        settings: &PoolSettings,
        estimate: u64,
        fair_share: f64,
        now: Instant,
    ) -> Tier {
        if self.is_draining() {
            return Tier::Draining;
        }
        if purpose == Purpose::Session
            && self.limit(settings).is_some_and(|limit| estimate >= limit)
        {
            return Tier::Full;
        }
        if self.is_down() || self.health.ejection(now).is_some() {
            return Tier::Ejected;
        }
        if self.health.admits_arrival(fair_share, now) { Tier::Usable } else { Tier::Cold }
    }

    fn is_draining(&self) -> bool {
        self.drain_reason().is_some()
    }

    /// Returns why the backend takes no new connections, if it is draining.
    fn drain_reason(&self) -> Option<&'static str> {
        let asks_for_it = |accepted: &AcceptedReport| accepted.report.draining == Some(true);
        if self.operator_drains {
            Some("requested by an operator")
        } else if self.left_at.is_some() {
            Some("no longer among the service's pods")
        } else {
            self.report.as_ref().is_some_and(asks_for_it).then_some("requested by the pod")
        }
    }

    fn is_down(&self) -> bool {
        self.report.as_ref().is_some_and(|accepted| accepted.report.down.is_some())
    }

    /// Returns the most connections that the backend may hold.
    fn limit(&self, settings: &PoolSettings) -> Option<u64> {
        let common = settings.max_sessions_per_pod.map(|limit| u64::from(limit.get()));
        [common, self.own_limit()].into_iter().flatten().min()
    }

    /// Returns the limit that is configured or reported for this backend alone.
    pub fn own_limit(&self) -> Option<u64> {
        let reported = self.report.as_ref().and_then(|accepted| accepted.report.max_connections);
        [self.capacity.max_connections, reported].into_iter().flatten().min()
    }

    /// Returns its part of the connections relative to other backends.
    pub fn weight(&self) -> f64 {
        let reported = self.report.as_ref().and_then(|accepted| accepted.report.weight);
        (self.capacity.weight * reported.unwrap_or(1.0)).clamp(LEAST_WEIGHT, 1.0 / LEAST_WEIGHT)
    }

    /// Returns the connections that the backend is estimated to hold. Sessions that ended early
    /// count for a while longer.
    pub fn estimate(&self, settings: &PoolSettings, now: Instant) -> u64 {
        let counted = self.estimator(settings, now).estimate(self.gauge.load());
        counted + self.health.early_ends(now)
    }

    /// Returns the estimator of the last report, if that is fresh.
    pub fn estimator(&self, settings: &PoolSettings, now: Instant) -> Estimator {
        Estimator::new(self.fresh_count(settings, now), settings.replicas)
    }

    /// Returns the count of failure changes up to which nothing speaks against the backend, or
    /// `None` if something does.
    pub fn healthy_at(&self) -> Option<u32> {
        let is_healthy = self.health.is_calm() && !self.is_draining() && !self.is_down();
        is_healthy.then_some(self.seen_changes)
    }

    /// Returns when the last report goes stale, if it is fresh.
    pub fn stale_at(&self, settings: &PoolSettings, now: Instant) -> Option<Instant> {
        self.fresh(settings, now).map(|accepted| accepted.sent_at + settings.stale_after)
    }

    fn fresh_count(&self, settings: &PoolSettings, now: Instant) -> Option<ReportedCount> {
        let accepted = self.fresh(settings, now)?;
        let count = accepted.report.connections?;
        Some(ReportedCount { count, own_when_polled: accepted.own_when_polled })
    }

    /// Returns the last report if it is fresh.
    pub fn fresh(&self, settings: &PoolSettings, now: Instant) -> Option<&AcceptedReport> {
        let is_fresh = |accepted: &&AcceptedReport| {
            now.saturating_duration_since(accepted.sent_at) <= settings.stale_after
        };
        self.report.as_ref().filter(is_fresh)
    }

    /// Returns whether the answer of a later poll than `poll` has been accepted.
    pub fn has_newer_report_than(&self, poll: &Poll) -> bool {
        self.report.as_ref().is_some_and(|accepted| accepted.sent_at > poll.sent_at)
    }

    /// Stores the result of `poll`, which came after `arrivals` on all backends. Returns how far
    /// off the last estimate was.
    pub fn record(
        &mut self,
        poll: &Poll,
        result: Result<Report, ReportError>,
        arrivals: u64,
        settings: &PoolSettings,
        now: Instant,
    ) -> Option<ReportDeviation> {
        match result {
            Ok(report) => {
                self.error = None;
                self.health.record_poll_answer(&settings.health, now);
                self.accept(report, poll, arrivals, settings, now)
            }
            Err(error) => {
                match &error {
                    ReportError::Unreachable(reason) => self.health.record_missed_poll(reason),
                    // An unreadable answer makes the count unknown at once. Without an answer the
                    // last report goes stale.
                    _ => {
                        self.report = None;
                        self.health.record_poll_answer(&settings.health, now);
                    }
                }
                self.error = Some(error);
                None
            }
        }
    }

    fn accept(
        &mut self,
        report: Report,
        poll: &Poll,
        arrivals: u64,
        settings: &PoolSettings,
        now: Instant,
    ) -> Option<ReportDeviation> {
        let own_when_sent = poll.own_when_sent;
        let load = self.gauge.load();
        let held = self.estimator(settings, now).held(load);
        let count = report.connections.unwrap_or_default();
        // A pod that reports fewer sessions than we have open on it is mistaken, and so is one
        // that reports the same count whatever we open and close.
        let is_stuck = |last: &AcceptedReport| {
            last.report.connections == Some(count) && last.own_when_polled != own_when_sent
        };
        let last = self.fresh(settings, now);
        let comparable = last.filter(|last| !is_stuck(last) && count >= u64::from(load.open));
        let deviation = comparable.map(|last| ReportDeviation {
            unexpected: count as f64 - held as f64,
            arrivals: arrivals - last.arrivals,
        });
        let ReportedCount { own_when_polled, .. } =
            ReportedCount::between(count, own_when_sent, load, held, settings.replicas);
        self.report =
            Some(AcceptedReport { report, sent_at: poll.sent_at, own_when_polled, arrivals });
        deviation
    }

    pub fn snapshot(&self, settings: &PoolSettings, now: Instant) -> BackendSnapshot {
        let estimate = self.estimate(settings, now);
        let (state, reason) = self.state(settings, estimate, now);
        let ejection = self.health.ejection(now);
        let age = |accepted: &AcceptedReport| now.saturating_duration_since(accepted.sent_at);
        let accepted = self.report.as_ref();
        BackendSnapshot {
            backend: self.backend.clone(),
            state,
            reason,
            report: accepted.map(|accepted| (accepted.report.clone(), age(accepted))),
            error: self.error.clone(),
            load: self.gauge.load(),
            estimate,
            weight: self.weight(),
            limit: self.limit(settings),
            ejected_for: ejection.map(|ejection| ejection.until.duration_since(now)),
        }
    }

    fn state(
        &self,
        settings: &PoolSettings,
        estimate: u64,
        now: Instant,
    ) -> (BackendState, Option<String>) {
        let report = self.report.as_ref().map(|accepted| &accepted.report);
        if let Some(reason) = self.drain_reason() {
            return (BackendState::Draining, Some(reason.to_owned()));
        }
        if let Some(reason) = report.and_then(|report| report.down.as_ref()) {
            return (
                BackendState::Ejected,
                Some(format!("the pod reports that it is down: {reason}")),
            );
        }
        if let Some(ejection) = self.health.ejection(now) {
            return (BackendState::Ejected, Some(ejection.reason.clone()));
        }
        if let Some(limit) = self.limit(settings)
            && estimate >= limit
        {
            return (BackendState::Full, Some(format!("limit of {limit} connections reached")));
        }
        if self.health.is_cold(now) {
            return (BackendState::Cold, None);
        }
        let state = match report {
            None => BackendState::Unknown,
            Some(report) if report.connections.is_none() => BackendState::Up,
            Some(_) if self.fresh_count(settings, now).is_none() => BackendState::Stale,
            Some(_) => BackendState::Up,
        };
        (state, None)
    }

    /// Returns whether the backend left the service more than `grace` ago and has no session of
    /// this replica.
    pub fn is_removable(&self, grace: Duration, now: Instant) -> bool {
        let is_gone = self.left_at.is_some_and(|at| now.saturating_duration_since(at) > grace);
        is_gone && self.gauge.load() == Load::default()
    }
}
