//! Whether a backend should get connections: what went wrong on it, ejection and return.
//!
//! ```text
//!   well ──failures in a row, early deaths, silent polls──► ejected
//!     ▲                                                        │ its time is over
//!     └──────── the same time without trouble ──── on probation, cold at first
//! ```
//!
//! On probation one failure is enough, and the next ejection lasts twice as long.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::decay::Decaying;

/// A session that its pod ends within this time, without a proper Close, has died early.
pub const EARLY_DEATH: Duration = Duration::from_secs(5);

/// How long until a session that ended early counts as half a one.
const GHOST_HALF_LIFE: Duration = Duration::from_secs(10);

/// Early deaths further apart than this have nothing to do with each other.
const DEATHS_IN_A_ROW: Duration = Duration::from_secs(60);

/// Share of an ejection's time by which it is moved at random, so that pods and replicas do not
/// come back in step.
const JITTER: f64 = 0.2;

/// How many times its fair share of arrivals a cold backend gets at most.
const COLD_SHARE: f64 = 3.0;

/// Arrivals that a cold backend may get in a row, when others got what it might have had.
const COLD_BURST: f64 = 2.0;

/// What the rules about health are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// Failures in a row until a backend is ejected; 0 means never.
    pub eject_after: u32,
    /// How long the first ejection lasts.
    pub eject_time: Duration,
    /// How long an ejection lasts at most.
    pub eject_time_max: Duration,
    /// How long a new backend, or one that was ejected, is cold.
    pub cold_time: Duration,
}

/// What leases tell of one backend, shared between them and the pool.
#[derive(Debug, Default)]
#[repr(C)] // A pick reads the first field only.
pub struct Trouble {
    /// Counts what the pool should look at.
    changes: AtomicU32,
    failed_in_a_row: AtomicU32,
    opened: AtomicU64,
    ended_early: AtomicU64,
    died_early: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

impl Trouble {
    /// The backend has taken a connection or answered a request.
    pub fn succeeded(&self) {
        // A store alone would take the line from its readers every time.
        if self.failed_in_a_row.load(Relaxed) != 0 {
            self.failed_in_a_row.store(0, Relaxed);
        }
    }

    /// A session has opened.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
        self.succeeded();
    }

    /// The backend has not taken a connection, for this reason.
    pub fn failed(&self, reason: String) {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.failed_in_a_row.fetch_add(1, Relaxed);
        self.changes.fetch_add(1, Relaxed);
    }

    fn is_well(&self) -> bool {
        self.failed_in_a_row.load(Relaxed) == 0
    }

    /// Differs from what it was when there is something new.
    pub fn changes(&self) -> u32 {
        self.changes.load(Relaxed)
    }

    /// The backend has ended a session within [`EARLY_DEATH`], in good order or not. Such a
    /// session counts for a while longer, lest its backend looks empty and attracts everyone.
    pub fn ended_early(&self) {
        self.ended_early.fetch_add(1, Relaxed);
        self.changes.fetch_add(1, Relaxed);
    }

    /// The backend has dropped a session within [`EARLY_DEATH`], which is a failure.
    pub fn died_early(&self) {
        self.died_early.fetch_add(1, Relaxed);
        self.ended_early();
    }
}

/// Early deaths that belong together.
#[derive(Clone, Copy, Debug)]
struct Row {
    since: Instant,
    /// Sessions that had been opened when it began, without the first one that died.
    opened_before: u64,
    deaths: u64,
}

impl Row {
    /// Sessions that have opened since it began and have not died, when `opened` have in all.
    fn survivors(&self, opened: u64) -> u64 {
        opened.saturating_sub(self.opened_before + self.deaths)
    }
}

/// What the pool makes of it.
#[derive(Debug)]
pub struct Health {
    ejected: Option<Ejection>,
    /// Length of the last ejection, and until when the backend is on probation after it.
    last: Option<(Duration, Instant)>,
    cold_until: Option<Instant>,
    /// Arrivals that a cold backend may take now.
    tokens: f64,
    ghosts: Decaying,
    /// Some of them still count.
    is_haunted: bool,
    seen_ends: u64,
    seen_deaths: u64,
    row: Option<Row>,
    silent_polls: u32,
    silence: String,
}

/// A backend is out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// When it gets its next chance.
    pub until: Instant,
    /// What it did.
    pub reason: String,
    cause: Cause,
}

