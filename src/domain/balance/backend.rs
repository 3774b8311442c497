//! One backend in the pool: what is known of it, and whether it may get a connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    affinity::{self, Preference, Tag},
    estimate::{Holding, Reported, estimate, held},
    health::Health,
    lease::{Backend, Gauge, Load, Purpose},
    pick_cache::Glance,
    pool::{BackendSnapshot, News, PoolSettings, State},
    settings::Share,
};
use crate::domain::report::{Report, ReportError};

/// No pod's word makes a load infinite.
const LEAST_WEIGHT: f64 = 1e-6;

/// A backend as the pool holds it.
#[derive(Debug)]
pub(super) struct Entry {
    pub backend: Arc<Backend>,
    pub gauge: Arc<Gauge>,
    pub health: Health,
    /// Why the last poll gave no report.
    pub error: Option<ReportError>,
    /// Since when discovery has not found it.
    pub left_at: Option<Instant>,
    /// An operator wants no new connections on it.
    pub operator_drains: bool,
    /// Whether it was draining, and said that it was down, when that was looked at last.
    was_draining: bool,
    was_down: bool,
    report: Option<Accepted>,
    /// Its name in cookies.
    tag: Option<Tag>,
    /// Its address, for rendezvous hashing.
    hash: u64,
    /// What the configuration says of it.
    share: Share,
    /// What the gauge's troubles were when they were looked at last.
    seen_changes: u32,
}

/// A report with what was open here when it was asked for.
#[derive(Debug)]
struct Accepted {
    report: Report,
    sent_at: Instant,
    own_when_polled: u32,
    /// This replica's arrivals on all backends when it came.
    arrivals: u64,
}

/// A report that was not quite what its pod was thought to hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surprise {
    /// How many sessions it tells more.
    pub by: f64,
    /// Our own arrivals on all backends since the report before.
    pub arrivals: u64,
}

/// How good a choice a backend is, the best first. Among equals the load decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// Nothing speaks against it.
    Usable,
    /// It is cold and has had its share.
    Cold,
    /// It is ejected, or says that it is down: better than nobody.
    Ejected,
    /// It has no room.
    Full,
    /// It takes no new connections.
    Draining,
    /// It has failed this connection.
    Tried,
}

impl Entry {
    pub fn new(backend: Backend, settings: &PoolSettings, health: Health) -> Self {
        let key = settings.affinity_key.as_ref();
        Self {
            share: settings.shares.get(&backend.address).copied().unwrap_or_default(),
            tag: key.map(|key| key.tag(&backend.service, &backend.address)),
            hash: affinity::hash(backend.address.as_bytes()),
            backend: Arc::new(backend),
            gauge: Arc::default(),
            health,
            error: None,
            left_at: None,
            operator_drains: false,
            was_draining: false,
            was_down: false,
            report: None,
            seen_changes: 0,
        }
    }

    /// Takes over what `settings` say of it.
    pub fn heed(&mut self, settings: &PoolSettings) {
        let Backend { service, address, .. } = &*self.backend;
        self.share = settings.shares.get(address).copied().unwrap_or_default();
        self.tag = settings.affinity_key.as_ref().map(|key| key.tag(service, address));
    }

    /// How much a client with `preference` wants this one rather than others, if it does.
    pub fn liked_by(&self, preference: Preference) -> Option<u64> {
        match preference {
            Preference::None => None,
            Preference::Tag(tag) => (self.tag == Some(tag)).then_some(0),
            Preference::Hash(client) => Some(affinity::score(client, self.hash)),
        }
    }

    /// Judges what leases have told since the last time. Says so when that ejects it.
    pub fn look(
        &mut self,
        settings: &PoolSettings,
        rng: &mut fastrand::Rng,
        now: Instant,
    ) -> Option<News> {
        let changes = self.gauge.trouble.changes();
        // Of a thousand backends hardly one is in trouble.
        if changes == self.seen_changes && self.health.is_calm() {
            return None;
        }
        self.seen_changes = changes;
        let ejection = self.health.look(&self.gauge.trouble, &settings.health, rng, now)?;
        Some(News::Ejected {
            backend: self.backend.clone(),
            length: ejection.until.duration_since(now),
            reason: ejection.reason.clone(),
        })
    }

