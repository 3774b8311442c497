//! Moves sessions after a scale-out: from which backend, and how many at once.
//!
//! Open sessions stay where they are, so a new pod fills only with arrivals. If there are few
//! arrivals, sessions of the fullest pod can be moved. Each move is a reconnect for its client, so
//! sessions move slowly, within a budget, and only while the set of pods does not change.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    backend::Backend,
    snapshot::{BackendSnapshot, BackendState},
};
use crate::token_bucket::TokenBucket;

/// Sessions move only after the pods have been the same, and their loads too far apart, for this
/// long.
const QUIET: Duration = Duration::from_secs(10);

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// When and how fast sessions move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RebalanceSettings {
    /// How far the fullest pod may be above the mean, as a fraction of the mean.
    pub band: f64,
    /// The most moves per second, of all replicas together.
    pub per_second: NonZeroU32,
    /// The most moves per hour, of all replicas together.
    pub per_hour: NonZeroU32,
}

/// Sessions to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovePlan {
    pub from: Arc<Backend>,
    /// The most sessions to move.
    pub count: usize,
}

/// Plans the moves of one service. Its owner asks about once a second.
#[derive(Debug)]
pub struct Rebalancer {
    settings: RebalanceSettings,
    /// The pods that took part at the last call.
    participants: Vec<Arc<Backend>>,
    /// Since when the participants are the same.
    unchanged_since: Option<Instant>,
    /// Since when the fullest pod is above the band.
    uneven_since: Option<Instant>,
    second: MoveBudget,
    hour: MoveBudget,
}

/// How many moves are left in a period.
#[derive(Debug)]
struct MoveBudget {
    period: Duration,
    bucket: Option<TokenBucket>,
}

impl MoveBudget {
    fn new(period: Duration) -> Self {
        Self { period, bucket: None }
    }

    /// Returns the moves that are left at `now`, with `limit` moves per period.
    fn refill(&mut self, limit: f64, now: Instant) -> f64 {
        let bucket = self.bucket.get_or_insert_with(|| TokenBucket::new(limit));
        bucket.refill(limit, self.period, limit.max(1.0), now);
        bucket.tokens()
    }

    fn take(&mut self, count: f64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.take(count);
        }
    }
}

impl Rebalancer {
    pub fn new(settings: RebalanceSettings) -> Self {
        Self {
            settings,
            participants: Vec::new(),
            unchanged_since: None,
            uneven_since: None,
            second: MoveBudget::new(SECOND),
            hour: MoveBudget::new(HOUR),
        }
    }

