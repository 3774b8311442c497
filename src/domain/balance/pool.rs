//! The backends of a service, what is known of each, and the choice between them.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    affinity::{self, Preference},
    backend::{Entry, Surprise, Tier},
    health::{Health, HealthSettings},
    lease::{Backend, Gauge, Lease, Load, Purpose},
    pick_cache::{Glance, Others},
    settings::Share,
    strategy::{Candidates, Strategy},
    unseen::Unseen,
};
use crate::domain::report::{Report, ReportError};

/// What the pool needs from the configuration.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// How the next backend is chosen.
    pub strategy: Strategy,
    /// Balancer replicas that share the pods, at least 1.
    pub replicas: u32,
    /// A report older than this is stale: own counts decide instead.
    pub stale_after: Duration,
    /// This replica's sessions on all backends together.
    pub max_sessions: Option<NonZeroU32>,
    /// Connections of one backend, by its estimate.
    pub max_sessions_per_pod: Option<NonZeroU32>,
    /// When a backend is ejected, and what happens after.
    pub health: HealthSettings,
    /// How long a backend that is not among the service's any more is remembered.
    pub grace: Duration,
    /// What backends are called in cookies, where there are cookies.
    pub affinity_key: Option<affinity::Key>,
    /// How large backends are, by their address; those that are missing are like any other.
    pub shares: BTreeMap<String, Share>,
}

/// Why no backend could be given.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoBackend {
    /// The service has none.
    #[error("the service has no backends")]
    Empty,
    /// Every one has been tried for this connection.
    #[error("every backend has been tried")]
    AllTried,
    /// Every one that has not been tried holds as many connections as it may.
    #[error("every backend is full")]
    AllFull,
    /// Every one that has not been tried takes no new connections.
    #[error("every backend is draining")]
    AllDraining,
    /// The service holds as many sessions as it may.
    #[error("the service is full")]
    ServiceFull,
}

/// How much the pool knows of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its last report is fresh.
    Up,
    /// It is new, or back after an ejection, and takes but a share of what it would otherwise.
    Cold,
    /// Its last report is too old to be believed.
    Stale,
    /// It has given no report that could be read.
    Unknown,
    /// It takes no new connections: an operator wants that, it said so, or it is not among the
    /// service's pods any more.
    Draining,
    /// It holds as many connections as it may.
    Full,
    /// It has failed too often, or says that it is down.
    Ejected,
}

/// A backend as the pool saw it at one instant.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    /// Where it is.
    pub backend: Arc<Backend>,
    /// How it is.
    pub state: State,
    /// Why it is so, where that is not obvious.
    pub reason: Option<String>,
    /// Its last report and that report's age.
    pub report: Option<(Report, Duration)>,
    /// Why the last poll gave no report.
    pub error: Option<ReportError>,
    /// This replica's own sessions on it.
    pub load: Load,
    /// What selection compares, for its weight.
    pub estimate: u64,
    /// Its share of the connections, relative to others.
    pub weight: f64,
    /// Connections that it may hold.
    pub limit: Option<u64>,
    /// How long it is still ejected.
    pub ejected_for: Option<Duration>,
}

/// What operators should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A backend is out for a while.
    Ejected {
        /// Which one.
        backend: Arc<Backend>,
        /// For how long.
        length: Duration,
        /// What it did.
        reason: String,
    },
    /// A backend says that it is down.
    Down {
        /// Which one.
        backend: Arc<Backend>,
        /// In its own words.
        reason: String,
    },
    /// Every backend that might take connections is ejected, so they are tried all the same.
    FailsOpen,
    /// A backend takes no new connections from now on.
    Drains {
        /// Which one.
        backend: Arc<Backend>,
        /// Who wants that.
        reason: &'static str,
    },
    /// A backend that was draining takes new connections again.
    DrainsNoMore {
        /// Which one.
        backend: Arc<Backend>,
    },
    /// A backend that is not among the service's any more has been gone for long.
    Forgotten {
        /// Which one.
        backend: Arc<Backend>,
    },
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ejected { backend, length, reason } => {
                write!(f, "{} is ejected for {length:.1?}: {reason}", backend.url)
            }
            Self::Down { backend, reason } => {
                write!(f, "{} says that it is down: {reason}", backend.url)
            }
            Self::FailsOpen => f.write_str("all pods are ejected, so they are tried all the same"),
            Self::Drains { backend, reason } => {
                write!(f, "{} drains: {reason}", backend.address)
            }
            Self::DrainsNoMore { backend } => {
                write!(f, "{} takes connections again", backend.address)
            }
            Self::Forgotten { backend } => write!(f, "{} is forgotten", backend.address),
        }
    }
}

