//! The backends of a service, what is known of each, and the choice between them.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    affinity::{self, Preference, Tag},
    estimate::{Reported, estimate, held},
    lease::{Backend, Gauge, Lease, Load, Purpose},
    report::{Report, ReportError},
};

/// What the pool needs from the configuration.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Balancer replicas that share the pods, at least 1.
    pub replicas: u32,
    /// A report older than this is stale: own counts decide instead.
    pub stale_after: Duration,
    /// This replica's sessions on all backends together.
    pub max_sessions: Option<NonZeroU32>,
    /// Connections of one backend, by its estimate.
    pub max_sessions_per_pod: Option<NonZeroU32>,
    /// What backends are called in cookies, where there are cookies.
    pub affinity_key: Option<affinity::Key>,
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
    /// The service holds as many sessions as it may.
    #[error("the service is full")]
    ServiceFull,
}

/// How much the pool knows of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its last report is fresh.
    Up,
    /// Its last report is too old to be believed.
    Stale,
    /// It has given no report that could be read.
    Unknown,
}

/// A backend as the pool saw it at one instant.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    /// Where it is.
    pub backend: Arc<Backend>,
    /// How much is known of it.
    pub state: State,
    /// Its last report and that report's age.
    pub report: Option<(Report, Duration)>,
    /// Why the last poll gave no report.
    pub error: Option<ReportError>,
    /// This replica's own sessions on it.
    pub load: Load,
    /// What selection compares.
    pub estimate: u64,
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
    rng: fastrand::Rng,
}

#[derive(Debug)]
struct Entry {
    backend: Arc<Backend>,
    gauge: Arc<Gauge>,
    /// Its name in cookies.
    tag: Option<Tag>,
    /// Its address, for rendezvous hashing.
    hash: u64,
    report: Option<Accepted>,
    error: Option<ReportError>,
}

#[derive(Debug)]
struct Accepted {
    report: Report,
    sent_at: Instant,
    own_when_polled: u32,
}

impl Pool {
    /// A pool of `backends`; `seed` decides how ties fall.
    pub fn new(
        backends: impl IntoIterator<Item = Backend>,
        settings: PoolSettings,
        seed: u64,
    ) -> Self {
        let entries = backends
            .into_iter()
            .map(|backend| Entry::new(backend, settings.affinity_key.as_ref()))
            .collect();
        Self { settings, entries, rng: fastrand::Rng::with_seed(seed) }
    }

    /// Takes a slot on the preferred backend if it is not in `tried` and has room, else on the one
    /// with the smallest estimate of which the same is true. Of equals the one with the fewest
    /// plain requests under way gets it; further ties fall at random. For a request there is
    /// always room, because it adds no connection.
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
        let is_limited = purpose == Purpose::Session;
        if is_limited && self.is_full() {
            return Err(NoBackend::ServiceFull);
        }
        let mut none = if self.entries.is_empty() { NoBackend::Empty } else { NoBackend::AllTried };
        let mut preferred: Option<(u64, &Entry)> = None;
        let mut best: Option<((u64, u32), &Entry)> = None;
        let mut ties = 0;
        for entry in self.entries.iter().filter(|entry| !tried.contains(&entry.backend)) {
            let estimate = entry.estimate(&self.settings, now);
            if is_limited && exceeds(estimate, self.settings.max_sessions_per_pod) {
                none = NoBackend::AllFull;
                continue;
            }
            if let Some(liking) = entry.liked_by(preference)
                && preferred.is_none_or(|(most, _)| liking > most)
            {
                preferred = Some((liking, entry));
            }
            let load = (estimate, entry.gauge.load().requests);
            let smallest = best.map_or((u64::MAX, 0), |(smallest, _)| smallest);
            if best.is_none() || load < smallest {
                best = Some((load, entry));
                ties = 1;
            } else if load == smallest {
                // Reservoir sampling: the n-th of n equals replaces the choice once in n times.
                ties += 1;
                if self.rng.u32(0..ties) == 0 {
                    best = Some((load, entry));
                }
            }
        }
        let best = best.map(|(_, entry)| entry);
        let entry = preferred.map(|(_, entry)| entry).or(best).ok_or(none)?;
        Ok(Lease::new(entry.backend.clone(), entry.gauge.clone(), purpose))
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
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.backend == poll.backend)
        else {
            return;
        };
        if entry.report.as_ref().is_some_and(|known| known.sent_at > poll.sent_at) {
            return;
        }
        match result {
            Ok(report) => {
                let load = entry.gauge.load();
                let held =
                    held(entry.fresh_report(&self.settings, now), load, self.settings.replicas);
                let own_when_polled = report.connections.map_or(poll.own_when_sent, |count| {
                    let (own_when_sent, replicas) = (poll.own_when_sent, self.settings.replicas);
                    Reported::between(count, own_when_sent, load, held, replicas).own_when_polled
                });
                entry.error = None;
                entry.report = Some(Accepted { report, sent_at: poll.sent_at, own_when_polled });
            }
            Err(error) => {
                if !matches!(error, ReportError::Unreachable(_)) {
                    entry.report = None;
                }
                entry.error = Some(error);
            }
        }
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
    pub fn snapshot(&self, now: Instant) -> Vec<BackendSnapshot> {
        self.entries
            .iter()
            .map(|entry| BackendSnapshot {
                backend: entry.backend.clone(),
                state: entry.state(&self.settings, now),
                report: entry
                    .report
                    .as_ref()
                    .map(|known| (known.report.clone(), now.duration_since(known.sent_at))),
                error: entry.error.clone(),
                load: entry.gauge.load(),
                estimate: entry.estimate(&self.settings, now),
            })
            .collect()
    }
}

