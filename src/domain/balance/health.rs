//! Outlier ejection: which failures of a backend count, when it is ejected, and how it returns.
//!
//! ```text
//!   healthy ──failures in a row, early deaths, missed polls──► ejected
//!      ▲                                                          │ its time is over
//!      └──── the same time without a failure ──── on probation, cold at first
//! ```
//!
//! On probation a single failure ejects the backend again, for twice as long.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::decay::DecayingCount;
use crate::token_bucket::TokenBucket;

/// A session that its pod ends within this time, without a proper Close, has died early.
pub const EARLY_DEATH: Duration = Duration::from_secs(5);

/// After this time a session that ended early counts as half a session in the estimate.
const EARLY_END_HALF_LIFE: Duration = Duration::from_secs(10);

/// Early deaths that are further apart than this are unrelated.
const STREAK_TIME: Duration = Duration::from_secs(60);

/// Each ejection is longer or shorter by up to this fraction at random, so that pods and replicas
/// do not return at the same moment.
const JITTER: f64 = 0.2;

/// A cold backend gets at most this many times its fair share of the arrivals.
const COLD_SHARE: f64 = 3.0;

/// The most arrivals in a row for a cold backend, if it got fewer than its share before.
const COLD_BURST: f64 = 2.0;

/// When a backend is ejected, and how it returns. The defaults are those of `config/default.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// The number of failures in a row that eject a backend; 0 means never.
    pub eject_after: u32,
    /// The length of the first ejection.
    pub eject_time: Duration,
    /// The greatest length of an ejection.
    pub eject_time_max: Duration,
    /// How long a new backend, or one that was ejected, is cold.
    pub cold_time: Duration,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            eject_after: 3,
            eject_time: Duration::from_secs(30),
            eject_time_max: Duration::from_secs(600),
            cold_time: Duration::from_secs(5),
        }
    }
}

/// What the leases on one backend record of its failures. Shared between them and the pool.
#[derive(Debug, Default)]
#[repr(C)] // A pick reads only the first field.
pub struct FailureCounters {
    /// Grows with each change that the pool should evaluate.
    changes: AtomicU32,
    failed_in_a_row: AtomicU32,
    opened: AtomicU64,
    ended_early: AtomicU64,
    died_early: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

impl FailureCounters {
    /// Records that the backend has accepted a connection or answered a request.
    pub fn record_success(&self) {
        // A store without this check would take the cache line from its readers every time.
        if self.failed_in_a_row.load(Relaxed) != 0 {
            self.failed_in_a_row.store(0, Relaxed);
        }
    }

    /// Records that a session has opened.
    pub fn record_opened(&self) {
        self.opened.fetch_add(1, Relaxed);
        self.record_success();
    }

    /// Records that the backend has not accepted a connection, for this reason.
    pub fn record_failure(&self, reason: String) {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.failed_in_a_row.fetch_add(1, Relaxed);
        self.changes.fetch_add(1, Relaxed);
    }

    fn has_succeeded_last(&self) -> bool {
        self.failed_in_a_row.load(Relaxed) == 0
    }

    /// Returns a number that grows with each failure and each early end.
    pub fn changes(&self) -> u32 {
        self.changes.load(Relaxed)
    }

    /// Records that the backend has ended a session within [`EARLY_DEATH`], properly or not. The
    /// session stays in the estimate for a while, so that the backend does not look empty and
    /// attract all arrivals.
    pub fn record_early_end(&self) {
        self.ended_early.fetch_add(1, Relaxed);
        self.changes.fetch_add(1, Relaxed);
    }

