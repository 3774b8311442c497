//! Schedules the closing of many sessions, evenly over a period.
//!
//! ```text
//!   0                                            over
//!   ├────────┼────────┼────────┼────────┼────────┤    one slot per session
//!     x             x   x           x        x        a random moment in each slot
//! ```
//!
//! Slots keep the rate even for any number of sessions. The moment within a slot is random, so that
//! replicas that start at the same time do not close in step.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Sessions to close over a period, including sessions that are added later.
#[derive(Debug)]
pub struct Departures {
    until: Instant,
    /// Sorted by time.
    due: VecDeque<(Instant, u64)>,
}

impl Departures {
    /// Schedules the `sessions` that are open at `now` to be closed within `over`.
    pub fn new(sessions: &[u64], over: Duration, now: Instant, seed: u64) -> Self {
        let times = Spread::new(sessions.len(), over, seed).map(|time| now + time);
        Self { until: now + over, due: times.zip(sessions.iter().copied()).collect() }
    }

    /// Adds a session that opens at `now`. It is closed before the end of the period, or at once if the
    /// period is over.
    pub fn join(&mut self, session: u64, now: Instant, seed: u64) {
        let left = self.until.saturating_duration_since(now);
        let at = Spread::new(1, left, seed).next().map_or(now, |time| now + time);
        let place = self.due.partition_point(|(due, _)| *due <= at);
        self.due.insert(place, (at, session));
    }

    /// Removes and returns the next session that is due at `now`.
    pub fn take_due(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.next_due().is_some_and(|due| due <= now);
        is_due.then(|| self.due.pop_front())?.map(|(_, session)| session)
    }

    /// Returns when the next session is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.front().map(|(due, _)| *due)
    }
}

/// The times of the closes since the start of the period: sorted, and none after the end.
#[derive(Clone, Debug)]
pub struct Spread {
    count: u32,
    over: Duration,
    given: u32,
    rng: fastrand::Rng,
}

impl Spread {
    /// Spreads `count` closes over `over`. `seed` decides their moments within their slots. A period of
    /// zero means all at once.
    pub fn new(count: usize, over: Duration, seed: u64) -> Self {
        // A process cannot hold more sessions than a u32 can count.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self { count, over, given: 0, rng: fastrand::Rng::with_seed(seed) }
    }
}

impl Iterator for Spread {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.given == self.count {
            return None;
        }
        let slots = f64::from(self.given) + self.rng.f64();
        self.given += 1;
        Some(self.over.mul_f64(slots / f64::from(self.count)).min(self.over))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_are_sorted_and_none_is_after_the_end(
            count in 0usize..3_000, millis in 0u64..100_000_000, seed: u64,
        ) {
            let over = Duration::from_millis(millis);
            let times: Vec<Duration> = Spread::new(count, over, seed).collect();
            prop_assert_eq!(times.len(), count);
            prop_assert!(times.is_sorted());
            prop_assert!(times.iter().all(|time| *time <= over));
        }

        /// Any second of the time, wherever it begins.
        #[test]
        fn the_rate_is_even(
            count in 1_000usize..20_000, seconds in 5u64..30, begins in 0f64..1.0, seed: u64,
        ) {
            let over = Duration::from_secs(seconds);
            let times: Vec<Duration> = Spread::new(count, over, seed).collect();
            let from = (over - Duration::from_secs(1)).mul_f64(begins);
            let within = times.iter().filter(|time| {
                (from..from + Duration::from_secs(1)).contains(*time)
            });
            let even = count as f64 / seconds as f64;
            let rate = within.count() as f64;
            prop_assert!((rate - even).abs() <= 0.2 * even, "{rate} instead of {even}");
        }
    }

    #[test]
    fn a_period_of_zero_closes_all_at_once() {
        assert!(Spread::new(100, Duration::ZERO, 7).all(|time| time == Duration::ZERO));
    }

    #[test]
    fn sessions_that_are_added_are_closed_within_the_rest_of_the_period() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for seed in 0..100 {
            let mut departures =
                Departures::new(&[1, 2, 3, 4], Duration::from_secs(8), start, seed);
            departures.join(5, at(6), seed);
            departures.join(6, at(9), seed);
            let before: Vec<u64> = std::iter::from_fn(|| departures.take_due(at(4))).collect();
            assert_eq!(before, [1, 2]);
            let mut rest: Vec<u64> = std::iter::from_fn(|| departures.take_due(at(8))).collect();
            rest.sort_unstable();
            assert_eq!(rest, [3, 4, 5]);
            assert_eq!(departures.next_due(), Some(at(9)), "too late for the spread: at once");
            assert_eq!(departures.take_due(at(9)), Some(6));
            assert_eq!(departures.take_due(at(99)), None);
        }
    }

    #[test]
    fn replicas_do_not_close_in_step() {
        let times = |seed| Spread::new(20, Duration::from_secs(20), seed).collect::<Vec<_>>();
        assert!(times(1).iter().zip(times(2)).all(|(one, other)| *one != other));
    }
}
