//! What a pick reads of every backend, copied from the pool's members.
//!
//! A pick reads all backends, so the fields that it needs lie side by side. Without the cache, a
//! pick computes the same values from the members, which lie far apart in memory: measured with
//! `cargo bench --bench picks`, that takes 1.8 times as long among 10 backends and 4 times as long
//! among 100.

use std::{sync::Arc, time::Instant};

use super::member::PoolMember;
use crate::domain::balance::{
    estimate::Estimator, lease::Gauge, settings::PoolSettings, strategy::Candidates,
};

/// Adding and subtracting this number rounds an `f64` to a whole number.
const ROUND: f64 = 1.5 * (1u64 << 52) as f64;

/// Derived from the members and the settings. [`PickCache::refresh`] makes it valid again after
/// [`PickCache::invalidate`].
#[derive(Debug, Default)]
pub(super) struct PickCache {
    /// One per member, in the same order.
    pub backends: Vec<CachedBackend>,
    /// When the first of the reports goes stale. `None` while the cache is invalid.
    valid_until: Option<Instant>,
    pub totals: Totals,
}

/// Totals of the members that belong to the service now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub backends: usize,
    pub weight: f64,
}

impl PickCache {
    /// Call this when members come, go or drain, or when settings change.
    pub fn invalidate(&mut self) {
        self.valid_until = None;
    }

    /// Computes everything anew, unless the cache is valid at `now`.
    pub fn refresh(&mut self, members: &[PoolMember], settings: &PoolSettings, now: Instant) {
        if self.valid_until.is_some_and(|until| now <= until) {
            return;
        }
        let cached = |member| CachedBackend::new(member, settings, now);
        self.backends.clear();
        self.backends.extend(members.iter().map(cached));
        self.totals = Totals::of(members);
        let stale_at = members.iter().filter_map(|member| member.stale_at(settings, now)).min();
        self.valid_until = stale_at.or(Some(now + settings.stale_after));
    }

    /// Updates the valid cache after a report of the member at `at`.
    pub fn update(
        &mut self,
        at: usize,
        members: &[PoolMember],
        settings: &PoolSettings,
        now: Instant,
    ) {
        let cached = CachedBackend::new(&members[at], settings, now);
        let old = std::mem::replace(&mut self.backends[at], cached);
        if old.inverse_weight != self.backends[at].inverse_weight {
            self.totals = Totals::of(members);
        }
        let stale_at = members[at].stale_at(settings, now);
        self.valid_until = self.valid_until.min(stale_at.or(self.valid_until));
    }

    /// Updates the member at `at` alone, which has the same weight and report as before.
    pub fn replace(
        &mut self,
        at: usize,
        member: &PoolMember,
        settings: &PoolSettings,
        now: Instant,
    ) {
        self.backends[at] = CachedBackend::new(member, settings, now);
    }

    /// Fills `candidates` with the loads of all backends. Returns whether some have to be examined
    /// more closely.
    pub fn collect_loads(&self, candidates: &mut Candidates, common: CommonTerms) -> bool {
        candidates.collect(self.backends.iter().map(move |backend| backend.quick_load(common)))
    }
}

impl Totals {
    fn of(members: &[PoolMember]) -> Self {
        let present = || members.iter().filter(|member| member.left_at.is_none());
        let weight = present().map(PoolMember::weight).sum::<f64>().max(f64::MIN_POSITIVE);
        Self { backends: present().count(), weight }
    }
}

/// What a pick reads of one backend.
#[derive(Debug)]
pub(super) struct CachedBackend {
    pub gauge: Arc<Gauge>,
    /// The gauge's count of failure changes, if the backend had no problem at that count. `None`
    /// if each pick has to examine the backend.
    pub healthy_at: Option<u32>,
    /// From the last report, unless that is stale.
    pub estimator: Estimator,
    /// The most connections by the backend's own limit.
    limit: u64,
    inverse_weight: f64,
    /// The weight, and this replica's arrivals on all backends when the report came. Both are zero
    /// without a fresh report.
    weight: f64,
    arrivals: f64,
}

/// What a pick needs to know besides, the same for all backends.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommonTerms {
    /// The most connections of each backend by the settings.
    pub limit: u64,
    /// Unseen sessions per own arrival, for a backend of weight 1.
    pub unseen: f64,
    /// This replica's arrivals so far.
    pub arrivals: f64,
}

impl CachedBackend {
    fn new(member: &PoolMember, settings: &PoolSettings, now: Instant) -> Self {
        let fresh = member.fresh(settings, now);
        Self {
            gauge: member.gauge.clone(),
            healthy_at: member.healthy_at(),
            estimator: member.estimator(settings, now),
            limit: member.own_limit().unwrap_or(u64::MAX),
            inverse_weight: member.weight().recip(),
            weight: fresh.map_or(0.0, |_| member.weight()),
            arrivals: fresh.map_or(0.0, |accepted| accepted.arrivals as f64),
        }
    }

    /// Returns the load that selection compares, or `None` if the backend has to be examined more
    /// closely: it had a problem, something has happened on it, or it may be full.
    fn quick_load(&self, common: CommonTerms) -> Option<f64> {
        let estimate = self.estimator.estimate(self.gauge.load());
        let load = self.load(estimate, common);
        let is_healthy = self.healthy_at == Some(self.gauge.failures.changes());
        let has_room = estimate < self.limit.min(common.limit);
        (is_healthy && has_room).then_some(load)
    }

    /// Returns the load that selection compares, given this estimate.
    pub fn load(&self, estimate: u64, common: CommonTerms) -> f64 {
        let unseen = common.unseen * self.weight * (common.arrivals - self.arrivals);
        // Whole sessions, so that equal backends stay equal.
        (estimate.cast_signed() as f64 + (unseen + ROUND - ROUND)) * self.inverse_weight
    }
}