/// A poll under way: remembers what was open when it was sent.
#[derive(Debug)]
pub struct Poll {
    backend: Arc<Backend>,
    sent_at: Instant,
    own_when_sent: u32,
}

impl Poll {
    /// The backend that was asked.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }
}

/// What a poll needs to start: where to ask, and the load to remember.
#[derive(Clone, Debug)]
pub struct PollTarget {
    backend: Arc<Backend>,
    gauge: Arc<Gauge>,
}

impl PollTarget {
    /// The backend to ask.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// To be called when the request is sent, not when its answer comes: whatever opens in
    /// between may be missing from the answer.
    pub fn begin(&self, now: Instant) -> Poll {
        Poll { backend: self.backend.clone(), sent_at: now, own_when_sent: self.gauge.load().open }
    }
}

/// The backends of one service.
#[derive(Debug)]
pub struct Pool {
    settings: PoolSettings,
    entries: Vec<Entry>,
    /// One per entry.
    glances: Vec<Glance>,
    /// How long they hold, if they do: until the first report goes stale.
    glances_until: Option<Instant>,
    /// How many of them discovery finds, and their weights together.
    there: usize,
    weights: f64,
    unseen: Unseen,
    rng: fastrand::Rng,
    /// Picks so far.
    turn: usize,
    /// Reused by every pick: those of the best tier so far.
    candidates: Candidates,
    /// An operator wants no new connections on any, not on those that are yet to come either.
    operator_drains: bool,
    /// The last pick found ejected backends only.
    fails_open: bool,
    news: Vec<News>,
}

impl Pool {
    /// A pool of `backends`; `seed` decides how ties fall.
    pub fn new(
        backends: impl IntoIterator<Item = Backend>,
        settings: PoolSettings,
        seed: u64,
    ) -> Self {
        let entry = |backend| Entry::new(backend, &settings, Health::default());
        let entries: Vec<Entry> = backends.into_iter().map(entry).collect();
        let mut pool = Self {
            there: 0,
            weights: 0.0,
            glances: Vec::new(),
            glances_until: None,
            unseen: Unseen::default(),
            entries,
            settings,
            rng: fastrand::Rng::with_seed(seed),
            turn: 0,
            candidates: Candidates::default(),
            operator_drains: false,
            fails_open: false,
            news: Vec::new(),
        };
        pool.take_stock();
        pool
    }

    /// Takes a slot on the preferred backend if it is fit and not in `tried`, else on the one that
    /// the strategy chooses among those that are: with least connections the smallest estimate
    /// for its weight, of equals the fewest plain requests under way, of equals any.
    ///
    /// Cold backends that have had their share come next, and ejected ones when nobody else is
    /// left. For a request there is always room, because it adds no connection.
    ///
    /// # Errors
    /// [`NoBackend`] when there is none.
    pub fn pick(
        &mut self,
        purpose: Purpose,
        tried: &[Arc<Backend>],
        preference: Preference,
        now: Instant,
    ) -> Result<Lease, NoBackend> {
        let is_session = purpose == Purpose::Session;
        if is_session && self.settings.max_sessions.is_some() && self.is_full() {
            return Err(NoBackend::ServiceFull);
        }
        if self.glances_until.is_none_or(|until| now > until) {
            self.glance_over(now);
        }
        let others = Others {
            limit: self.settings.max_sessions_per_pod.map_or(u64::MAX, |limit| limit.get().into()),
            unseen: self.unseen.per_arrival(self.settings.replicas) / self.weights,
            arrivals: self.unseen.arrivals() as f64,
        };
        let loads = self.glances.iter().map(move |glance| glance.quick_load(others));
        if self.candidates.collect(loads) || !tried.is_empty() {
            self.judge(purpose, tried, others, now);
        }
        let preferred = self.preferred(preference);
        let best = match self.candidates.narrow() {
            None => return Err(NoBackend::Empty),
            Some(Tier::Tried) => return Err(NoBackend::AllTried),
            Some(Tier::Draining) => return Err(NoBackend::AllDraining),
            Some(Tier::Full) => return Err(NoBackend::AllFull),
            Some(best) => best,
        };
        let requests = |at: usize| self.glances[at].gauge.load().requests;
        let strategy = self.settings.strategy;
        let choose = || self.candidates.choose(strategy, self.turn, requests, &mut self.rng);
        let at = preferred.or_else(choose).ok_or(NoBackend::Empty)?;
        // What is left after others have failed says nothing about all.
        if tried.is_empty() {
            let fails_open = preferred.is_none() && best == Tier::Ejected;
            if fails_open && !self.fails_open {
                self.news.push(News::FailsOpen);
            }
            self.fails_open = fails_open;
        }
        self.turn += 1;
        if is_session {
            self.unseen.arrive();
        }
        let entry = &mut self.entries[at];
        if entry.health.is_cold(now) {
            entry.health.took_one();
        }
        Ok(Lease::new(entry.backend.clone(), entry.gauge.clone(), purpose))
    }