    /// Records that the backend has dropped a session within [`EARLY_DEATH`], which is a failure.
    pub fn record_early_death(&self) {
        self.died_early.fetch_add(1, Relaxed);
        self.record_early_end();
    }
}

/// Early deaths that belong together.
#[derive(Clone, Copy, Debug)]
struct DeathStreak {
    since: Instant,
    /// Sessions that had opened before the first one that died.
    opened_before: u64,
    deaths: u64,
}

impl DeathStreak {
    /// Returns how many sessions have opened since the streak began and have not died, given that
    /// `opened` have opened in all.
    fn survivors(&self, opened: u64) -> u64 {
        opened.saturating_sub(self.opened_before + self.deaths)
    }
}

/// The health of one backend, as the pool evaluates it.
#[derive(Debug)]
pub struct Health {
    ejection: Option<Ejection>,
    /// The last ejection, over or not.
    last: Option<PastEjection>,
    cold_until: Option<Instant>,
    /// Arrivals that a cold backend may get now.
    cold_arrivals: TokenBucket,
    /// Sessions that ended early.
    early_ends: DecayingCount,
    /// Whether `early_ends` still counts at least one session after rounding.
    has_early_ends: bool,
    seen_ends: u64,
    seen_deaths: u64,
    streak: Option<DeathStreak>,
    missed_polls: u32,
    /// Why the last poll was missed.
    missed_because: String,
}

/// An ejection under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub until: Instant,
    pub reason: String,
    cause: EjectionCause,
}

/// An ejection that is in progress or over.
#[derive(Clone, Copy, Debug)]
struct PastEjection {
    /// Without jitter.
    length: Duration,
    probation_until: Instant,
}

/// The kind of failure that has led to an ejection. It decides what ends the ejection early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EjectionCause {
    /// Failures in a row. A success ends the ejection; it is only possible if all are ejected.
    Failures,
    /// Early deaths. Nothing ends the ejection early: the backend still accepts connections.
    Deaths,
    /// Missed polls. An answer ends the ejection.
    Polls,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            ejection: None,
            last: None,
            cold_until: None,
            cold_arrivals: TokenBucket::new(1.0),
            early_ends: DecayingCount::new(EARLY_END_HALF_LIFE),
            has_early_ends: false,
            seen_ends: 0,
            seen_deaths: 0,
            streak: None,
            missed_polls: 0,
            missed_because: String::new(),
        }
    }
}

impl Health {
    /// Creates the health of a backend that has joined later than others, and so starts cold.
    pub fn new_cold(settings: &HealthSettings, now: Instant) -> Self {
        Self { cold_until: Some(now + settings.cold_time), ..Self::default() }
    }

    /// Returns the ejection, if the backend is ejected at `now`.
    pub fn ejection(&self, now: Instant) -> Option<&Ejection> {
        self.ejection.as_ref().filter(|ejection| ejection.until > now)
    }

    /// Returns whether the backend gets only a limited part of the arrivals.
    pub fn is_cold(&self, now: Instant) -> bool {
        self.cold_until.is_some_and(|until| until > now)
    }

    /// Returns whether the backend was neither ejected nor cold at the last update, has no sessions
    /// that ended early, and answers polls.
    pub fn is_calm(&self) -> bool {
        let is_warm = self.ejection.is_none() && self.cold_until.is_none();
        is_warm && self.missed_polls == 0 && !self.has_early_ends
    }

    /// Returns how many of the sessions that ended early still count in the estimate.
    pub fn early_ends(&self, now: Instant) -> u64 {
        if self.has_early_ends { self.early_ends.value(now).round() as u64 } else { 0 }
    }

    /// Evaluates the failures since the last update. Returns the ejection if a new one starts.
    pub fn update(
        &mut self,
        failures: &FailureCounters,
        settings: &HealthSettings,
        rng: &mut fastrand::Rng,
        now: Instant,
    ) -> Option<&Ejection> {
        self.count_early_ends(failures, now);
        self.cold_until = self.cold_until.filter(|until| *until > now);
        if let Some(ejection) = &self.ejection {
            let has_recovered =
                ejection.cause == EjectionCause::Failures && failures.has_succeeded_last();
            if ejection.until > now && !has_recovered {
                return None;
            }
            self.end_ejection(failures, settings, now);
        }
        let (reason, cause) = self.find_reason(failures, settings, now)?;
        let length = match self.last {
            Some(last) if now < last.probation_until => last.length * 2,
            _ => settings.eject_time,
        };
        let length = length.min(settings.eject_time_max);
        let jittered = length.mul_f64(1.0 + JITTER * (2.0 * rng.f64() - 1.0));
        let until = now + jittered;
        self.last = Some(PastEjection { length, probation_until: until + jittered });
        self.ejection = Some(Ejection { until, reason, cause });
        self.ejection.as_ref()
    }