/// What has led to an ejection, and so what ends it before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Failures in a row: a success, which only comes when all are ejected.
    Failures,
    /// Early deaths: nothing, because taking connections is what it still does.
    Deaths,
    /// Silent polls: an answer.
    Polls,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            ejected: None,
            last: None,
            cold_until: None,
            tokens: 1.0,
            ghosts: Decaying::new(GHOST_HALF_LIFE),
            seen_ends: 0,
            seen_deaths: 0,
            is_haunted: false,
            row: None,
            silent_polls: 0,
            silence: String::new(),
        }
    }
}

impl Health {
    /// A backend that has come later than the others.
    pub fn newcomer(settings: &HealthSettings, now: Instant) -> Self {
        Self { cold_until: Some(now + settings.cold_time), ..Self::default() }
    }

    /// The backend is out at `now`.
    pub fn ejection(&self, now: Instant) -> Option<&Ejection> {
        self.ejected.as_ref().filter(|ejection| ejection.until > now)
    }

    /// The backend takes but a share of what others would give it.
    pub fn is_cold(&self, now: Instant) -> bool {
        self.cold_until.is_some_and(|until| until > now)
    }

    /// Neither ejected nor cold, now or when it was looked at last, no ghost counts any more, and
    /// it answers polls.
    pub fn is_calm(&self) -> bool {
        let in_place = self.ejected.is_none() && self.cold_until.is_none();
        in_place && self.silent_polls == 0 && !self.is_haunted
    }

    /// What sessions that ended early still count.
    pub fn ghosts(&self, now: Instant) -> u64 {
        if self.is_haunted { self.ghosts.value(now).round() as u64 } else { 0 }
    }

    /// Takes in what leases have told since the last time. Says so when the backend is ejected.
    pub fn look(
        &mut self,
        trouble: &Trouble,
        settings: &HealthSettings,
        rng: &mut fastrand::Rng,
        now: Instant,
    ) -> Option<&Ejection> {
        self.count_deaths(trouble, now);
        self.cold_until = self.cold_until.filter(|until| *until > now);
        if let Some(ejection) = &self.ejected {
            let is_well = ejection.cause == Cause::Failures && trouble.is_well();
            if ejection.until > now && !is_well {
                return None;
            }
            self.come_back(trouble, settings, now);
        }
        let (reason, cause) = self.reason(trouble, settings, now)?;
        let doubled = match self.last {
            Some((length, probation)) if now < probation => length * 2,
            _ => settings.eject_time,
        };
        let length = doubled.min(settings.eject_time_max);
        let jittered = length.mul_f64(1.0 + JITTER * (2.0 * rng.f64() - 1.0));
        let until = now + jittered;
        self.last = Some((length, until + jittered));
        self.ejected = Some(Ejection { until, reason, cause });
        self.ejected.as_ref()
    }

    fn count_deaths(&mut self, trouble: &Trouble, now: Instant) {
        let ended = trouble.ended_early.load(Relaxed);
        if ended != self.seen_ends {
            self.ghosts.add((ended - self.seen_ends) as f64, now);
            self.seen_ends = ended;
            self.is_haunted = true;
        }
        self.is_haunted &= self.ghosts.value(now) >= 0.5;
        let died = trouble.died_early.load(Relaxed);
        let more = died - self.seen_deaths;
        if more == 0 {
            return;
        }
        self.seen_deaths = died;
        let opened = trouble.opened.load(Relaxed);
        let belongs = |row: &Row| {
            let age = now.duration_since(row.since);
            let thriving = age > EARLY_DEATH && row.survivors(opened) > row.deaths;
            age < DEATHS_IN_A_ROW && !thriving
        };
        let row = self.row.filter(belongs).unwrap_or(Row {
            since: now,
            opened_before: opened.saturating_sub(more),
            deaths: 0,
        });
        self.row = Some(Row { deaths: row.deaths + more, ..row });
    }

    /// Why the backend should be ejected, if it should.
    fn reason(
        &self,
        trouble: &Trouble,
        settings: &HealthSettings,
        now: Instant,
    ) -> Option<(String, Cause)> {
        if settings.eject_after == 0 {
            return None;
        }
        let on_probation = self.last.is_some_and(|(_, probation)| now < probation);
        let enough = if on_probation { 1 } else { settings.eject_after };
        let failures = trouble.failed_in_a_row.load(Relaxed);
        if failures >= enough {
            let last = trouble.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
            let last = last.as_deref().unwrap_or("failed");
            return Some((
                format!("{failures} failures in a row, the last: {last}"),
                Cause::Failures,
            ));
        }
        // Where most sessions live, a few that do not are their clients' bad luck.
        if let Some(row) = self.row
            && row.deaths >= u64::from(enough)
            && row.survivors(trouble.opened.load(Relaxed)) <= row.deaths
        {
            let told = format!("dropped {} sessions within {EARLY_DEATH:?} each", row.deaths);
            return Some((told, Cause::Deaths));
        }
        // Probation is about clients: a single lost poll is no reason.
        (self.silent_polls >= settings.eject_after).then(|| {
            (
                format!("{} polls without an answer: {}", self.silent_polls, self.silence),
                Cause::Polls,
            )
        })
    }

