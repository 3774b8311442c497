//! Evaluates DNS answers: which addresses a name has, and when to look it up again.
//!
//! A wrong empty answer would remove all pods. So a failed look-up changes nothing, and an empty set is
//! accepted only after two empty answers in a row, because a name server that restarts may deny names
//! for a moment.

use std::{
    mem::discriminant,
    net::SocketAddr,
    time::{Duration, Instant},
};

use thiserror::Error;

/// The number of empty answers in a row after which the set is empty.
const EMPTY_ANSWERS: u32 = 2;

/// The shortest and the longest time between two look-ups, whatever TTL the records have. `min` is not
/// greater than `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlBounds {
    pub min: Duration,
    pub max: Duration,
}

impl TtlBounds {
    /// Returns `ttl` limited to the bounds.
    pub fn clamp(&self, ttl: Duration) -> Duration {
        ttl.max(self.min).min(self.max)
    }

    /// Returns the wait after this many failures in a row. It doubles with each failure.
    pub fn back_off(&self, failures: u32) -> Duration {
        let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
        self.min.saturating_mul(factor).min(self.max)
    }
}

/// The result of a look-up that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Found {
        /// Sorted, without duplicates, not empty.
        addresses: Vec<SocketAddr>,
        ttl: Duration,
        missing: Missing,
    },
    /// The name has no addresses.
    None { absence: Absence, ttl: Duration },
}

/// Why the addresses of one family could not be looked up while those of the other could.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// The error for A records.
    pub v4: Option<LookupError>,
    /// The error for AAAA records.
    pub v6: Option<LookupError>,
}

impl Missing {
    fn error(&self) -> Option<&LookupError> {
        self.v4.as_ref().or(self.v6.as_ref())
    }

    fn is_family_missing(&self, address: &SocketAddr) -> bool {
        if address.is_ipv4() { self.v4.is_some() } else { self.v6.is_some() }
    }
}

/// The two kinds of empty answers (RFC 2308).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Absence {
    #[error("name does not exist (NXDOMAIN)")]
    NoSuchName,
    #[error("name has no such records (NODATA)")]
    NoRecords,
}

/// Why a look-up failed. The texts name the question and the name server.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LookupError {
    /// The name server sent an error, such as SERVFAIL or REFUSED, or an invalid answer.
    #[error("{0}")]
    Refused(String),
    /// The name server did not answer in time.
    #[error("{0}")]
    TimedOut(String),
    /// The name server could not be reached.
    #[error("{0}")]
    Unreachable(String),
    #[error("no name server configured: {0}")]
    NoServers(String),
}

/// A change that operators should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupEvent {
    /// The look-up failed, at least in part, with a new kind of error. Known addresses are kept.
    Failed(LookupError),
    /// The first empty answer came. Known addresses are kept until the next answer.
    FirstEmpty(Absence),
    /// There are no addresses.
    Empty(Absence),
    /// The look-up succeeded after a problem.
    Recovered,
}

impl LookupEvent {
    /// Returns whether two events are of the same kind, so that only the first is reported.
    fn is_same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Failed(one), Self::Failed(other)) => discriminant(one) == discriminant(other),
            _ => discriminant(self) == discriminant(other),
        }
    }
}

/// What to do after a look-up.
#[derive(Debug, PartialEq, Eq)]
pub struct NextStep {
    /// Whether the addresses have changed, or the set has just become empty. The latter is reported
    /// even if the set was empty before: the pool may still have the addresses of another name.
    pub changed: bool,
    pub event: Option<LookupEvent>,
    /// The time until the next look-up.
    pub wait: Duration,
}

/// The addresses of a name, as far as they are known.
#[derive(Debug)]
pub struct KnownAddresses {
    bounds: TtlBounds,
    addresses: Vec<SocketAddr>,
    /// Empty answers in a row.
    empty_answers: u32,
    /// Failures in a row.
    failures: u32,
    problem: Option<Problem>,
}

/// A problem that the last look-up had.
#[derive(Debug)]
struct Problem {
    event: LookupEvent,
    since: Instant,
}

impl KnownAddresses {
    pub fn new(bounds: TtlBounds) -> Self {
        Self { bounds, addresses: Vec::new(), empty_answers: 0, failures: 0, problem: None }
    }

