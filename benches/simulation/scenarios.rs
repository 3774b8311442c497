//! What is played through in the simulated world, and what is measured.

use std::time::Duration;

use crate::{
    choosers::{Kind, Settings},
    clients::RECONNECT,
    lives::Lives,
    world::{Setup, World},
};

const PODS: usize = 10;
const SESSIONS: usize = 20_000;

/// How long a world runs before anything is measured: from level pods to those that a chooser
/// brings about.
const WARM_UP: Duration = Duration::from_secs(3_600);

/// How often is looked.
const SECOND: Duration = Duration::from_secs(1);

/// In which all clients of a storm come.
const STORM: Duration = Duration::from_secs(10);

/// From one pod's replacement to the next one's.
const STEP: Duration = Duration::from_secs(30);

/// A course of events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scenario {
    /// For an hour clients come and go: the mean of max/mean.
    Steady,
    /// As steady, with every second pod of three times the capacity.
    Weights,
    /// All clients come to empty pods at once: max/mean after it; the most connections that one pod
    /// got in one second, relative to the mean.
    Storm,
    /// Two pods join: seconds until both hold 90 % of the mean.
    ScaleOut,
    /// Each pod is replaced in turn: max/mean when the last clients are back, and 15 minutes later;
    /// sessions cut per client.
    Rollout,
    /// One pod begins to accept and drop: its share of what the balancer places in five minutes.
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

/// How clients behave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clients {
    pub lives: Lives,
    /// Share of those that reach pods past the balancer.
    pub past: f64,
}

impl Case {
    /// The scenario's figures, in the order of its description.
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

    /// Of pods that come later, `weights` are given too.
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

    /// A world that has found its balance.
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
        // Long enough for every replica to have heard that all pods are empty.
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
        // What takes longer than four hours does not come about.
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
    /// Replicas that know how many they are.
    pub fn of(kind: Kind, count: u32, seconds: u64) -> Self {
        Self { kind, count, told: count, poll: Duration::from_secs(seconds) }
    }
}