    /// Looks more closely at those that may not be usable.
    fn judge(&mut self, purpose: Purpose, tried: &[Arc<Backend>], others: Others, now: Instant) {
        let fair = 1.0 / self.there.max(1) as f64;
        for (at, (entry, glance)) in self.entries.iter_mut().zip(&mut self.glances).enumerate() {
            if tried.contains(&entry.backend) {
                self.candidates.rule(at, Tier::Tried, 0.0);
            } else if !self.candidates.is_usable(at) {
                self.news.extend(entry.look(&self.settings, &mut self.rng, now));
                *glance = entry.glance(&self.settings, now);
                let estimate = entry.estimate(&self.settings, now);
                let tier = entry.tier(purpose, &self.settings, estimate, fair, now);
                self.candidates.rule(at, tier, glance.load(estimate, others));
            }
        }
    }

    /// The one that a client with `preference` likes best, of those that have not failed.
    fn preferred(&self, preference: Preference) -> Option<usize> {
        if preference == Preference::None {
            return None;
        }
        let fit = self.candidates.better_than(Tier::Ejected);
        let likings = fit.filter_map(|at| Some((self.entries[at].liked_by(preference)?, at)));
        likings.max().map(|(_, at)| at)
    }

    fn is_full(&self) -> bool {
        let loads = self.entries.iter().map(|entry| entry.gauge.load());
        let taken = loads.map(|load| u64::from(load.open) + u64::from(load.connecting)).sum();
        exceeds(taken, self.settings.max_sessions)
    }

    /// Takes in what a poll brought. Answers that are overtaken by a later poll's are dropped.
    ///
    /// An unreadable answer makes the count unknown at once; no answer at all leaves the last
    /// report to grow stale.
    pub fn record(&mut self, poll: Poll, result: Result<Report, ReportError>, now: Instant) {
        let same = |entry: &Entry| Arc::ptr_eq(&entry.backend, &poll.backend);
        let equal = || self.entries.iter().position(|entry| entry.backend == poll.backend);
        let Some(at) = self.entries.iter().position(same).or_else(equal) else { return };
        let entry = &mut self.entries[at];
        if entry.is_newer_than(poll.sent_at) {
            return;
        }
        let arrivals = self.unseen.arrivals();
        let (sent_at, own) = (poll.sent_at, poll.own_when_sent);
        let weight = entry.weight();
        let surprise = entry.record(result, sent_at, own, arrivals, &self.settings, now);
        self.news.extend(entry.look(&self.settings, &mut self.rng, now));
        self.news.extend(entry.look_at_words());
        if let Some(Surprise { by, arrivals }) = surprise {
            let share = arrivals as f64 * entry.weight() / self.weights;
            self.unseen.learn(by, share, self.there);
        }
        if let Some(glance) = self.glances.get_mut(at) {
            *glance = entry.glance(&self.settings, now);
            let stale_at = entry.stale_at(&self.settings, now);
            self.glances_until = self.glances_until.min(stale_at.or(self.glances_until));
        }
        if entry.weight() != weight {
            self.take_stock();
        }
    }

    /// What has happened since it was asked last.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Nobody wants this pool any more: its backends are left to their sessions, and if it is wanted again
    /// nothing is known of an operator's drain of it.
    pub fn retire(&mut self, now: Instant) {
        self.operator_drains = false;
        self.set_backends(Vec::new(), now);
    }

    /// Makes the pool hold `backends`. Those that are new come cold, unless there was nobody
    /// before; those that are missing drain, and are forgotten after the grace period, once no
    /// session is left on them; those that come back within it are as they were. URLs that are
    /// written otherwise change nothing else.
    pub fn set_backends(&mut self, backends: Vec<Backend>, now: Instant) {
        let was_empty = self.entries.iter().all(|entry| entry.left_at.is_some());
        for entry in &mut self.entries {
            let Some(backend) = backends.iter().find(|backend| **backend == *entry.backend) else {
                entry.left_at = entry.left_at.or(Some(now));
                continue;
            };
            if backend.url != entry.backend.url {
                entry.backend = Arc::new(backend.clone());
            }
            if let Some(left_at) = entry.left_at.take()
                && now.saturating_duration_since(left_at) > self.settings.grace
            {
                entry.health.start_anew(&entry.gauge.trouble, &self.settings.health, now);
            }
        }
        self.forget(now);
        for backend in backends {
            if self.entries.iter().any(|entry| *entry.backend == backend) {
                continue;
            }
            let health = match was_empty {
                true => Health::default(),
                false => Health::newcomer(&self.settings.health, now),
            };
            let mut entry = Entry::new(backend, &self.settings, health);
            entry.operator_drains = self.operator_drains;
            self.entries.push(entry);
        }
        self.glances_until = None;
        self.glances.clear();
        self.news.extend(self.entries.iter_mut().flat_map(Entry::look_at_words));
        self.take_stock();
    }

