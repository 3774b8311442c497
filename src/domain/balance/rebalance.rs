//! Which backend should give sessions away after a scale-out, and how many at once.
//!
//! Connections that are held stay where they are, so new pods fill only with arrivals. Where these
//! are few, sessions of the fullest pod can be moved: slowly, only while nothing else moves, and
//! never more than the budget, because each move is a reconnect for its client.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    lease::Backend,
    pool::{BackendSnapshot, State},
};

/// How long the spread must have been too wide, and the set of pods the same, before anything is
/// moved.
const QUIET: Duration = Duration::from_secs(10);

const HOUR: Duration = Duration::from_secs(3600);

/// What the rules about moving are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RebalanceSettings {
    /// How far over the mean the fullest pod may be, as a share of the mean.
    pub band: f64,
    /// Moves a second at most, of all replicas together.
    pub per_second: NonZeroU32,
    /// Moves an hour at most, of all replicas together.
    pub per_hour: NonZeroU32,
}

/// Sessions that should go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// Where from.
    pub from: Arc<Backend>,
    /// How many at most.
    pub count: usize,
}

/// Decides for one service. It is asked about once a second.
#[derive(Debug)]
pub struct Rebalancer {
    settings: RebalanceSettings,
    /// The pods that took part when it was asked last.
    set: Vec<Arc<Backend>>,
    set_since: Option<Instant>,
    wide_since: Option<Instant>,
    second: Allowance,
    hour: Allowance,
}

/// A token bucket.
#[derive(Debug)]
struct Allowance {
    per: Duration,
    left: f64,
    at: Option<Instant>,
}

impl Allowance {
    fn new(per: Duration) -> Self {
        Self { per, left: 0.0, at: None }
    }

    /// What may be spent at `now`, when `limit` is what comes in every `per`.
    fn refill(&mut self, limit: f64, now: Instant) -> f64 {
        let passed = self.at.map_or(self.per, |at| now.saturating_duration_since(at));
        self.left =
            (self.left + limit * passed.as_secs_f64() / self.per.as_secs_f64()).min(limit.max(1.0));
        self.at = Some(now);
        self.left
    }
}

impl Rebalancer {
    /// A rebalancer that has seen nothing yet.
    pub fn new(settings: RebalanceSettings) -> Self {
        Self {
            settings,
            set: Vec::new(),
            set_since: None,
            wide_since: None,
            second: Allowance::new(Duration::from_secs(1)),
            hour: Allowance::new(HOUR),
        }
    }

