//! What DNS says of a set of addresses, and what to make of it.
//!
//! Pods hang on these answers, so doubt keeps what is known: a look-up that fails changes nothing,
//! and that there are no addresses any more must be said twice in a row, because name servers that
//! restart deny names for a moment.

use std::{
    mem::discriminant,
    net::SocketAddr,
    time::{Duration, Instant},
};

use thiserror::Error;

/// Look-ups in a row that must find nothing before nothing is believed.
const ABSENCES: u32 = 2;

/// How soon and how late an answer is asked for again, whatever its records say; `min` is not
/// greater than `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlBounds {
    /// At the soonest.
    pub min: Duration,
    /// At the latest.
    pub max: Duration,
}

impl TtlBounds {
    /// `ttl` within the bounds.
    pub fn clamp(&self, ttl: Duration) -> Duration {
        ttl.max(self.min).min(self.max)
    }

    /// The wait after so many failures in a row: doubled each time.
    pub fn back_off(&self, failures: u32) -> Duration {
        let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
        self.min.saturating_mul(factor).min(self.max)
    }
}

/// What DNS knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There are addresses.
    Found {
        /// Sorted, each once, and not none.
        addresses: Vec<SocketAddr>,
        /// When to ask again.
        ttl: Duration,
        /// What could not be looked up.
        missing: Missing,
    },
    /// There are none.
    None {
        /// How that was said.
        absence: Absence,
        /// When to ask again.
        ttl: Duration,
    },
}

/// Why addresses of a kind could not be looked up while others could.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// A records.
    pub v4: Option<LookupError>,
    /// AAAA records.
    pub v6: Option<LookupError>,
}

impl Missing {
    fn error(&self) -> Option<&LookupError> {
        self.v4.as_ref().or(self.v6.as_ref())
    }

    fn has(&self, address: &SocketAddr) -> bool {
        if address.is_ipv4() { self.v4.is_some() } else { self.v6.is_some() }
    }
}

/// How DNS says that there are no addresses (RFC 2308).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Absence {
    /// NXDOMAIN.
    #[error("the name does not exist (NXDOMAIN)")]
    NoSuchName,
    /// NODATA.
    #[error("the name has no such records (NODATA)")]
    NoRecords,
}

/// Why nobody knows whether there are addresses. The texts name question and server.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LookupError {
    /// A name server answers that it cannot or will not, such as SERVFAIL or REFUSED, or nonsense.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("{0}")]
    TimedOut(String),
    /// A name server could not be asked.
    #[error("{0}")]
    Unreachable(String),
    /// There is no name server to ask.
    #[error("no name server is known: {0}")]
    NoServers(String),
}

/// What people should hear of a look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It failed, at least in part, in a way that was not heard of yet. What was known is kept.
    Keeps(LookupError),
    /// It found nothing for the first time. What was known is kept.
    Doubts(Absence),
    /// There is nothing.
    Empty(Absence),
    /// All is well again.
    Recovered,
}

impl Notice {
    /// Whether who has heard one has heard the other.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Keeps(one), Self::Keeps(other)) => discriminant(one) == discriminant(other),
            _ => discriminant(self) == discriminant(other),
        }
    }
}

/// What follows from a look-up.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Whether the addresses are others than before, or there are none as far as is known now:
    /// whoever counts on them may still have those of another name.
    pub changed: bool,
    /// What people should hear.
    pub notice: Option<Notice>,
    /// When to look again.
    pub again_in: Duration,
}

/// The addresses that are believed in.
#[derive(Debug)]
pub struct KnownAddresses {
    bounds: TtlBounds,
    addresses: Vec<SocketAddr>,
    absences: u32,
    failures: u32,
    /// What is wrong, and since when.
    trouble: Option<(Notice, Instant)>,
}

impl KnownAddresses {
    /// None yet.
    pub fn new(bounds: TtlBounds) -> Self {
        Self { bounds, addresses: Vec::new(), absences: 0, failures: 0, trouble: None }
    }

