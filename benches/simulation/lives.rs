//! Durations of sessions.

use std::{f64::consts::TAU, time::Duration};

use fastrand::Rng;

/// Spread of the logarithm of lognormal durations: half of the sessions end within 0.61 of the mean, one
/// in a hundred lasts longer than six means.
const SIGMA: f64 = 1.0;

/// A distribution of durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lives {
    Exponential,
    Lognormal,
}

impl Lives {
    /// Returns the duration of a new session.
    pub fn whole(self, mean: Duration, rng: &mut Rng) -> Duration {
        match self {
            Self::Exponential => exponential(mean, rng),
            Self::Lognormal => mean.mul_f64((SIGMA * normal(rng) - SIGMA * SIGMA / 2.0).exp()),
        }
    }

    /// Returns the remaining duration of a session observed at a random moment: longer sessions are
    /// observed more often, at any point of their duration.
    pub fn rest(self, mean: Duration, rng: &mut Rng) -> Duration {
        match self {
            Self::Exponential => exponential(mean, rng),
            Self::Lognormal => {
                let found = (SIGMA * normal(rng) + SIGMA * SIGMA / 2.0).exp();
                mean.mul_f64(found * rng.f64())
            }
        }
    }
}

/// Returns an exponentially distributed (memoryless) time.
pub fn exponential(mean: Duration, rng: &mut Rng) -> Duration {
    mean.mul_f64(-(1.0 - rng.f64()).ln())
}

/// Returns a normally distributed number (Box and Muller, 1958).
fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (TAU * rng.f64()).cos()
}