/// Whether one more than `count` would be over `limit`.
fn exceeds(count: u64, limit: Option<NonZeroU32>) -> bool {
    limit.is_some_and(|limit| count >= u64::from(limit.get()))
}

impl Entry {
    fn new(backend: Backend, key: Option<&affinity::Key>) -> Self {
        Self {
            tag: key.map(|key| key.tag(&backend.service, &backend.address)),
            hash: affinity::hash(backend.address.as_bytes()),
            backend: Arc::new(backend),
            gauge: Arc::default(),
            report: None,
            error: None,
        }
    }

    /// How much a client with `preference` wants this one rather than others, if it does.
    fn liked_by(&self, preference: Preference) -> Option<u64> {
        match preference {
            Preference::None => None,
            Preference::Tag(tag) => (self.tag == Some(tag)).then_some(0),
            Preference::Hash(client) => Some(affinity::score(client, self.hash)),
        }
    }

    fn state(&self, settings: &PoolSettings, now: Instant) -> State {
        match &self.report {
            None => State::Unknown,
            Some(known) if now.duration_since(known.sent_at) > settings.stale_after => State::Stale,
            Some(_) => State::Up,
        }
    }

    fn fresh_report(&self, settings: &PoolSettings, now: Instant) -> Option<Reported> {
        let fresh = self.state(settings, now) == State::Up;
        let known = self.report.as_ref().filter(|_| fresh)?;
        let count = known.report.connections?;
        Some(Reported { count, own_when_polled: known.own_when_polled })
    }