    /// To be called when something else may have been interrupted anywhere: works out anew what is
    /// only derived.
    pub fn mend(&mut self) {
        self.glances_until = None;
        self.glances.clear();
        self.candidates = Candidates::default();
        self.take_stock();
    }

    /// Says on behalf of an operator whether backends take new connections: those at `address`, or
    /// all of them and those that are yet to come. Whatever they say themselves holds besides.
    /// Returns those that are meant.
    pub fn drain(&mut self, address: Option<&str>, drains: bool) -> Vec<Arc<Backend>> {
        if address.is_none() {
            self.operator_drains = drains;
        }
        let is_meant =
            |entry: &&mut Entry| address.is_none_or(|address| entry.backend.address == address);
        let mut meant = Vec::new();
        for entry in self.entries.iter_mut().filter(is_meant) {
            entry.operator_drains = drains;
            self.news.extend(entry.look_at_words());
            meant.push(entry.backend.clone());
        }
        self.glances_until = None;
        meant
    }

    fn glance_over(&mut self, now: Instant) {
        let settings = &self.settings;
        self.glances = self.entries.iter().map(|entry| entry.glance(settings, now)).collect();
        let stale = self.entries.iter().filter_map(|entry| entry.stale_at(settings, now)).min();
        self.glances_until = stale.or(Some(now + settings.stale_after));
    }

    /// To be called when backends come or go, or change their weights.
    fn take_stock(&mut self) {
        let there = || self.entries.iter().filter(|entry| entry.left_at.is_none());
        self.there = there().count();
        self.weights = there().map(Entry::weight).sum::<f64>().max(f64::MIN_POSITIVE);
    }

    /// Forgets backends that have been away for longer than the grace period and hold no session.
    pub fn forget(&mut self, now: Instant) {
        let grace = self.settings.grace;
        let count = self.entries.len();
        for entry in self.entries.extract_if(.., |entry| entry.is_forgotten(grace, now)) {
            self.news.push(News::Forgotten { backend: entry.backend });
        }
        if self.entries.len() != count {
            self.glances.clear();
            self.glances_until = None;
        }
    }

    /// Goes by these settings from now on; what is known of the backends stays.
    pub fn set_settings(&mut self, settings: PoolSettings) {
        self.settings = settings;
        for entry in &mut self.entries {
            entry.heed(&self.settings);
        }
        self.glances_until = None;
        self.glances.clear();
        self.take_stock();
    }

    /// How many replicas share the pods from now on, at least 1.
    pub fn set_replicas(&mut self, replicas: u32) {
        self.settings.replicas = replicas.max(1);
        self.glances_until = None;
    }

    /// How many replicas share the pods.
    pub fn replicas(&self) -> u32 {
        self.settings.replicas
    }

    /// What to poll, one target per backend.
    pub fn poll_targets(&self) -> Vec<PollTarget> {
        self.entries
            .iter()
            .map(|entry| PollTarget { backend: entry.backend.clone(), gauge: entry.gauge.clone() })
            .collect()
    }

    /// The last poll error of `backend`, if its last poll failed.
    pub fn last_error(&self, backend: &Backend) -> Option<&ReportError> {
        self.entries.iter().find(|entry| *entry.backend == *backend)?.error.as_ref()
    }

    /// Every backend as it stands, in configured order.
    pub fn snapshot(&mut self, now: Instant) -> Vec<BackendSnapshot> {
        for entry in &mut self.entries {
            self.news.extend(entry.look(&self.settings, &mut self.rng, now));
        }
        self.entries.iter().map(|entry| entry.snapshot(&self.settings, now)).collect()
    }
}

/// Whether one more than `count` would be over `limit`.
fn exceeds(count: u64, limit: Option<NonZeroU32>) -> bool {
    limit.is_some_and(|limit| count >= u64::from(limit.get()))
}

#[cfg(test)]
mod tests;