    fn count_early_ends(&mut self, failures: &FailureCounters, now: Instant) {
        let ended = failures.ended_early.load(Relaxed);
        if ended != self.seen_ends {
            self.early_ends.add((ended - self.seen_ends) as f64, now);
            self.seen_ends = ended;
            self.has_early_ends = true;
        }
        self.has_early_ends &= self.early_ends.value(now) >= 0.5;
        let died = failures.died_early.load(Relaxed);
        let new_deaths = died - self.seen_deaths;
        if new_deaths == 0 {
            return;
        }
        self.seen_deaths = died;
        let opened = failures.opened.load(Relaxed);
        let continues = |streak: &DeathStreak| {
            let age = now.duration_since(streak.since);
            let is_thriving = age > EARLY_DEATH && streak.survivors(opened) > streak.deaths;
            age < STREAK_TIME && !is_thriving
        };
        let streak = self.streak.filter(continues).unwrap_or(DeathStreak {
            since: now,
            opened_before: opened.saturating_sub(new_deaths),
            deaths: 0,
        });
        self.streak = Some(DeathStreak { deaths: streak.deaths + new_deaths, ..streak });
    }

    /// Returns why the backend should be ejected, if it should.
    fn find_reason(
        &self,
        failures: &FailureCounters,
        settings: &HealthSettings,
        now: Instant,
    ) -> Option<(String, EjectionCause)> {
        if settings.eject_after == 0 {
            return None;
        }
        let is_on_probation = self.last.is_some_and(|last| now < last.probation_until);
        let enough = if is_on_probation { 1 } else { settings.eject_after };
        let failed_in_a_row = failures.failed_in_a_row.load(Relaxed);
        if failed_in_a_row >= enough {
            let last = failures.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
            let last = last.as_deref().unwrap_or("no reason given");
            let count = match failed_in_a_row {
                1 => "1 connect failure".to_owned(),
                more => format!("{more} connect failures in a row"),
            };
            return Some((format!("{count} ({last})"), EjectionCause::Failures));
        }
        // If most sessions survive, a few that die do not show a broken backend.
        if let Some(streak) = self.streak
            && streak.deaths >= u64::from(enough)
            && streak.survivors(failures.opened.load(Relaxed)) <= streak.deaths
        {
            let count = match streak.deaths {
                1 => "1 session".to_owned(),
                more => format!("{more} sessions"),
            };
            let reason = format!("{count} dropped within {EARLY_DEATH:?} of opening");
            return Some((reason, EjectionCause::Deaths));
        }
        // Probation does not apply to polls: a single lost one is no failure.
        (self.missed_polls >= settings.eject_after).then(|| {
            let (count, reason) = (self.missed_polls, &self.missed_because);
            (format!("{count} polls in a row without an answer ({reason})"), EjectionCause::Polls)
        })
    }

    fn end_ejection(
        &mut self,
        failures: &FailureCounters,
        settings: &HealthSettings,
        now: Instant,
    ) {
        self.ejection = None;
        self.streak = None;
        failures.record_success();
        self.start_cold(settings, now);
    }

    /// Forgets earlier failures, as if the backend were new. Its open sessions may be older.
    pub fn reset(&mut self, failures: &FailureCounters, settings: &HealthSettings, now: Instant) {
        self.last = None;
        self.missed_polls = 0;
        self.end_ejection(failures, settings, now);
    }

    fn start_cold(&mut self, settings: &HealthSettings, now: Instant) {
        self.cold_until = Some(now + settings.cold_time);
        self.cold_arrivals = TokenBucket::new(1.0);
    }