    fn come_back(&mut self, trouble: &Trouble, settings: &HealthSettings, now: Instant) {
        self.ejected = None;
        self.row = None;
        trouble.succeeded();
        self.warm_up(settings, now);
    }

    /// Forgets what was, as for a newcomer; sessions of before may still be on the backend.
    pub fn start_anew(&mut self, trouble: &Trouble, settings: &HealthSettings, now: Instant) {
        self.last = None;
        self.silent_polls = 0;
        self.come_back(trouble, settings, now);
    }

    fn warm_up(&mut self, settings: &HealthSettings, now: Instant) {
        self.cold_until = Some(now + settings.cold_time);
        self.tokens = 1.0;
    }

    /// A poll has brought an answer, whatever it said.
    pub fn answered_poll(&mut self, settings: &HealthSettings, now: Instant) {
        self.silent_polls = 0;
        if self.ejected.as_ref().is_some_and(|ejection| ejection.cause == Cause::Polls) {
            self.ejected = None;
            self.warm_up(settings, now);
        }
    }

    /// A poll has brought none.
    pub fn missed_poll(&mut self, why: &str) {
        self.silent_polls = self.silent_polls.saturating_add(1);
        why.clone_into(&mut self.silence);
    }

    /// Whether a cold backend may take this arrival, of which `fair` would be its share.
    ///
    /// Its allowance grows with the arrivals themselves, so that no rate needs to be known.
    pub fn admits(&mut self, fair: f64, now: Instant) -> bool {
        if !self.is_cold(now) {
            return true;
        }
        self.tokens = (self.tokens + COLD_SHARE * fair).min(COLD_BURST);
        self.tokens >= 1.0
    }

