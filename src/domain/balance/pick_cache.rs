//! What a pick looks at. It looks at every backend, so there is little of each, side by side; what
//! changes only with reports is worked out when they come.

use std::sync::Arc;

use super::{estimate::Holding, lease::Gauge};

/// There is no fraction in numbers as large as this one.
const ROUND: f64 = 1.5 * (1u64 << 52) as f64;

/// A backend at a glance.
#[derive(Debug)]
pub(super) struct Glance {
    pub gauge: Arc<Gauge>,
    /// What the gauge's troubles were at that time, where nothing spoke against the backend. `None`
    /// where that has to be judged at each pick.
    pub calm: Option<u32>,
    /// By its last report, if that is believed.
    pub holding: Holding,
    /// Connections that it may hold by its own word.
    pub limit: u64,
    /// One for its weight.
    pub unit: f64,
    /// Its weight, and this replica's arrivals on all backends when its report came. Both are zero
    /// where none is believed.
    pub weight: f64,
    pub arrivals: f64,
}

/// What selection needs to know besides, the same for all backends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Others {
    /// Connections that each backend may hold by our own word.
    pub limit: u64,
    /// Sessions of others that come for each of our own, for a backend of weight 1.
    pub unseen: f64,
    /// Our own arrivals so far.
    pub arrivals: f64,
}

impl Glance {
    /// What selection compares, unless the backend has to be looked at more closely: it was not well,
    /// something has happened to it, or it may be full.
    pub fn quick_load(&self, others: Others) -> Option<f64> {
        let estimate = self.holding.estimate(self.gauge.load());
        let load = self.load(estimate, others);
        let is_calm = self.calm == Some(self.gauge.trouble.changes());
        let has_room = estimate < self.limit.min(others.limit);
        (is_calm && has_room).then_some(load)
    }

    /// What selection compares, for this estimate.
    pub fn load(&self, estimate: u64, others: Others) -> f64 {
        let missing = others.unseen * self.weight * (others.arrivals - self.arrivals);
        // Whole ones, so that equals stay equal.
        (estimate.cast_signed() as f64 + (missing + ROUND - ROUND)) * self.unit
    }
}
