//! Choosers of pods: the production pool, and small baselines to compare it with.
//!
//! Every chooser knows the weights of the pods, so that they differ only in how they estimate the load.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use wsbalancer::domain::{
    balance::{
        affinity::Preference,
        backend::Backend,
        lease::{Lease, Purpose},
        poll::{Poll, PollTarget},
        pool::Pool,
        settings::PoolSettings,
        strategy::Strategy,
    },
    fixtures,
    report::{Report, ReportError},
};

/// A method to choose a pod for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A random pod.
    Random,
    /// One pod after the other, interleaved by weight.
    RoundRobin,
    /// The smallest last report, the first of equals; a missing report counts as zero.
    CachedArgmin,
    /// The fewest own sessions of this replica, reset whenever the set of pods changes.
    OwnLeast,
    /// The smallest count that replicas with perfect knowledge of each other can see: the current
    /// sessions of all replicas, and the sessions past the balancer as of the last poll.
    Seen,
    /// The smallest true count, which no replica can know: the optimum without moving sessions.
    Truth,
    /// The production code, with one of its strategies.
    Pool(Strategy),
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::RoundRobin,
        Self::Pool(Strategy::PowerOfTwo),
        Self::CachedArgmin,
        Self::OwnLeast,
        Self::Seen,
        Self::Truth,
        Self::OURS,
    ];
    pub const OURS: Self = Self::Pool(Strategy::LeastConnections);
}

/// The settings of a replica of the balancer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub kind: Kind,
    /// The number of replicas, and the number that each replica assumes.
    pub count: u32,
    pub assumed_replicas: u32,
    pub poll: Duration,
}

impl Settings {
    /// Settings as in the default configuration.
    fn pool(&self, strategy: Strategy) -> PoolSettings {
        PoolSettings {
            strategy,
            replicas: self.assumed_replicas,
            stale_after: Duration::from_secs(30).max(3 * self.poll),
            ..PoolSettings::default()
        }
    }
}

/// The slot of a connection at the replica that placed it; dropping it ends the connection there.
#[derive(Debug)]
pub enum Slot {
    Lease(Lease),
    Counted(#[expect(dead_code, reason = "it counts until it is dropped")] Counted),
    /// The chooser does not count connections.
    Free,
}

impl Slot {
    pub fn establish(&mut self) {
        if let Self::Lease(lease) = self {
            lease.establish();
        }
    }

    /// Records that the pod refused the connection.
    pub fn failed(self) {
        if let Self::Lease(lease) = self {
            lease.record_failure("connection refused".to_owned());
        }
    }

    /// Records that the pod dropped the session soon after it opened.
    pub fn died_early(&self) {
        if let Self::Lease(lease) = self {
            lease.record_early_death();
        }
    }
}

/// Adds one to a replica's own count of a pod until it is dropped.
#[derive(Debug)]
pub struct Counted(Rc<Cell<u32>>);

impl Counted {
    fn new(count: &Rc<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The true number of connections on a pod.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// Sessions and handshakes through the balancer; infinite if a connection would fail.
    pub through: f64,
    /// Sessions past the balancer.
    pub past: u64,
}

/// A poll that is not yet answered.
#[derive(Debug)]
pub struct Pending {
    pub pod: usize,
    poll: Option<Poll>,
}

/// One replica of the balancer.
pub struct Replica {
    chooser: Chooser,
    /// By pod, for all pods of the whole run.
    weights: Vec<f64>,
    /// The pods that discovery has reported.
    known: Vec<usize>,
    rng: Rng,
}

enum Chooser {
    Random,
    Seen { past: Vec<u64> },
    Truth,
    RoundRobin { credits: Vec<f64> },
    CachedArgmin { counts: Vec<u64> },
    OwnLeast { open: Vec<Rc<Cell<u32>>> },
    Pool { pool: Box<Pool>, targets: Vec<PollTarget> },
}

/// The index of a pod is its address, so that no map is needed.
fn backend(pod: usize) -> Backend {
    fixtures::backend(&pod.to_string())
}

fn index(backend: &Backend) -> usize {
    backend.address.parse().expect("an index")
}

impl Replica {
    /// Returns a replica that knows the first `known` of the pods with `weights`.
    pub fn new(settings: &Settings, weights: &[f64], known: usize, seed: u64) -> Self {
        let chooser = match settings.kind {
            Kind::Random => Chooser::Random,
            Kind::Seen => Chooser::Seen { past: vec![0; weights.len()] },
            Kind::Truth => Chooser::Truth,
            Kind::RoundRobin => Chooser::RoundRobin { credits: vec![0.0; weights.len()] },
            Kind::CachedArgmin => Chooser::CachedArgmin { counts: vec![0; weights.len()] },
            Kind::OwnLeast => Chooser::OwnLeast { open: zeros(weights.len()) },
            Kind::Pool(strategy) => {
                let pool = Pool::new((0..known).map(backend), settings.pool(strategy), seed);
                Chooser::Pool { targets: pool.poll_targets(), pool: Box::new(pool) }
            }
        };
        let known = (0..known).collect();
        Self { chooser, weights: weights.to_vec(), known, rng: Rng::with_seed(seed) }
    }