    /// Says so when it begins or ceases to drain, and when it begins to say that it is down.
    pub fn look_at_words(&mut self) -> Vec<News> {
        let (backend, mut news) = (&self.backend, Vec::new());
        let why = self.drain_reason();
        if why.is_some() != std::mem::replace(&mut self.was_draining, why.is_some()) {
            let backend = backend.clone();
            news.push(match why {
                Some(reason) => News::Drains { backend, reason },
                None => News::DrainsNoMore { backend },
            });
        }
        let why = self.report.as_ref().and_then(|known| known.report.down.clone());
        let was_down = std::mem::replace(&mut self.was_down, why.is_some());
        if let Some(reason) = why.filter(|_| !was_down) {
            news.push(News::Down { backend: backend.clone(), reason });
        }
        news
    }

    /// How good a choice it is at `now`. `fair` would be its share of all arrivals.
    pub fn tier(
        &mut self,
        purpose: Purpose,
        settings: &PoolSettings,
        estimate: u64,
        fair: f64,
        now: Instant,
    ) -> Tier {
        if self.drains() {
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
        if self.health.admits(fair, now) { Tier::Usable } else { Tier::Cold }
    }

    fn drains(&self) -> bool {
        self.drain_reason().is_some()
    }

    /// Why it takes no new connections, if it takes none.
    fn drain_reason(&self) -> Option<&'static str> {
        let says_so = |known: &Accepted| known.report.draining == Some(true);
        if self.operator_drains {
            Some("an operator drains it")
        } else if self.left_at.is_some() {
            Some("it is not among the service's pods any more")
        } else {
            self.report.as_ref().is_some_and(says_so).then_some("it says so")
        }
    }

    fn is_down(&self) -> bool {
        self.report.as_ref().is_some_and(|known| known.report.down.is_some())
    }

    /// Connections that it may hold, by its own word and by ours.
    fn limit(&self, settings: &PoolSettings) -> Option<u64> {
        let of_all = settings.max_sessions_per_pod.map(|limit| u64::from(limit.get()));
        [of_all, self.own_limit()].into_iter().flatten().min()
    }

    /// Connections that it may hold, leaving aside what holds for all.
    fn own_limit(&self) -> Option<u64> {
        let reported = self.report.as_ref().and_then(|known| known.report.max_connections);
        [self.share.max_connections, reported].into_iter().flatten().min()
    }

    /// Its share of the connections, relative to others.
    pub fn weight(&self) -> f64 {
        let reported = self.report.as_ref().and_then(|known| known.report.weight);
        (self.share.weight * reported.unwrap_or(1.0)).clamp(LEAST_WEIGHT, 1.0 / LEAST_WEIGHT)
    }

    /// Connections that it is thought to hold, with those that died early for a while.
    pub fn estimate(&self, settings: &PoolSettings, now: Instant) -> u64 {
        let counted =
            estimate(self.fresh_report(settings, now), self.gauge.load(), settings.replicas);
        counted + self.health.ghosts(now)
    }

    /// What a pick needs to see of it until its next report, or until that goes stale.
    pub fn glance(&self, settings: &PoolSettings, now: Instant) -> Glance {
        let is_calm = self.health.is_calm() && !self.drains() && !self.is_down();
        let fresh = self.fresh(settings, now);
        Glance {
            gauge: self.gauge.clone(),
            calm: is_calm.then_some(self.seen_changes),
            holding: Holding::new(self.fresh_report(settings, now), settings.replicas),
            limit: self.own_limit().unwrap_or(u64::MAX),
            unit: self.weight().recip(),
            weight: fresh.map_or(0.0, |_| self.weight()),
            arrivals: fresh.map_or(0.0, |known| known.arrivals as f64),
        }
    }

    /// When its report goes stale, if it is not.
    pub fn stale_at(&self, settings: &PoolSettings, now: Instant) -> Option<Instant> {
        self.fresh(settings, now).map(|known| known.sent_at + settings.stale_after)
    }

    fn fresh_report(&self, settings: &PoolSettings, now: Instant) -> Option<Reported> {
        let known = self.fresh(settings, now)?;
        let count = known.report.connections?;
        Some(Reported { count, own_when_polled: known.own_when_polled })
    }