    /// Returns the addresses, sorted and without duplicates.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the problem of the last look-up and how long it has lasted.
    pub fn problem(&self, now: Instant) -> Option<(String, Duration)> {
        let Problem { event, since } = self.problem.as_ref()?;
        let text = match event {
            LookupEvent::Failed(error) => error.to_string(),
            LookupEvent::FirstEmpty(absence) | LookupEvent::Empty(absence) => absence.to_string(),
            LookupEvent::Recovered => return None,
        };
        Some((text, now.saturating_duration_since(*since)))
    }

    /// Updates the addresses with the result of a look-up.
    pub fn update(&mut self, result: Result<Answer, LookupError>, now: Instant) -> NextStep {
        let (changed, problem, wait) = match result {
            Ok(Answer::Found { mut addresses, ttl, missing }) => {
                (self.empty_answers, self.failures) = (0, 0);
                addresses
                    .extend(self.addresses.iter().filter(|known| missing.is_family_missing(known)));
                addresses.sort_unstable();
                addresses.dedup();
                let changed = addresses != self.addresses;
                self.addresses = addresses;
                (changed, missing.error().cloned().map(LookupEvent::Failed), ttl)
            }
            Ok(Answer::None { absence, ttl }) => {
                self.empty_answers += 1;
                self.failures = 0;
                let changed = self.empty_answers == EMPTY_ANSWERS;
                if changed {
                    self.addresses.clear();
                }
                let event = match self.addresses.is_empty() {
                    true => LookupEvent::Empty(absence),
                    false => LookupEvent::FirstEmpty(absence),
                };
                (changed, Some(event), ttl)
            }
            Err(error) => {
                self.empty_answers = 0;
                self.failures += 1;
                (false, Some(LookupEvent::Failed(error)), self.bounds.back_off(self.failures))
            }
        };
        NextStep { changed, event: self.set_problem(problem, now), wait }
    }