    /// What should be moved at `now`, of `replicas` that each do the same.
    pub fn plan(&mut self, pods: &[BackendSnapshot], replicas: u32, now: Instant) -> Option<Moves> {
        let taking = |pod: &&BackendSnapshot| matches!(pod.state, State::Up | State::Full);
        let taking_part: Vec<&BackendSnapshot> = pods.iter().filter(taking).collect();
        let share = f64::from(replicas.max(1));
        let per_second = self.second.refill(f64::from(self.settings.per_second.get()) / share, now);
        let per_hour = self.hour.refill(f64::from(self.settings.per_hour.get()) / share, now);

        // While a pod comes, goes or is in trouble, arrivals are on their way anyhow.
        let same = taking_part.len() == self.set.len()
            && taking_part.iter().zip(&self.set).all(|(pod, known)| pod.backend == *known);
        if !same || taking_part.len() < pods.len() {
            self.set = taking_part.iter().map(|pod| pod.backend.clone()).collect();
            self.set_since = Some(now);
            self.wide_since = None;
            return None;
        }
        let weights: f64 = taking_part.iter().map(|pod| pod.weight).sum();
        let total: u64 = taking_part.iter().map(|pod| pod.estimate).sum();
        let mean = total as f64 / weights;
        let load = |pod: &BackendSnapshot| pod.estimate as f64 / pod.weight;
        let fullest = taking_part.iter().max_by(|a, b| load(a).total_cmp(&load(b)))?;
        // One session more than the mean is no spread, however wide it looks in a small crowd.
        let surplus = (load(fullest) - mean) * fullest.weight;
        if load(fullest) <= mean * (1.0 + self.settings.band) || surplus <= 1.0 {
            self.wide_since = None;
            return None;
        }
        let wide_since = *self.wide_since.get_or_insert(now);
        let long_enough = |since: Instant| now.saturating_duration_since(since) >= QUIET;
        if !long_enough(wide_since) || !self.set_since.is_some_and(long_enough) {
            return None;
        }
        let count = per_second.min(per_hour).min(surplus / share.max(1.0)).floor();
        if count < 1.0 {
            return None;
        }
        self.second.left -= count;
        self.hour.left -= count;
        Some(Moves { from: fullest.backend.clone(), count: count as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::balance::lease::{Load, Transport};

    fn pod(name: &str, estimate: u64, weight: f64) -> BackendSnapshot {
        let backend = Backend {
            service: "default".into(),
            url: format!("http://{name}"),
            address: format!("{name}:80"),
            transport: Transport::Tcp,
        };
        BackendSnapshot {
            backend: Arc::new(backend),
            state: State::Up,
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

    /// Moves in each of the first `seconds`, when those that are moved go to the last pod.
    fn moved(
        rebalancer: &mut Rebalancer,
        pods: &mut [BackendSnapshot],
        replicas: u32,
        seconds: u64,
    ) -> Vec<usize> {
        let start = Instant::now();
        let second = |second: u64| {
            let moves = rebalancer.plan(pods, replicas, start + Duration::from_secs(second));
            let Some(Moves { from, count }) = moves else { return 0 };
            let at = pods.iter().position(|pod| pod.backend == from).unwrap();
            pods[at].estimate -= count as u64;
            pods.last_mut().unwrap().estimate += count as u64;
            count
        };
        (0..seconds).map(second).collect()
    }

    #[test]
    fn an_empty_newcomer_is_filled_within_the_budget_and_no_further_than_the_band() {
        let mut pods = [pod("a", 100, 1.0), pod("b", 100, 1.0), pod("c", 0, 1.0)];
        let moves = moved(&mut rebalancer(5, 1_000), &mut pods, 1, 60);
        assert!(moves[..10].iter().all(|count| *count == 0), "not before it is quiet: {moves:?}");
        assert!(moves.iter().all(|count| *count <= 5), "{moves:?}");
        let estimates: Vec<u64> = pods.iter().map(|pod| pod.estimate).collect();
        let mean = 200.0 / 3.0;
        assert!(estimates.iter().all(|estimate| *estimate as f64 <= mean * 1.2), "{estimates:?}");
        assert!(moves[59] == 0, "it ends");
        let moved: usize = moves.iter().sum();
        assert!(moved as u64 == pods[2].estimate && moved < 60, "{moved}");
    }

    #[test]
    fn the_hours_budget_is_an_hours_and_shared_by_replicas() {
        let mut pods = [pod("a", 10_000, 1.0), pod("b", 0, 1.0)];
        let moves = moved(&mut rebalancer(10, 40), &mut pods, 2, 600);
        let moved: usize = moves.iter().sum();
        assert!(moves.iter().all(|count| *count <= 5), "half of ten: {moves:?}");
        assert!((20..=24).contains(&moved), "half of forty, and what ten minutes bring: {moved}");
    }

    #[test]
    fn nothing_moves_while_pods_come_go_or_are_in_trouble() {
        let mut rebalancer = rebalancer(5, 1_000);
        let start = Instant::now();
        for second in 0..100 {
            let mut pods = vec![pod("a", 100, 1.0), pod("b", 0, 1.0)];
            if second / 5 % 2 == 0 {
                pods.push(pod("c", 0, 1.0));
            }
            assert_eq!(rebalancer.plan(&pods, 1, start + Duration::from_secs(second)), None);
        }
        for state in [State::Ejected, State::Draining, State::Cold, State::Stale, State::Unknown] {
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
    fn weights_count_and_a_small_crowd_is_left_alone() {
        let mut even = [pod("a", 90, 3.0), pod("b", 30, 1.0)];
        assert_eq!(moved(&mut rebalancer(5, 1_000), &mut even, 1, 60).iter().sum::<usize>(), 0);
        let mut small = [pod("a", 2, 1.0), pod("b", 0, 1.0)];
        assert_eq!(moved(&mut rebalancer(5, 1_000), &mut small, 1, 60).iter().sum::<usize>(), 0);
    }
}