    fn fresh(&self, settings: &PoolSettings, now: Instant) -> Option<&Accepted> {
        let is_fresh = |known: &&Accepted| {
            now.saturating_duration_since(known.sent_at) <= settings.stale_after
        };
        self.report.as_ref().filter(is_fresh)
    }

    /// Whether a later poll's answer is here already.
    pub fn is_newer_than(&self, sent_at: Instant) -> bool {
        self.report.as_ref().is_some_and(|known| known.sent_at > sent_at)
    }

    /// Takes in what a poll brought, which was sent with `own_when_sent` sessions open here, and is
    /// here after so many `arrivals` on all backends. Says how far off the last estimate was.
    pub fn record(
        &mut self,
        result: Result<Report, ReportError>,
        sent_at: Instant,
        own_when_sent: u32,
        arrivals: u64,
        settings: &PoolSettings,
        now: Instant,
    ) -> Option<Surprise> {
        let mut surprise = None;
        match result {
            Ok(report) => {
                let load = self.gauge.load();
                let held = held(self.fresh_report(settings, now), load, settings.replicas);
                let count = report.connections.unwrap_or_default();
                // A pod that tells less than we have open on it is mistaken, and so is one that
                // tells the same whatever we open and close.
                let is_stuck = |known: &Accepted| {
                    known.report.connections == Some(count)
                        && known.own_when_polled != own_when_sent
                };
                if let Some(known) = self.fresh(settings, now)
                    && !is_stuck(known)
                    && count >= u64::from(load.open)
                {
                    let arrivals = arrivals - known.arrivals;
                    surprise = Some(Surprise { by: count as f64 - held as f64, arrivals });
                }
                let Reported { own_when_polled, .. } =
                    Reported::between(count, own_when_sent, load, held, settings.replicas);
                self.error = None;
                self.report = Some(Accepted { report, sent_at, own_when_polled, arrivals });
                self.health.answered_poll(&settings.health, now);
            }
            Err(error) => {
                match &error {
                    ReportError::Unreachable(why) => self.health.missed_poll(why),
                    // An unreadable answer makes the count unknown at once; no answer at all
                    // leaves the last one to grow stale.
                    _ => {
                        self.report = None;
                        self.health.answered_poll(&settings.health, now);
                    }
                }
                self.error = Some(error);
            }
        }
        surprise
    }

    /// As it stands at `now`.
    pub fn snapshot(&self, settings: &PoolSettings, now: Instant) -> BackendSnapshot {
        let estimate = self.estimate(settings, now);
        let (state, reason) = self.state(settings, estimate, now);
        let ejection = self.health.ejection(now);
        let known = self.report.as_ref();
        BackendSnapshot {
            backend: self.backend.clone(),
            state,
            reason,
            report: known
                .map(|known| (known.report.clone(), now.saturating_duration_since(known.sent_at))),
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
    ) -> (State, Option<String>) {
        let report = self.report.as_ref().map(|known| &known.report);
        if let Some(reason) = self.drain_reason() {
            return (State::Draining, Some(reason.to_owned()));
        }
        if let Some(why) = report.and_then(|report| report.down.as_ref()) {
            return (State::Ejected, Some(format!("it says that it is down: {why}")));
        }
        if let Some(ejection) = self.health.ejection(now) {
            return (State::Ejected, Some(ejection.reason.clone()));
        }
        if let Some(limit) = self.limit(settings)
            && estimate >= limit
        {
            return (State::Full, Some(format!("it may hold {limit} connections")));
        }
        if self.health.is_cold(now) {
            return (State::Cold, None);
        }
        let state = match report {
            None => State::Unknown,
            Some(report) if report.connections.is_none() => State::Up,
            Some(_) if self.fresh_report(settings, now).is_none() => State::Stale,
            Some(_) => State::Up,
        };
        (state, None)
    }

    /// Whether nothing would be lost if it were forgotten: it has been away for longer than
    /// `grace`, and no session of ours is left on it.
    pub fn is_forgotten(&self, grace: Duration, now: Instant) -> bool {
        let away = self.left_at.is_some_and(|at| now.saturating_duration_since(at) > grace);
        away && self.gauge.load() == Load::default()
    }
}
