//! A token bucket: tokens come in up to a capacity, and each event takes some.

use std::time::{Duration, Instant};

/// Smaller differences between token counts are rounding errors.
const TOLERANCE: f64 = 1e-6;

/// A token bucket. The caller knows its rate and capacity, which may change.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    tokens: f64,
    refilled_at: Option<Instant>,
}

impl TokenBucket {
    /// Creates a bucket that holds `tokens`.
    pub fn new(tokens: f64) -> Self {
        Self { tokens, refilled_at: None }
    }

    pub fn tokens(&self) -> f64 {
        self.tokens
    }

    /// Adds `tokens`, up to `capacity` in all.
    pub fn add(&mut self, tokens: f64, capacity: f64) {
        self.tokens = (self.tokens + tokens).min(capacity);
    }

    /// Adds the tokens since the last refill, at a rate of `tokens` in each `period`, up to
    /// `capacity` in all. The first refill only starts the clock.
    pub fn refill(&mut self, tokens: f64, period: Duration, capacity: f64, now: Instant) {
        let elapsed =
            self.refilled_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.add(tokens * elapsed.as_secs_f64() / period.as_secs_f64(), capacity);
        self.refilled_at = Some(now);
    }

    /// Returns whether the bucket holds `tokens`.
    pub fn has(&self, tokens: f64) -> bool {
        self.tokens + TOLERANCE >= tokens
    }

    /// Takes `tokens`, which the bucket should hold.
    pub fn take(&mut self, tokens: f64) {
        self.tokens -= tokens;
    }

    /// Returns the time until the bucket holds one token, at a rate of `tokens` per second.
    pub fn time_to_one(&self, tokens: f64) -> Duration {
        let seconds = (1.0 - self.tokens).max(0.0) / tokens;
        // Rounded up, so that the token is there after that time.
        Duration::from_nanos((seconds * 1e9 - 1e-3).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn tokens_come_at_the_rate_and_up_to_the_capacity() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(0.0);
        bucket.refill(10.0, SECOND, 5.0, start);
        assert!(!bucket.has(1.0), "the first refill starts the clock");
        bucket.refill(10.0, SECOND, 5.0, start + SECOND / 5);
        assert!(bucket.has(2.0) && !bucket.has(2.1));
        bucket.refill(10.0, SECOND, 5.0, start + 60 * SECOND);
        assert!(bucket.has(5.0) && !bucket.has(5.1));
        bucket.add(3.0, 7.0);
        bucket.take(6.0);
        assert!((bucket.tokens() - 1.0).abs() < TOLERANCE);
    }

    proptest! {
        #[test]
        fn after_the_time_to_one_there_is_one(rate in 1u32..1_000_000, held in 0.0f64..1.0) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(held);
            bucket.refill(f64::from(rate), SECOND, 1.0, start);
            let wait = bucket.time_to_one(f64::from(rate));
            bucket.refill(f64::from(rate), SECOND, 1.0, start + wait);
            prop_assert!(bucket.has(1.0), "{} after {:?}", bucket.tokens(), wait);
        }
    }
}