    /// Sorted, each once.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What is wrong, and for how long.
    pub fn trouble(&self, now: Instant) -> Option<(String, Duration)> {
        let (notice, since) = self.trouble.as_ref()?;
        let text = match notice {
            Notice::Keeps(error) => error.to_string(),
            Notice::Doubts(absence) | Notice::Empty(absence) => absence.to_string(),
            Notice::Recovered => return None,
        };
        Some((text, now.saturating_duration_since(*since)))
    }

    /// Takes in what a look-up brought.
    pub fn take(&mut self, looked_up: Result<Answer, LookupError>, now: Instant) -> Step {
        let (changed, trouble, again_in) = match looked_up {
            Ok(Answer::Found { mut addresses, ttl, missing }) => {
                (self.absences, self.failures) = (0, 0);
                addresses.extend(self.addresses.iter().filter(|known| missing.has(known)));
                addresses.sort_unstable();
                addresses.dedup();
                let changed = addresses != self.addresses;
                self.addresses = addresses;
                (changed, missing.error().cloned().map(Notice::Keeps), ttl)
            }
            Ok(Answer::None { absence, ttl }) => {
                self.absences += 1;
                self.failures = 0;
                let changed = self.absences == ABSENCES;
                if changed {
                    self.addresses.clear();
                }
                let is_doubted = !self.addresses.is_empty();
                let notice = if is_doubted { Notice::Doubts } else { Notice::Empty };
                (changed, Some(notice(absence)), ttl)
            }
            Err(error) => {
                self.absences = 0;
                self.failures += 1;
                (false, Some(Notice::Keeps(error)), self.bounds.back_off(self.failures))
            }
        };
        Step { changed, notice: self.note(trouble, now), again_in }
    }

