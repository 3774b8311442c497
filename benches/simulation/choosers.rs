//! Who chooses: the pool that serves, and small baselines to compare it with.
//!
//! Every chooser knows the pods' weights, so that what differs is only how it judges their load.

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

/// How connections are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any pod.
    Random,
    /// One pod after the other, interleaved by weight.
    RoundRobin,
    /// The smallest count that was reported last, the first of equals: no report counts as zero.
    CachedArgmin,
    /// The fewest sessions of this replica's own, forgotten whenever the set of pods changes.
    OwnLeast,
    /// The smallest count of what replicas that know everything of each other can see: all of their
    /// own sessions as they are, and those past the balancer as they were at the last poll.
    Seen,
    /// The smallest true count, which nobody can know: as good as it gets without moving sessions.
    Truth,
    /// The serving code itself, with one of its strategies.
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

/// What a replica of the balancer needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub kind: Kind,
    /// Replicas that there are, and as how many they know themselves.
    pub count: u32,
    pub told: u32,
    pub poll: Duration,
}

impl Settings {
    /// As the shipped configuration has it.
    fn pool(&self, strategy: Strategy) -> PoolSettings {
        PoolSettings {
            strategy,
            replicas: self.told,
            stale_after: Duration::from_secs(30).max(3 * self.poll),
            ..PoolSettings::default()
        }
    }
}

/// A connection's slot at the replica that placed it; dropping it tells the replica that it ended.
#[derive(Debug)]
pub enum Slot {
    Lease(Lease),
    Counted(#[expect(dead_code, reason = "it counts until it is dropped")] Counted),
    /// Nobody keeps count.
    Free,
}

impl Slot {
    pub fn establish(&mut self) {
        if let Self::Lease(lease) = self {
            lease.establish();
        }
    }

    /// The pod has not taken the connection.
    pub fn failed(self) {
        if let Self::Lease(lease) = self {
            lease.record_failure("connection refused".to_owned());
        }
    }

    /// The pod has dropped the session soon after it opened.
    pub fn died_early(&self) {
        if let Self::Lease(lease) = self {
            lease.record_early_death();
        }
    }
}

/// One in a replica's own count of a pod, until it is dropped.
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

/// What a pod holds in truth.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// Sessions and handshakes through the balancer; endless where a connection would fail.
    pub through: f64,
    /// Sessions past it.
    pub past: u64,
}

/// A poll on its way.
#[derive(Debug)]
pub struct Pending {
    pub pod: usize,
    poll: Option<Poll>,
}

/// One replica of the balancer.
pub struct Replica {
    chooser: Chooser,
    /// By pod, of all there ever are.
    weights: Vec<f64>,
    /// Those that discovery has told it.
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

/// A pod's index is its address, and so found again without a map.
fn backend(pod: usize) -> Backend {
    fixtures::backend(&pod.to_string())
}

fn index(backend: &Backend) -> usize {
    backend.address.parse().expect("an index")
}

impl Replica {
    /// A replica that knows the first `known` pods of those with `weights`.
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

    /// A pod for the next connection, none of `tried`. `truth` tells what a pod holds.
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

    /// A slot on `pod`, whatever the chooser would say.
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

    /// A poll of `pod` is sent.
    pub fn begin_poll(&self, pod: usize, now: Instant) -> Pending {
        let Chooser::Pool { targets, .. } = &self.chooser else {
            return Pending { pod, poll: None };
        };
        let target = targets.iter().find(|target| index(target.backend()) == pod);
        Pending { pod, poll: target.map(|target| target.start_poll(now)) }
    }

    /// Its answer has come; `past` sessions were past the balancer when it was given.
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

    /// Discovery tells it which pods there are.
    pub fn set_pods(&mut self, pods: &[usize], now: Instant) {
        self.known = pods.to_vec();
        match &mut self.chooser {
            Chooser::Pool { pool, targets } => {
                pool.set_backends(pods.iter().map(|pod| backend(*pod)).collect(), now);
                *targets = pool.poll_targets();
            }
            // What was counted before counts no more, not even when it ends.
            Chooser::OwnLeast { open } => *open = zeros(open.len()),
            _ => {}
        }
    }
}

fn zeros(count: usize) -> Vec<Rc<Cell<u32>>> {
    (0..count).map(|_| Rc::default()).collect()
}

/// The first of those with the smallest `load`.
fn least(pods: &[usize], load: impl Fn(usize) -> f64) -> Option<usize> {
    pods.iter().copied().min_by(|one, other| load(*one).total_cmp(&load(*other)))
}