    /// Records that the backend has answered a poll, readably or not.
    pub fn record_poll_answer(&mut self, settings: &HealthSettings, now: Instant) {
        self.missed_polls = 0;
        if self.ejection.as_ref().is_some_and(|ejection| ejection.cause == EjectionCause::Polls) {
            self.ejection = None;
            self.start_cold(settings, now);
        }
    }

    /// Records that the backend has not answered a poll.
    pub fn record_missed_poll(&mut self, reason: &str) {
        self.missed_polls = self.missed_polls.saturating_add(1);
        reason.clone_into(&mut self.missed_because);
    }

    /// Returns whether the backend may get this arrival. If it is cold, its allowance grows with
    /// every arrival at the pool, of which `fair_share` would be its part, so no rate of arrivals
    /// has to be known.
    pub fn admits_arrival(&mut self, fair_share: f64, now: Instant) -> bool {
        if !self.is_cold(now) {
            return true;
        }
        self.cold_arrivals.add(COLD_SHARE * fair_share, COLD_BURST);
        self.cold_arrivals.tokens() >= 1.0
    }

    /// Records that a cold backend has got an arrival.
    pub fn record_arrival(&mut self) {
        self.cold_arrivals.take(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> HealthSettings {
        HealthSettings { eject_time_max: Duration::from_secs(100), ..HealthSettings::default() }
    }

    /// A backend's health in simulated time.
    struct TestBackend {
        health: Health,
        failures: FailureCounters,
        now: Instant,
        rng: fastrand::Rng,
    }

    impl TestBackend {
        fn new() -> Self {
            let (health, failures) = (Health::default(), FailureCounters::default());
            Self { health, failures, now: Instant::now(), rng: fastrand::Rng::with_seed(1) }
        }

        /// Returns whether an update starts an ejection.
        fn becomes_ejected(&mut self) -> bool {
            self.health.update(&self.failures, &settings(), &mut self.rng, self.now).is_some()
        }

        fn is_ejected(&mut self) -> bool {
            self.becomes_ejected();
            self.health.ejection(self.now).is_some()
        }

        fn fail(&mut self, times: u32) {
            (0..times).for_each(|_| self.failures.record_failure("refused".to_owned()));
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn failures_in_a_row_eject_unless_a_success_is_between_them() {
        let mut pod = TestBackend::new();
        pod.fail(2);
        pod.failures.record_opened();
        pod.fail(2);
        assert!(!pod.is_ejected());
        pod.fail(1);
        assert!(pod.becomes_ejected());
        assert!(!pod.becomes_ejected(), "reported once");
        assert!(pod.health.ejection(pod.now).unwrap().reason.contains("refused"));
    }

    #[test]
    fn each_ejection_lasts_twice_as_long_until_the_probation_is_over() {
        let mut pod = TestBackend::new();
        let mut lengths = Vec::new();
        for _ in 0..4 {
            pod.fail(3);
            assert!(pod.becomes_ejected());
            let until = pod.health.ejection(pod.now).unwrap().until;
            lengths.push((until - pod.now).as_secs_f64());
            pod.now = until;
            assert!(!pod.is_ejected(), "it is back");
        }
        for (length, expected) in lengths.iter().zip([30.0, 60.0, 100.0, 100.0]) {
            assert!((length / expected - 1.0).abs() <= JITTER, "{lengths:?}");
        }
        pod.fail(1);
        assert!(pod.is_ejected(), "one failure is enough on probation");
        pod.pass(500);
        assert!(!pod.is_ejected());
        pod.fail(2);
        assert!(!pod.is_ejected(), "but not after it");
        pod.fail(1);
        assert!(pod.becomes_ejected());
        let length = pod.health.ejection(pod.now).unwrap().until - pod.now;
        assert!(length.as_secs_f64() <= 30.0 * (1.0 + JITTER), "back to the first length");
    }

    #[test]
    fn a_pod_that_drops_its_sessions_is_ejected_and_one_that_loses_a_few_is_not() {
        let mut dropping = TestBackend::new();
        for death in 1..=3 {
            assert!(!dropping.is_ejected(), "{death}");
            dropping.failures.record_opened();
            dropping.failures.record_early_death();
        }
        assert!(dropping.is_ejected());
        assert_eq!(dropping.health.early_ends(dropping.now), 3, "they still count");
        dropping.pass(100);
        assert_eq!(dropping.health.early_ends(dropping.now), 0);

        let mut strict = TestBackend::new();
        for _ in 0..20 {
            strict.failures.record_opened();
            strict.failures.record_early_end();
            assert!(!strict.is_ejected(), "a proper end is no failure");
        }
        assert_eq!(strict.health.early_ends(strict.now), 20, "but they still count");

        let mut busy = TestBackend::new();
        for session in 0..100 {
            busy.failures.record_opened();
            if session % 4 == 3 {
                busy.failures.record_early_death();
            }
            assert!(!busy.is_ejected(), "{session}");
        }
        // A pod that starts to drop sessions is ejected soon, however many it has held before.
        busy.pass(6);
        for _ in 0..4 {
            busy.failures.record_opened();
            busy.failures.record_early_death();
        }
        assert!(busy.is_ejected());
    }

    #[test]
    fn missed_polls_eject_until_the_first_answer() {
        let mut pod = TestBackend::new();
        for _ in 0..3 {
            assert!(!pod.is_ejected());
            pod.health.record_missed_poll("refused");
        }
        assert!(pod.is_ejected());
        pod.health.record_poll_answer(&settings(), pod.now);
        assert!(!pod.is_ejected());
        assert!(pod.health.is_cold(pod.now));
    }

    #[test]
    fn a_cold_backend_gets_at_most_three_times_its_share() {
        let start = Instant::now();
        let mut health = Health::new_cold(&settings(), start);
        // 5,000 arrivals in 5 s, in bursts; a tenth is the fair share.
        let at = |arrival: u64| start + Duration::from_millis(arrival / 500 * 500);
        let taken = (0..5_000).filter(|arrival| {
            let admits = health.admits_arrival(0.1, at(*arrival));
            if admits {
                health.record_arrival();
            }
            admits
        });
        let taken = taken.count();
        assert!((1_495..=1_502).contains(&taken), "{taken}");
        // What it has not used, it may not use later.
        for arrival in 0..100 {
            health.admits_arrival(0.1, at(arrival));
        }
        let mut in_a_row = 0;
        while health.admits_arrival(0.1, start) {
            health.record_arrival();
            in_a_row += 1;
        }
        assert!(in_a_row <= 2, "{in_a_row}");
        assert!(!health.is_cold(start + settings().cold_time));
    }

    #[test]
    fn after_a_reset_only_new_failures_count() {
        let mut pod = TestBackend::new();
        for _ in 0..3 {
            pod.failures.record_opened();
            pod.failures.record_early_death();
        }
        pod.fail(3);
        assert!(pod.is_ejected());
        pod.health.reset(&pod.failures, &settings(), pod.now);
        assert!(!pod.is_ejected());
        pod.fail(2);
        assert!(!pod.is_ejected(), "not on probation either");
        pod.fail(1);
        assert!(pod.is_ejected());
    }

    #[test]
    fn a_success_ends_an_ejection_for_failures_but_not_one_for_early_deaths() {
        let mut failing = TestBackend::new();
        failing.fail(3);
        assert!(failing.is_ejected());
        failing.failures.record_opened();
        assert!(!failing.is_ejected());
        assert!(failing.health.is_cold(failing.now));

        let mut dropping = TestBackend::new();
        for _ in 0..3 {
            dropping.failures.record_opened();
            dropping.failures.record_early_death();
        }
        assert!(dropping.is_ejected());
        dropping.failures.record_opened();
        assert!(dropping.is_ejected());
    }

    #[test]
    fn nothing_is_ejected_if_ejection_is_off() {
        let mut pod = TestBackend::new();
        pod.fail(100);
        let off = HealthSettings { eject_after: 0, ..settings() };
        assert!(pod.health.update(&pod.failures, &off, &mut pod.rng, pod.now).is_none());
    }
}