    /// Stores the problem of the last look-up. Returns an event if it is of a new kind or over.
    fn set_problem(&mut self, problem: Option<LookupEvent>, now: Instant) -> Option<LookupEvent> {
        let before = self.problem.take();
        let Some(event) = problem else { return before.map(|_| LookupEvent::Recovered) };
        let same = before.filter(|before| before.event.is_same_kind(&event));
        let since = same.as_ref().map_or(now, |same| same.since);
        self.problem = Some(Problem { event: event.clone(), since });
        same.is_none().then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BOUNDS: TtlBounds = TtlBounds { min: SECOND, max: Duration::from_secs(30) };

    fn addresses(hosts: &[u8]) -> Vec<SocketAddr> {
        hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 80))).collect()
    }

    fn found(hosts: &[u8]) -> Result<Answer, LookupError> {
        let missing = Missing::default();
        Ok(Answer::Found { addresses: addresses(hosts), ttl: 5 * SECOND, missing })
    }

    fn none() -> Result<Answer, LookupError> {
        Ok(Answer::None { absence: Absence::NoSuchName, ttl: 2 * SECOND })
    }

    fn refused(text: &str) -> LookupError {
        LookupError::Refused(text.to_owned())
    }

    /// Returns the parts of a step, with the wait in seconds.
    fn parts(step: NextStep) -> (bool, Option<LookupEvent>, u64) {
        (step.changed, step.event, step.wait.as_secs())
    }

    #[test]
    fn a_ttl_stays_within_its_bounds() {
        let seconds = |ttl| BOUNDS.clamp(Duration::from_secs(ttl)).as_secs();
        assert_eq!([0, 1, 5, 30, 31, 86_400].map(seconds), [1, 1, 5, 30, 30, 30]);
    }

    #[test]
    fn the_same_set_again_is_no_change() {
        let mut known = KnownAddresses::new(BOUNDS);
        let now = Instant::now();
        assert_eq!(parts(known.update(found(&[1, 2]), now)), (true, None, 5));
        assert_eq!(parts(known.update(found(&[1, 2]), now)), (false, None, 5));
        assert_eq!(parts(known.update(found(&[1, 3]), now)), (true, None, 5));
        assert_eq!(known.addresses(), addresses(&[1, 3]));
    }

    #[test]
    fn failures_keep_the_addresses_and_double_the_wait() {
        let mut known = KnownAddresses::new(BOUNDS);
        let start = Instant::now();
        known.update(found(&[1, 2]), start);
        let failed = |text| Some(LookupEvent::Failed(refused(text)));
        assert_eq!(parts(known.update(Err(refused("a")), start)), (false, failed("a"), 1));
        let waits: Vec<u64> =
            (0..6).map(|_| known.update(Err(refused("b")), start).wait.as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
        assert_eq!(known.update(Err(refused("c")), start).event, None, "reported once");
        let other = LookupError::TimedOut("silence".into());
        assert_eq!(
            known.update(Err(other.clone()), start + SECOND).event,
            Some(LookupEvent::Failed(other)),
            "another kind of failure is reported too"
        );
        assert_eq!(known.addresses(), addresses(&[1, 2]));
        assert_eq!(known.problem(start + 3 * SECOND), Some(("silence".into(), 2 * SECOND)));

        assert_eq!(
            parts(known.update(found(&[1, 2]), start)),
            (false, Some(LookupEvent::Recovered), 5)
        );
        assert_eq!(known.problem(start), None);
        assert_eq!(
            known.update(Err(refused("d")), start).wait,
            SECOND,
            "failures are counted from the start"
        );
    }

    #[test]
    fn an_empty_set_is_accepted_after_two_empty_answers_in_a_row() {
        let mut known = KnownAddresses::new(BOUNDS);
        let now = Instant::now();
        let first_empty = Some(LookupEvent::FirstEmpty(Absence::NoSuchName));
        let empty = Some(LookupEvent::Empty(Absence::NoSuchName));
        known.update(found(&[1]), now);
        assert_eq!(parts(known.update(none(), now)), (false, first_empty.clone(), 2));
        assert_eq!(parts(known.update(found(&[1]), now)), (false, Some(LookupEvent::Recovered), 5));
        assert_eq!(parts(known.update(none(), now)), (false, first_empty.clone(), 2));
        known.update(Err(refused("x")), now);
        assert_eq!(parts(known.update(none(), now)), (false, first_empty, 2), "not in a row");
        assert_eq!(parts(known.update(none(), now)), (true, empty.clone(), 2));
        assert_eq!(parts(known.update(none(), now)), (false, None, 2));
        assert!(known.addresses().is_empty());

        let mut new = KnownAddresses::new(BOUNDS);
        assert_eq!(
            parts(new.update(none(), now)),
            (false, empty, 2),
            "there are no addresses to keep"
        );
        let step = parts(new.update(none(), now));
        assert_eq!(step, (true, None, 2), "the user may still have the addresses of another name");
        assert_eq!(parts(new.update(none(), now)), (false, None, 2));
        assert_eq!(parts(new.update(found(&[1]), now)), (true, Some(LookupEvent::Recovered), 5));
    }

    #[test]
    fn addresses_of_a_family_that_could_not_be_looked_up_are_kept() {
        let mut known = KnownAddresses::new(BOUNDS);
        let now = Instant::now();
        let v6: SocketAddr = "[fd00::1]:80".parse().unwrap();
        let both = [&addresses(&[1, 2])[..], &[v6]].concat();
        let all = Missing::default();
        known.update(Ok(Answer::Found { addresses: both, ttl: SECOND, missing: all }), now);
        let missing = Missing { v4: None, v6: Some(refused("AAAA")) };
        let partly = Answer::Found { addresses: addresses(&[2, 3]), ttl: SECOND, missing };
        let step = known.update(Ok(partly.clone()), now);
        assert_eq!(parts(step), (true, Some(LookupEvent::Failed(refused("AAAA"))), 1));
        assert_eq!(known.addresses(), [&addresses(&[2, 3])[..], &[v6]].concat());
        assert_eq!(parts(known.update(Ok(partly), now)), (false, None, 1));
    }

    proptest! {
        /// 0 to 5: that many addresses; 6: none; 7: a failure.
        #[test]
        fn the_set_is_the_last_one_found_until_two_empty_answers(answers in prop::collection::vec(0u8..8, 1..60)) {
            let mut known = KnownAddresses::new(BOUNDS);
            let (mut expected, mut denials) = (Vec::new(), 0);
            let mut sent = Vec::new();
            for answer in answers {
                let looked_up = match answer {
                    0 | 6 => none(),
                    7 => Err(refused("x")),
                    hosts => found(&(1..=hosts).collect::<Vec<_>>()),
                };
                denials = if matches!(looked_up, Ok(Answer::None { .. })) { denials + 1 } else { 0 };
                match &looked_up {
                    Ok(Answer::Found { addresses, .. }) => expected.clone_from(addresses),
                    _ if denials == 2 => expected.clear(),
                    _ => {}
                }
                let step = known.update(looked_up, Instant::now());
                prop_assert_eq!(known.addresses(), &expected[..]);
                prop_assert_eq!(step.changed, expected != sent || denials == 2);
                prop_assert!(BOUNDS.min <= step.wait && step.wait <= BOUNDS.max);
                sent.clone_from(&expected);
            }
        }
    }
}