    /// Returns the sessions to move at `now`, if any. Each of `replicas` does the same, so each has
    /// an equal part of the budget.
    pub fn plan(
        &mut self,
        pods: &[BackendSnapshot],
        replicas: u32,
        now: Instant,
    ) -> Option<MovePlan> {
        let takes_part =
            |pod: &&BackendSnapshot| matches!(pod.state, BackendState::Up | BackendState::Full);
        let participants: Vec<&BackendSnapshot> = pods.iter().filter(takes_part).collect();
        let replicas = f64::from(replicas.max(1));
        let RebalanceSettings { band, per_second, per_hour } = self.settings;
        let per_second = self.second.refill(f64::from(per_second.get()) / replicas, now);
        let per_hour = self.hour.refill(f64::from(per_hour.get()) / replicas, now);

        // While a pod comes, goes or has a problem, its clients reconnect anyway.
        let is_same = participants.len() == self.participants.len()
            && participants
                .iter()
                .zip(&self.participants)
                .all(|(pod, known)| pod.backend == *known);
        if !is_same || participants.len() < pods.len() {
            self.participants = participants.iter().map(|pod| pod.backend.clone()).collect();
            self.unchanged_since = Some(now);
            self.uneven_since = None;
            return None;
        }
        let weights: f64 = participants.iter().map(|pod| pod.weight).sum();
        let total: u64 = participants.iter().map(|pod| pod.estimate).sum();
        let mean = total as f64 / weights;
        let load = |pod: &BackendSnapshot| pod.estimate as f64 / pod.weight;
        let fullest = participants.iter().max_by(|a, b| load(a).total_cmp(&load(b)))?;
        // With few sessions, a single one above the mean may already be above the band.
        let surplus = (load(fullest) - mean) * fullest.weight;
        if load(fullest) <= mean * (1.0 + band) || surplus <= 1.0 {
            self.uneven_since = None;
            return None;
        }
        let uneven_since = *self.uneven_since.get_or_insert(now);
        let is_long_ago = |since: Instant| now.saturating_duration_since(since) >= QUIET;
        if !is_long_ago(uneven_since) || !self.unchanged_since.is_some_and(is_long_ago) {
            return None;
        }
        let count = per_second.min(per_hour).min(surplus / replicas).floor();
        if count < 1.0 {
            return None;
        }
        self.second.take(count);
        self.hour.take(count);
        Some(MovePlan { from: fullest.backend.clone(), count: count as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::balance::{backend::Transport, lease::Load};

    fn pod(name: &str, estimate: u64, weight: f64) -> BackendSnapshot {
        let backend = Backend {
            service: "default".into(),
            url: format!("http://{name}"),
            address: format!("{name}:80"),
            transport: Transport::Tcp,
        };
        BackendSnapshot {
            backend: Arc::new(backend),
            state: BackendState::Up,
            reason: None,
            report: None,
            error: None,
            load: Load::default(),
            estimate,
            weight,
            limit: None,
            ejected_for: None,
        }
    }

    fn rebalancer(per_second: u32, per_hour: u32) -> Rebalancer {
        Rebalancer::new(RebalanceSettings {
            band: 0.2,
            per_second: NonZeroU32::new(per_second).unwrap(),
            per_hour: NonZeroU32::new(per_hour).unwrap(),
        })
    }

    /// Returns the moves in each of the first `seconds`. Moved sessions go to the last pod.
    fn moved(
        rebalancer: &mut Rebalancer,
        pods: &mut [BackendSnapshot],
        replicas: u32,
        seconds: u64,
    ) -> Vec<usize> {
        let start = Instant::now();
        let second = |second: u64| {
            let plan = rebalancer.plan(pods, replicas, start + Duration::from_secs(second));
            let Some(MovePlan { from, count }) = plan else { return 0 };
            let at = pods.iter().position(|pod| pod.backend == from).unwrap();
            pods[at].estimate -= count as u64;
            pods.last_mut().unwrap().estimate += count as u64;
            count
        };
        (0..seconds).map(second).collect()
    }

    #[test]
    fn an_empty_new_pod_is_filled_within_the_budget_and_no_further_than_the_band() {
        let mut pods = [pod("a", 100, 1.0), pod("b", 100, 1.0), pod("c", 0, 1.0)];
        let moves = moved(&mut rebalancer(5, 1_000), &mut pods, 1, 60);
        assert!(
            moves[..10].iter().all(|count| *count == 0),
            "not before the quiet time: {moves:?}"
        );
        assert!(moves.iter().all(|count| *count <= 5), "{moves:?}");
        let estimates: Vec<u64> = pods.iter().map(|pod| pod.estimate).collect();
        let mean = 200.0 / 3.0;
        assert!(estimates.iter().all(|estimate| *estimate as f64 <= mean * 1.2), "{estimates:?}");
        assert!(moves[59] == 0, "the moves end");
        let moved: usize = moves.iter().sum();
        assert!(moved as u64 == pods[2].estimate && moved < 60, "{moved}");
    }

    #[test]
    fn the_hourly_budget_lasts_an_hour_and_is_shared_by_replicas() {
        let mut pods = [pod("a", 10_000, 1.0), pod("b", 0, 1.0)];
        let moves = moved(&mut rebalancer(10, 40), &mut pods, 2, 600);
        let moved: usize = moves.iter().sum();
        assert!(moves.iter().all(|count| *count <= 5), "half of ten: {moves:?}");
        assert!(
            (20..=24).contains(&moved),
            "half of forty, and the refill of ten minutes: {moved}"
        );
    }

    #[test]
    fn nothing_moves_while_pods_come_go_or_have_problems() {
        let mut rebalancer = rebalancer(5, 1_000);
        let start = Instant::now();
        for second in 0..100 {
            let mut pods = vec![pod("a", 100, 1.0), pod("b", 0, 1.0)];
            if second / 5 % 2 == 0 {
                pods.push(pod("c", 0, 1.0));
            }
            assert_eq!(rebalancer.plan(&pods, 1, start + Duration::from_secs(second)), None);
        }
        for state in [
            BackendState::Ejected,
            BackendState::Draining,
            BackendState::Cold,
            BackendState::Stale,
            BackendState::Unknown,
        ] {
            let mut rebalancer = self::rebalancer(5, 1_000);
            for second in 0..100 {
                let mut pods = vec![pod("a", 100, 1.0), pod("b", 0, 1.0), pod("c", 0, 1.0)];
                pods[2].state = state;
                let now = start + Duration::from_secs(second);
                assert_eq!(rebalancer.plan(&pods, 1, now), None, "{state:?}");
            }
        }
    }

    #[test]
    fn weights_count_and_a_few_sessions_are_not_moved() {
        let mut even = [pod("a", 90, 3.0), pod("b", 30, 1.0)];
        assert_eq!(moved(&mut rebalancer(5, 1_000), &mut even, 1, 60).iter().sum::<usize>(), 0);
        let mut small = [pod("a", 2, 1.0), pod("b", 0, 1.0)];
        assert_eq!(moved(&mut rebalancer(5, 1_000), &mut small, 1, 60).iter().sum::<usize>(), 0);
    }
}