    /// A cold backend has taken one.
    pub fn took_one(&mut self) {
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: HealthSettings = HealthSettings {
        eject_after: 3,
        eject_time: Duration::from_secs(30),
        eject_time_max: Duration::from_secs(100),
        cold_time: Duration::from_secs(5),
    };

    /// Looks at a backend at many moments.
    struct Watched {
        health: Health,
        trouble: Trouble,
        now: Instant,
        rng: fastrand::Rng,
    }

    impl Watched {
        fn new() -> Self {
            let (health, trouble) = (Health::default(), Trouble::default());
            Self { health, trouble, now: Instant::now(), rng: fastrand::Rng::with_seed(1) }
        }

        /// Whether it is ejected just now.
        fn ejects(&mut self) -> bool {
            self.health.look(&self.trouble, &SETTINGS, &mut self.rng, self.now).is_some()
        }

        fn is_out(&mut self) -> bool {
            self.ejects();
            self.health.ejection(self.now).is_some()
        }

        fn fail(&mut self, times: u32) {
            (0..times).for_each(|_| self.trouble.failed("refused".to_owned()));
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_does_not() {
        let mut pod = Watched::new();
        pod.fail(2);
        pod.trouble.opened();
        pod.fail(2);
        assert!(!pod.is_out());
        pod.fail(1);
        assert!(pod.ejects());
        assert!(!pod.ejects(), "said once");
        assert!(pod.health.ejection(pod.now).unwrap().reason.contains("refused"));
    }

    #[test]
    fn each_ejection_lasts_twice_as_long_until_it_has_been_well_as_long() {
        let mut pod = Watched::new();
        let mut lengths = Vec::new();
        for _ in 0..4 {
            pod.fail(3);
            assert!(pod.ejects());
            let until = pod.health.ejection(pod.now).unwrap().until;
            lengths.push((until - pod.now).as_secs_f64());
            pod.now = until;
            assert!(!pod.is_out(), "it gets a chance");
        }
        for (length, expected) in lengths.iter().zip([30.0, 60.0, 100.0, 100.0]) {
            assert!((length / expected - 1.0).abs() <= JITTER, "{lengths:?}");
        }
        pod.fail(1);
        assert!(pod.is_out(), "one is enough on probation");
        pod.pass(500);
        assert!(!pod.is_out());
        pod.fail(2);
        assert!(!pod.is_out(), "and not after it");
        pod.fail(1);
        assert!(pod.ejects());
        let length = pod.health.ejection(pod.now).unwrap().until - pod.now;
        assert!(length.as_secs_f64() <= 30.0 * (1.0 + JITTER), "back to the first length");
    }

    #[test]
    fn a_pod_that_drops_sessions_is_ejected_and_one_that_loses_a_few_is_not() {
        let mut dropping = Watched::new();
        for death in 1..=3 {
            assert!(!dropping.is_out(), "{death}");
            dropping.trouble.opened();
            dropping.trouble.died_early();
        }
        assert!(dropping.is_out());
        assert_eq!(dropping.health.ghosts(dropping.now), 3, "they count for a while");
        dropping.pass(100);
        assert_eq!(dropping.health.ghosts(dropping.now), 0);

        let mut strict = Watched::new();
        for _ in 0..20 {
            strict.trouble.opened();
            strict.trouble.ended_early();
            assert!(!strict.is_out(), "it may have its reasons");
        }
        assert_eq!(strict.health.ghosts(strict.now), 20, "but it does not look empty");

        let mut busy = Watched::new();
        for session in 0..100 {
            busy.trouble.opened();
            if session % 4 == 3 {
                busy.trouble.died_early();
            }
            assert!(!busy.is_out(), "{session}");
        }
        // However many it has taken before, a pod that starts dropping is found out soon.
        busy.pass(6);
        for _ in 0..4 {
            busy.trouble.opened();
            busy.trouble.died_early();
        }
        assert!(busy.is_out());
    }

    #[test]
    fn silent_polls_eject_until_the_first_answer() {
        let mut pod = Watched::new();
        for _ in 0..3 {
            assert!(!pod.is_out());
            pod.health.missed_poll("refused");
        }
        assert!(pod.is_out());
        pod.health.answered_poll(&SETTINGS, pod.now);
        assert!(!pod.is_out());
        assert!(pod.health.is_cold(pod.now));
    }

    #[test]
    fn a_cold_backend_takes_three_times_its_share_and_no_more() {
        let start = Instant::now();
        let mut health = Health::newcomer(&SETTINGS, start);
        // 5,000 arrivals in 5 s, of which a tenth would be fair, in bursts and pauses.
        let at = |arrival: u64| start + Duration::from_millis(arrival / 500 * 500);
        let taken = (0..5_000).filter(|arrival| {
            let admits = health.admits(0.1, at(*arrival));
            if admits {
                health.took_one();
            }
            admits
        });
        let taken = taken.count();
        assert!((1_495..=1_502).contains(&taken), "{taken}");
        // What it has not taken, it may not take later.
        for arrival in 0..100 {
            health.admits(0.1, at(arrival));
        }
        let mut in_a_row = 0;
        while health.admits(0.1, start) {
            health.took_one();
            in_a_row += 1;
        }
        assert!(in_a_row <= 2, "{in_a_row}");
        assert!(!health.is_cold(start + SETTINGS.cold_time));
    }

    #[test]
    fn who_starts_anew_is_judged_by_what_comes() {
        let mut pod = Watched::new();
        for _ in 0..3 {
            pod.trouble.opened();
            pod.trouble.died_early();
        }
        pod.fail(3);
        assert!(pod.is_out());
        pod.health.start_anew(&pod.trouble, &SETTINGS, pod.now);
        assert!(!pod.is_out());
        pod.fail(2);
        assert!(!pod.is_out(), "not on probation either");
        pod.fail(1);
        assert!(pod.is_out());
    }

    #[test]
    fn a_success_ends_an_ejection_for_failures_but_not_for_early_deaths() {
        let mut failing = Watched::new();
        failing.fail(3);
        assert!(failing.is_out());
        failing.trouble.opened();
        assert!(!failing.is_out());
        assert!(failing.health.is_cold(failing.now));

        let mut dropping = Watched::new();
        for _ in 0..3 {
            dropping.trouble.opened();
            dropping.trouble.died_early();
        }
        assert!(dropping.is_out());
        dropping.trouble.opened();
        assert!(dropping.is_out());
    }

    #[test]
    fn nothing_is_ejected_when_that_is_off() {
        let mut pod = Watched::new();
        pod.fail(100);
        let off = HealthSettings { eject_after: 0, ..SETTINGS };
        assert!(pod.health.look(&pod.trouble, &off, &mut pod.rng, pod.now).is_none());
    }
}