    fn estimate(&self, settings: &PoolSettings, now: Instant) -> u64 {
        estimate(self.fresh_report(settings, now), self.gauge.load(), settings.replicas)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::lease::Transport;

    const SETTINGS: PoolSettings = PoolSettings {
        replicas: 1,
        stale_after: Duration::from_secs(30),
        max_sessions: None,
        max_sessions_per_pod: None,
        affinity_key: None,
    };

    fn pool(size: usize) -> Pool {
        let backends = (0..size).map(|index| Backend {
            service: "default".into(),
            url: format!("http://pod-{index}:3001"),
            address: format!("pod-{index}:3001"),
            transport: Transport::Tcp,
        });
        Pool::new(backends, SETTINGS, 7)
    }

    fn report(connections: u64) -> Result<Report, ReportError> {
        Ok(Report { connections: Some(connections), ..Report::default() })
    }

    fn poll_all(
        pool: &mut Pool,
        now: Instant,
        answer: impl Fn(usize) -> Result<Report, ReportError>,
    ) {
        for (index, target) in pool.poll_targets().into_iter().enumerate() {
            let poll = target.begin(now);
            pool.record(poll, answer(index), now);
        }
    }

    fn open(pool: &mut Pool, now: Instant) -> Lease {
        let mut lease = pool.pick(Purpose::Session, &[], Preference::None, now).expect("a backend");
        lease.establish();
        lease
    }

    fn counts(leases: &[Lease]) -> HashMap<String, usize> {
        leases.iter().fold(HashMap::new(), |mut counts, lease| {
            *counts.entry(lease.backend().url.clone()).or_default() += 1;
            counts
        })
    }

    #[test]
    fn the_least_loaded_by_report_gets_the_next() {
        let now = Instant::now();
        let mut pool = pool(3);
        poll_all(&mut pool, now, |index| report([5, 2, 9][index]));
        assert_eq!(
            pool.pick(Purpose::Session, &[], Preference::None, now).unwrap().backend().url,
            "http://pod-1:3001"
        );
    }

    #[test]
    fn own_counts_decide_before_the_first_report() {
        let now = Instant::now();
        let mut pool = pool(4);
        let leases: Vec<Lease> = (0..40).map(|_| open(&mut pool, now)).collect();
        assert!(counts(&leases).values().all(|count| *count == 10), "{:?}", counts(&leases));
    }

    #[test]
    fn ties_fall_everywhere() {
        let now = Instant::now();
        let mut pool = pool(5);
        let mut chosen = HashMap::new();
        for _ in 0..500 {
            *chosen
                .entry(
                    pool.pick(Purpose::Session, &[], Preference::None, now)
                        .unwrap()
                        .backend()
                        .url
                        .clone(),
                )
                .or_insert(0) += 1;
        }
        assert_eq!(chosen.len(), 5);
        assert!(chosen.values().all(|count| (60..140).contains(count)), "{chosen:?}");
    }

    #[test]
    fn tried_backends_are_not_given_again() {
        let now = Instant::now();
        let mut pool = pool(2);
        let first = pool.pick(Purpose::Session, &[], Preference::None, now).unwrap();
        let second =
            pool.pick(Purpose::Session, &[first.backend().clone()], Preference::None, now).unwrap();
        assert_ne!(first.backend(), second.backend());
        let tried = [first.backend().clone(), second.backend().clone()];
        assert_eq!(
            pool.pick(Purpose::Session, &tried, Preference::None, now).unwrap_err(),
            NoBackend::AllTried
        );
        assert_eq!(
            Pool::new([], SETTINGS, 1)
                .pick(Purpose::Session, &[], Preference::None, now)
                .unwrap_err(),
            NoBackend::Empty
        );
    }

    #[test]
    fn a_preferred_backend_is_given_while_it_has_room_and_has_not_failed() {
        let now = Instant::now();
        let mut pool = pool(3);
        let key = affinity::Key::random();
        let settings = PoolSettings {
            affinity_key: Some(key.clone()),
            max_sessions_per_pod: NonZeroU32::new(9),
            ..SETTINGS
        };
        let backends: Vec<Backend> =
            pool.entries.drain(..).map(|entry| (*entry.backend).clone()).collect();
        let wanted = backends[1].clone();
        let mut pool = Pool::new(backends, settings, 7);
        poll_all(&mut pool, now, |index| report([0, 6, 0][index]));

        let hash = (0..).map(Preference::Hash).find(|hash| {
            *pool.pick(Purpose::Session, &[], *hash, now).expect("a backend").backend().as_ref()
                == wanted
        });
        for preference in
            [Preference::Tag(key.tag("default", &wanted.address)), hash.expect("one of many")]
        {
            let mut pick = |tried: &[Arc<Backend>]| {
                pool.pick(Purpose::Session, tried, preference, now).unwrap()
            };
            let first = pick(&[]);
            assert_eq!(**first.backend(), wanted);
            assert_ne!(**pick(&[first.backend().clone()]).backend(), wanted, "it has failed");
            let held = [pick(&[]), pick(&[])];
            assert!(held.iter().all(|lease| **lease.backend() == wanted));
            assert_ne!(**pick(&[]).backend(), wanted, "it is full");
        }
        let stranger = Preference::Tag(affinity::Key::random().tag("default", &wanted.address));
        assert_ne!(**pool.pick(Purpose::Session, &[], stranger, now).unwrap().backend(), wanted);
    }

    #[test]
    fn full_backends_are_passed_over() {
        let now = Instant::now();
        let mut pool = pool(2);
        pool.settings.max_sessions_per_pod = NonZeroU32::new(3);
        poll_all(&mut pool, now, |index| report([0, 2][index]));
        let leases: Vec<Lease> = (0..4).map(|_| open(&mut pool, now)).collect();
        assert_eq!(counts(&leases)["http://pod-0:3001"], 3);
        assert_eq!(
            pool.pick(Purpose::Session, &[], Preference::None, now).unwrap_err(),
            NoBackend::AllFull
        );
        drop(leases);
        assert!(pool.pick(Purpose::Session, &[], Preference::None, now).is_ok());
    }

    #[test]
    fn requests_are_no_connections_and_yet_spread() {
        let now = Instant::now();
        let mut pool = pool(3);
        pool.settings.max_sessions = NonZeroU32::new(3);
        pool.settings.max_sessions_per_pod = NonZeroU32::new(1);
        let sessions: Vec<Lease> = (0..3).map(|_| open(&mut pool, now)).collect();
        let mut request = || pool.pick(Purpose::Request, &[], Preference::None, now).unwrap();
        let requests: Vec<Lease> = (0..9).map(|_| request()).collect();
        assert!(counts(&requests).values().all(|count| *count == 3), "{:?}", counts(&requests));
        let snapshot = pool.snapshot(now);
        assert!(snapshot.iter().all(|entry| entry.estimate == 1), "{snapshot:?}");
        drop(sessions);
        assert!(pool.pick(Purpose::Session, &[], Preference::None, now).is_ok());
    }

    #[test]
    fn the_service_has_a_limit_of_its_own() {
        let now = Instant::now();
        let mut pool = pool(3);
        pool.settings.max_sessions = NonZeroU32::new(4);
        let mut leases: Vec<Lease> = (0..3).map(|_| open(&mut pool, now)).collect();
        leases.push(
            pool.pick(Purpose::Session, &[], Preference::None, now).expect("one handshake more"),
        );
        assert_eq!(
            pool.pick(Purpose::Session, &[], Preference::None, now).unwrap_err(),
            NoBackend::ServiceFull
        );
        leases.pop();
        assert!(pool.pick(Purpose::Session, &[], Preference::None, now).is_ok());
    }

    #[test]
    fn an_unreadable_answer_makes_the_count_unknown_and_no_favourite() {
        let now = Instant::now();
        let mut pool = pool(2);
        let held: Vec<Lease> = (0..6).map(|_| open(&mut pool, now)).collect();
        poll_all(&mut pool, now, |index| [report(4), Err(ReportError::Status(503))][index].clone());
        let snapshot = pool.snapshot(now);
        assert_eq!((snapshot[0].state, snapshot[0].estimate), (State::Up, 4));
        assert_eq!((snapshot[1].state, snapshot[1].estimate), (State::Unknown, 3));
        drop(held);
    }

    #[test]
    fn no_answer_leaves_the_last_report_until_it_is_stale() {
        let start = Instant::now();
        let mut pool = pool(1);
        poll_all(&mut pool, start, |_| report(12));
        let later = start + Duration::from_secs(20);
        poll_all(&mut pool, later, |_| Err(ReportError::Unreachable("refused".into())));
        let snapshot = &pool.snapshot(later)[0];
        assert_eq!((snapshot.state, snapshot.estimate), (State::Up, 12));
        assert!(snapshot.error.is_some());
        let snapshot = &pool.snapshot(start + Duration::from_secs(31))[0];
        assert_eq!((snapshot.state, snapshot.estimate), (State::Stale, 0));
    }

    #[test]
    fn an_overtaken_answer_is_dropped() {
        let start = Instant::now();
        let mut pool = pool(1);
        let target = pool.poll_targets().remove(0);
        let slow = target.begin(start);
        let quick = target.begin(start + Duration::from_secs(1));
        pool.record(quick, report(8), start + Duration::from_secs(1));
        pool.record(slow, report(1), start + Duration::from_secs(2));
        assert_eq!(pool.snapshot(start)[0].estimate, 8);
    }

    proptest! {
        /// A pod frozen at zero is filled no further than the others, however often it is polled.
        #[test]
        fn frozen_reports_end_level(pods in 2usize..6, arrivals in 1usize..120, every in 1usize..30) {
            let now = Instant::now();
            let mut pool = pool(pods);
            let mut leases = Vec::new();
            for arrival in 0..arrivals {
                if arrival % every == 0 {
                    poll_all(&mut pool, now, |_| report(0));
                }
                leases.push(open(&mut pool, now));
            }
            let counts = counts(&leases);
            let most = counts.values().max().copied().unwrap_or(0);
            prop_assert!(most - arrivals / pods <= 1, "{:?}", counts);
        }
    }
}
