//! How long sessions last.

use std::{f64::consts::TAU, time::Duration};

use fastrand::Rng;

/// Spread of the logarithm of lognormal lives: half of the sessions end within 0.61 of the mean, one
/// in a hundred lasts longer than six means.
const SIGMA: f64 = 1.0;

/// How lives are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lives {
    Exponential,
    Lognormal,
}

impl Lives {
    /// The life of a session that begins.
    pub fn whole(self, mean: Duration, rng: &mut Rng) -> Duration {
        match self {
            Self::Exponential => exponential(mean, rng),
            Self::Lognormal => mean.mul_f64((SIGMA * normal(rng) - SIGMA * SIGMA / 2.0).exp()),
        }
    }

    /// What is left of one that is found at any moment: longer lives are found more often, each
    /// somewhere in its midst.
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

/// A time without memory.
pub fn exponential(mean: Duration, rng: &mut Rng) -> Duration {
    mean.mul_f64(-(1.0 - rng.f64()).ln())
}

/// Box and Muller, 1958.
fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (TAU * rng.f64()).cos()
}
