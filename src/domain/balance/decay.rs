//! Counts that halve once per half-life.

use std::time::{Duration, Instant};

/// A count of events in which older events count less.
#[derive(Clone, Debug)]
pub struct DecayingCount {
    half_life: Duration,
    value: f64,
    at: Option<Instant>,
}

impl DecayingCount {
    pub fn new(half_life: Duration) -> Self {
        Self { half_life, value: 0.0, at: None }
    }

    /// Returns the decayed count at `now`.
    pub fn value(&self, now: Instant) -> f64 {
        let Some(at) = self.at else { return 0.0 };
        let half_lives =
            now.saturating_duration_since(at).as_secs_f64() / self.half_life.as_secs_f64();
        self.value * (-half_lives).exp2()
    }

    /// Adds `count` events at `now`.
    pub fn add(&mut self, count: f64, now: Instant) {
        self.value = self.value(now) + count;
        self.at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_halves_once_per_half_life() {
        let start = Instant::now();
        let mut count = DecayingCount::new(Duration::from_secs(2));
        assert!(count.value(start) == 0.0);
        count.add(8.0, start);
        assert!((count.value(start + Duration::from_secs(4)) - 2.0).abs() < 1e-9);
    }
}
