//! Scenarios of the simulation and their measured figures.

use std::time::Duration;

use crate::{
    choosers::{Kind, Settings},
    clients::RECONNECT,
    lives::Lives,
    world::{Setup, World},
};

const PODS: usize = 10;
const SESSIONS: usize = 20_000;

/// The time that a world runs before the measurement: from level pods to the state that the chooser
/// produces.
const WARM_UP: Duration = Duration::from_secs(3_600);

/// The interval between samples.
const SECOND: Duration = Duration::from_secs(1);

/// The time within which all clients of a storm connect.
const STORM: Duration = Duration::from_secs(10);

/// The time from one replacement of a pod to the next.
const STEP: Duration = Duration::from_secs(30);

/// A sequence of events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scenario {
    /// Clients connect and leave for an hour: the mean of max/mean.
    Steady,
    /// As `Steady`, but every second pod has three times the capacity.
    Weights,
    /// All clients connect to empty pods at once: max/mean afterwards; the most connections of one pod
    /// in one second, relative to the mean.
    Storm,
    /// Two pods join: seconds until both hold 90 % of the mean.
    ScaleOut,
    /// The pods are replaced one by one: max/mean when the last clients have reconnected, and 15 minutes later;
    /// sessions cut per client.
    Rollout,
    /// One pod starts to accept and drop: its share of the connections of five minutes.
    BlackHole,
}

/// One run of a scenario.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    pub scenario: Scenario,
    pub settings: Settings,
    pub clients: Clients,
    pub seed: u64,
}

/// The behaviour of clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clients {
    pub lives: Lives,
    /// The share of clients that connect to pods past the balancer.
    pub past: f64,
}

impl Case {
    /// The figures of the scenario, in the order of its description.
    pub fn run(&self) -> Vec<f64> {
        match self.scenario {
            Scenario::Steady => self.steady(vec![1.0; PODS]),
            Scenario::Weights => self.steady((0..PODS).map(|pod| [1.0, 3.0][pod % 2]).collect()),
            Scenario::Storm => self.storm(),
            Scenario::ScaleOut => self.scale_out(),
            Scenario::Rollout => self.rollout(),
            Scenario::BlackHole => self.black_hole(),
        }
    }

    /// `weights` include those of pods that are added later.
    fn world(&self, weights: Vec<f64>) -> World {
        World::new(Setup {
            replicas: self.settings,
            weights,
            pods: PODS,
            lives: self.clients.lives,
            past: self.clients.past,
            seed: self.seed,
        })
    }

    /// Returns a world in its steady state.
    fn balanced(&self, weights: Vec<f64>) -> World {
        let mut world = self.world(weights);
        world.fill(SESSIONS);
        world.pass(WARM_UP);
        world
    }

    fn steady(&self, weights: Vec<f64>) -> Vec<f64> {
        let mut world = self.balanced(weights);
        let samples = 3_600;
        let mut sum = 0.0;
        for _ in 0..samples {
            world.pass(SECOND);
            sum += world.max_over_mean();
        }
        vec![sum / f64::from(samples)]
    }

    fn storm(&self) -> Vec<f64> {
        let mut world = self.world(vec![1.0; PODS]);
        // Long enough for every replica to have a report of empty pods.
        world.pass(2 * self.settings.poll);
        world.storm(SESSIONS, STORM);
        let mut most = 0;
        for _ in 0..STORM.as_secs() {
            let before: Vec<u64> = world.pods.iter().map(|pod| pod.offered).collect();
            world.pass(SECOND);
            let came = world.pods.iter().zip(before).map(|(pod, before)| pod.offered - before);
            most = came.max().unwrap_or(0).max(most);
        }
        // The last handshakes.
        world.pass(Duration::from_millis(100));
        let fair = SESSIONS as f64 / STORM.as_secs_f64() / PODS as f64;
        vec![world.max_over_mean(), most as f64 / fair]
    }

    fn scale_out(&self) -> Vec<f64> {
        let new = [PODS, PODS + 1];
        let mut world = self.balanced(vec![1.0; PODS + new.len()]);
        world.replace(&new, &[]);
        let lags = |world: &World| {
            let mut loads = world.loads();
            loads.any(|(pod, load)| new.contains(&pod) && load < 0.9)
        };
        let mut seconds = 0;
        // After four hours the goal counts as not reached.
        while seconds < 14_400 && lags(&world) {
            world.pass(SECOND);
            seconds += 1;
        }
        vec![f64::from(seconds)]
    }

    fn rollout(&self) -> Vec<f64> {
        let mut world = self.balanced(vec![1.0; 2 * PODS]);
        for pod in 0..PODS {
            world.replace(&[PODS + pod], &[pod]);
            world.pass(if pod + 1 < PODS { STEP } else { RECONNECT + SECOND });
        }
        let at_its_end = world.max_over_mean();
        let through_the_balancer = SESSIONS as f64 * (1.0 - self.clients.past);
        let reconnects = world.cut as f64 / through_the_balancer;
        world.pass(Duration::from_secs(900));
        vec![at_its_end, world.max_over_mean(), reconnects]
    }

    fn black_hole(&self) -> Vec<f64> {
        let mut world = self.balanced(vec![1.0; PODS]);
        let before: Vec<u64> = world.pods.iter().map(|pod| pod.placed).collect();
        world.break_down(0);
        world.pass(Duration::from_secs(300));
        let placed = world.pods.iter().zip(before).map(|(pod, before)| pod.placed - before);
        let placed: Vec<u64> = placed.collect();
        vec![placed[0] as f64 / placed.iter().sum::<u64>() as f64]
    }
}

impl Settings {
    /// Returns settings of replicas that know their number.
    pub fn of(kind: Kind, count: u32, seconds: u64) -> Self {
        Self { kind, count, assumed_replicas: count, poll: Duration::from_secs(seconds) }
    }
}