    pub fn knows(&self, pod: usize) -> bool {
        self.known.contains(&pod)
    }

    /// Chooses a pod for the next connection, none of `tried`; `truth` returns the true count of a pod.
    pub fn choose(
        &mut self,
        tried: &[usize],
        truth: impl Fn(usize) -> Truth,
        now: Instant,
    ) -> Option<(usize, Slot)> {
        if let Chooser::Pool { pool, .. } = &mut self.chooser {
            let tried: Vec<Arc<Backend>> = tried.iter().map(|pod| backend(*pod).into()).collect();
            let lease = pool.pick(Purpose::Session, &tried, Preference::None, now).ok()?;
            return Some((index(lease.backend()), Slot::Lease(lease)));
        }
        let mut left: Vec<usize> =
            self.known.iter().copied().filter(|pod| !tried.contains(pod)).collect();
        let total: f64 = left.iter().map(|pod| self.weights[*pod]).sum();
        let (weights, rng) = (&self.weights, &mut self.rng);
        let pod = match &mut self.chooser {
            Chooser::Random => {
                let mut point = rng.f64() * total;
                *left.iter().find(|pod| {
                    point -= weights[**pod];
                    point < 0.0
                })?
            }
            Chooser::Seen { past } => {
                rng.shuffle(&mut left);
                least(&left, |pod| (truth(pod).through + past[pod] as f64) / weights[pod])?
            }
            Chooser::Truth => {
                rng.shuffle(&mut left);
                let held = |Truth { through, past }| through + past as f64;
                least(&left, |pod| held(truth(pod)) / weights[pod])?
            }
            Chooser::RoundRobin { credits } => {
                left.iter().for_each(|pod| credits[*pod] += weights[*pod]);
                let pod = least(&left, |pod| -credits[pod])?;
                credits[pod] -= total;
                pod
            }
            Chooser::CachedArgmin { counts } => {
                least(&left, |pod| counts[pod] as f64 / weights[pod])?
            }
            Chooser::OwnLeast { open } => {
                rng.shuffle(&mut left);
                least(&left, |pod| f64::from(open[pod].get()) / weights[pod])?
            }
            Chooser::Pool { .. } => unreachable!("answered above"),
        };
        Some((pod, self.slot(pod)))
    }

    /// Returns a slot on `pod` without asking the chooser.
    pub fn take(&mut self, pod: usize, now: Instant) -> Slot {
        let Chooser::Pool { pool, .. } = &mut self.chooser else { return self.slot(pod) };
        let others = self.known.iter().filter(|other| **other != pod);
        let tried: Vec<Arc<Backend>> = others.map(|pod| backend(*pod).into()).collect();
        let lease = pool.pick(Purpose::Session, &tried, Preference::None, now);
        Slot::Lease(lease.expect("a pod that has not been tried"))
    }

    fn slot(&self, pod: usize) -> Slot {
        match &self.chooser {
            Chooser::OwnLeast { open } => Slot::Counted(Counted::new(&open[pod])),
            _ => Slot::Free,
        }
    }

    /// Starts a poll of `pod`.
    pub fn begin_poll(&self, pod: usize, now: Instant) -> Pending {
        let Chooser::Pool { targets, .. } = &self.chooser else {
            return Pending { pod, poll: None };
        };
        let target = targets.iter().find(|target| index(target.backend()) == pod);
        Pending { pod, poll: target.map(|target| target.start_poll(now)) }
    }

    /// Applies the answer to a poll; `past` sessions were past the balancer at that time.
    pub fn record(
        &mut self,
        pending: Pending,
        result: Result<Report, ReportError>,
        past: u64,
        now: Instant,
    ) {
        match (&mut self.chooser, pending.poll) {
            (Chooser::Seen { past: known }, None) => known[pending.pod] = past,
            (Chooser::Pool { pool, .. }, Some(poll)) => pool.record(poll, result, now),
            (Chooser::CachedArgmin { counts }, None) => {
                counts[pending.pod] =
                    result.ok().and_then(|report| report.connections).unwrap_or(0);
            }
            _ => {}
        }
    }

    /// Sets the pods, as discovery reports them.
    pub fn set_pods(&mut self, pods: &[usize], now: Instant) {
        self.known = pods.to_vec();
        match &mut self.chooser {
            Chooser::Pool { pool, targets } => {
                pool.set_backends(pods.iter().map(|pod| backend(*pod)).collect(), now);
                *targets = pool.poll_targets();
            }
            // Earlier sessions do not count any more, not even when they end.
            Chooser::OwnLeast { open } => *open = zeros(open.len()),
            _ => {}
        }
    }
}

fn zeros(count: usize) -> Vec<Rc<Cell<u32>>> {
    (0..count).map(|_| Rc::default()).collect()
}

/// Returns the first pod with the smallest `load`.
fn least(pods: &[usize], load: impl Fn(usize) -> f64) -> Option<usize> {
    pods.iter().copied().min_by(|one, other| load(*one).total_cmp(&load(*other)))
}