    /// What is new in `trouble`.
    fn note(&mut self, trouble: Option<Notice>, now: Instant) -> Option<Notice> {
        let before = self.trouble.take();
        let Some(notice) = trouble else { return before.map(|_| Notice::Recovered) };
        let since = before.filter(|(before, _)| before.is_like(&notice)).map(|(_, since)| since);
        self.trouble = Some((notice.clone(), since.unwrap_or(now)));
        since.is_none().then_some(notice)
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

    /// Whether the set changed, what was said, and the seconds until the next look-up.
    fn told(step: Step) -> (bool, Option<Notice>, u64) {
        (step.changed, step.notice, step.again_in.as_secs())
    }

    #[test]
    fn a_ttl_stays_within_its_bounds() {
        let seconds = |ttl| BOUNDS.clamp(Duration::from_secs(ttl)).as_secs();
        assert_eq!([0, 1, 5, 30, 31, 86_400].map(seconds), [1, 1, 5, 30, 30, 30]);
    }

    #[test]
    fn a_set_that_stays_is_no_change() {
        let mut known = KnownAddresses::new(BOUNDS);
        let now = Instant::now();
        assert_eq!(told(known.take(found(&[1, 2]), now)), (true, None, 5));
        assert_eq!(told(known.take(found(&[1, 2]), now)), (false, None, 5));
        assert_eq!(told(known.take(found(&[1, 3]), now)), (true, None, 5));
        assert_eq!(known.addresses(), addresses(&[1, 3]));
    }

    #[test]
    fn failures_keep_what_is_known_and_wait_longer_each_time() {
        let mut known = KnownAddresses::new(BOUNDS);
        let start = Instant::now();
        known.take(found(&[1, 2]), start);
        let keeps = |text| Some(Notice::Keeps(refused(text)));
        assert_eq!(told(known.take(Err(refused("a")), start)), (false, keeps("a"), 1));
        let waits: Vec<u64> =
            (0..6).map(|_| known.take(Err(refused("b")), start).again_in.as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
        assert_eq!(known.take(Err(refused("c")), start).notice, None, "said once");
        let other = LookupError::TimedOut("silence".into());
        assert_eq!(
            known.take(Err(other.clone()), start + SECOND).notice,
            Some(Notice::Keeps(other)),
            "another kind of failure is said too"
        );
        assert_eq!(known.addresses(), addresses(&[1, 2]));
        assert_eq!(known.trouble(start + 3 * SECOND), Some(("silence".into(), 2 * SECOND)));

        assert_eq!(told(known.take(found(&[1, 2]), start)), (false, Some(Notice::Recovered), 5));
        assert_eq!(known.trouble(start), None);
        assert_eq!(known.take(Err(refused("d")), start).again_in, SECOND, "counted anew");
    }

    #[test]
    fn nothing_is_believed_when_it_is_said_twice_in_a_row() {
        let mut known = KnownAddresses::new(BOUNDS);
        let now = Instant::now();
        let doubts = Some(Notice::Doubts(Absence::NoSuchName));
        let empty = Some(Notice::Empty(Absence::NoSuchName));
        known.take(found(&[1]), now);
        assert_eq!(told(known.take(none(), now)), (false, doubts.clone(), 2));
        assert_eq!(told(known.take(found(&[1]), now)), (false, Some(Notice::Recovered), 5));
        assert_eq!(told(known.take(none(), now)), (false, doubts.clone(), 2));
        known.take(Err(refused("x")), now);
        assert_eq!(told(known.take(none(), now)), (false, doubts, 2), "not in a row");
        assert_eq!(told(known.take(none(), now)), (true, empty.clone(), 2));
        assert_eq!(told(known.take(none(), now)), (false, None, 2));
        assert!(known.addresses().is_empty());

        let mut new = KnownAddresses::new(BOUNDS);
        assert_eq!(told(new.take(none(), now)), (false, empty, 2), "there is nothing to keep");
        let step = told(new.take(none(), now));
        assert_eq!(step, (true, None, 2), "unless somebody keeps what another name had");
        assert_eq!(told(new.take(none(), now)), (false, None, 2));
        assert_eq!(told(new.take(found(&[1]), now)), (true, Some(Notice::Recovered), 5));
    }

    #[test]
    fn addresses_of_a_kind_that_could_not_be_looked_up_stay() {
        let mut known = KnownAddresses::new(BOUNDS);
        let now = Instant::now();
        let v6: SocketAddr = "[fd00::1]:80".parse().unwrap();
        let both = [&addresses(&[1, 2])[..], &[v6]].concat();
        let all = Missing::default();
        known.take(Ok(Answer::Found { addresses: both, ttl: SECOND, missing: all }), now);
        let missing = Missing { v4: None, v6: Some(refused("AAAA")) };
        let partly = Answer::Found { addresses: addresses(&[2, 3]), ttl: SECOND, missing };
        let step = known.take(Ok(partly.clone()), now);
        assert_eq!(told(step), (true, Some(Notice::Keeps(refused("AAAA"))), 1));
        assert_eq!(known.addresses(), [&addresses(&[2, 3])[..], &[v6]].concat());
        assert_eq!(told(known.take(Ok(partly), now)), (false, None, 1));
    }

    proptest! {
        /// 0 to 5: that many addresses; 6: none; 7: a failure.
        #[test]
        fn the_set_is_the_last_one_found_unless_denied_twice(said in prop::collection::vec(0u8..8, 1..60)) {
            let mut known = KnownAddresses::new(BOUNDS);
            let (mut expected, mut denials) = (Vec::new(), 0);
            let mut sent = Vec::new();
            for said in said {
                let looked_up = match said {
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
                let step = known.take(looked_up, Instant::now());
                prop_assert_eq!(known.addresses(), &expected[..]);
                prop_assert_eq!(step.changed, expected != sent || denials == 2);
                prop_assert!(BOUNDS.min <= step.again_in && step.again_in <= BOUNDS.max);
                sent.clone_from(&expected);
            }
        }
    }
}
