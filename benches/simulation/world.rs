//! Pods, clients and replicas of the balancer in virtual time.
//!
//! Everything runs in one thread, and all random numbers come from one seed. A handshake reaches
//! its pod half-way, and a poll's count is read half-way, as in a real network.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use wsbalancer::domain::report::{Report, ReportError};

use crate::{
    agenda::Agenda,
    choosers::{Pending, Replica, Settings, Slot},
    clients::Client,
    lives::{Lives, exponential},
};

pub const MEAN_LIFE: Duration = Duration::from_secs(1_800);

/// The mean time from a poll to its answer.
const POLL_TIME: Duration = Duration::from_millis(4);

/// Polls are moved at random by this share of their interval.
const POLL_JITTER: f64 = 0.1;

/// Replicas learn of a change in the set of pods within this time.
const DISCOVERY: Duration = Duration::from_secs(1);

/// The parameters of a simulation.
#[derive(Clone, Debug)]
pub struct Setup {
    pub replicas: Settings,
    /// One for each pod of the whole run.
    pub weights: Vec<f64>,
    /// The number of pods at the start.
    pub pods: usize,
    pub lives: Lives,
    /// The share of clients that connect to pods past the balancer.
    pub past: f64,
    pub seed: u64,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub weight: f64,
    /// Sessions on the pod, as it reports them, and how many of them are past the balancer.
    pub count: u64,
    pub past: u64,
    /// Handshakes that have not reached the pod yet.
    pub shaking: u64,
    /// Connections sent to the pod, and how many of them by the balancer.
    pub offered: u64,
    pub placed: u64,
    pub is_there: bool,
    /// Whether it accepts every session and drops it.
    pub drops: bool,
}

/// An event.
pub enum Event {
    /// A new client connects; the time of the next one follows from the rate.
    Comes,
    /// Events of a client; those with a turn are ignored when it has started another handshake.
    Connects(usize),
    Reaches(usize, u32),
    IsAnswered(usize, u32),
    Leaves(usize, u32),
    IsDropped(usize, u32),
    /// Events of a replica.
    Learns(usize, Rc<[usize]>),
    Asks(usize, usize),
    Reads(usize, Box<Pending>),
    Hears(usize, Box<Answer>),
}

/// A poll and its result. Boxed, because the agenda moves its events.
pub struct Answer(Pending, Result<Report, ReportError>, u64);

pub struct World {
    pub setup: Setup,
    start: Instant,
    pub agenda: Agenda<Event>,
    pub rng: Rng,
    pub pods: Vec<Pod>,
    pub replicas: Vec<Replica>,
    pub clients: Vec<Client>,
    /// New clients a second.
    rate: f64,
    /// Sessions through the balancer that pods have cut.
    pub cut: u64,
}

impl World {
    /// Returns pods without sessions; each poll is at a random point of its interval.
    pub fn new(setup: Setup) -> Self {
        let mut rng = Rng::with_seed(setup.seed);
        let pod = |(index, weight): (usize, &f64)| Pod {
            weight: *weight,
            count: 0,
            past: 0,
            shaking: 0,
            offered: 0,
            placed: 0,
            is_there: index < setup.pods,
            drops: false,
        };
        let pods = setup.weights.iter().enumerate().map(pod).collect();
        let replica = |_| Replica::new(&setup.replicas, &setup.weights, setup.pods, rng.u64(..));
        let replicas: Vec<Replica> = (0..setup.replicas.count).map(replica).collect();
        let mut agenda = Agenda::new();
        for replica in 0..replicas.len() {
            for pod in 0..setup.pods {
                agenda.plan(setup.replicas.poll.mul_f64(rng.f64()), Event::Asks(replica, pod));
            }
        }
        let start = Instant::now();
        let clients = Vec::new();
        Self { setup, start, agenda, rng, pods, replicas, clients, rate: 0.0, cut: 0 }
    }

    /// Gives each pod its share of `sessions`, as in the steady state, and sets the rate of new clients
    /// so that this number stays the same on average.
    pub fn fill(&mut self, sessions: usize) {
        let weights: f64 = self.pods.iter().filter(|pod| pod.is_there).map(|pod| pod.weight).sum();
        let now = self.instant();
        for pod in 0..self.setup.pods {
            let share = sessions as f64 * self.pods[pod].weight / weights;
            for _ in 0..share.round() as usize {
                let rest = self.setup.lives.rest(MEAN_LIFE, &mut self.rng);
                let client = self.new_client(rest);
                let slot = match self.clients[client].through {
                    Some(replica) => self.replicas[replica].take(pod, now),
                    None => Slot::Free,
                };
                self.add(client, pod);
                self.settle(client, pod, slot);
            }
        }
        self.rate = sessions as f64 / MEAN_LIFE.as_secs_f64();
        self.plan_next();
    }

    /// Adds a session of `client` to this pod.
    pub fn add(&mut self, client: usize, pod: usize) {
        self.pods[pod].count += 1;
        self.pods[pod].past += u64::from(self.clients[client].through.is_none());
    }

    /// Lets `count` clients connect at random moments within `time`.
    pub fn storm(&mut self, count: usize, time: Duration) {
        for _ in 0..count {
            let after = time.mul_f64(self.rng.f64());
            let life = self.setup.lives.whole(MEAN_LIFE, &mut self.rng);
            let client = self.new_client(after + life);
            self.agenda.plan(after, Event::Connects(client));
        }
    }

    /// Adds the pods of `begin` and removes those of `end`, which cut their sessions. The replicas learn of
    /// it soon.
    pub fn replace(&mut self, begin: &[usize], end: &[usize]) {
        begin.iter().for_each(|pod| self.pods[*pod].is_there = true);
        for pod in end {
            self.pods[*pod].is_there = false;
            self.cut_all(*pod);
        }
        let there: Rc<[usize]> = self.there().collect();
        for replica in 0..self.replicas.len() {
            let after = DISCOVERY.mul_f64(self.rng.f64());
            self.agenda.plan(after, Event::Learns(replica, there.clone()));
        }
    }

    /// Lets this pod drop all current and new sessions.
    pub fn break_down(&mut self, pod: usize) {
        self.pods[pod].drops = true;
        self.cut_all(pod);
    }

    /// Runs the simulation for `time`.
    pub fn pass(&mut self, time: Duration) {
        let end = self.agenda.now() + time;
        while let Some(event) = self.agenda.next_before(end) {
            self.happen(event);
        }
    }

    /// Returns the sessions per weight of every existing pod, relative to the mean of all.
    pub fn loads(&self) -> impl Iterator<Item = (usize, f64)> {
        let count: u64 = self.there().map(|pod| self.pods[pod].count).sum();
        let weight: f64 = self.there().map(|pod| self.pods[pod].weight).sum();
        let mean = count as f64 / weight;
        self.there().map(move |pod| {
            let Pod { count, weight, .. } = self.pods[pod];
            (pod, count as f64 / weight / mean)
        })
    }

    /// Returns the largest of [`World::loads`].
    pub fn max_over_mean(&self) -> f64 {
        self.loads().map(|(_, load)| load).fold(0.0, f64::max)
    }

    pub fn there(&self) -> impl Iterator<Item = usize> {
        (0..self.pods.len()).filter(|pod| self.pods[*pod].is_there)
    }

    pub fn instant(&self) -> Instant {
        self.start + self.agenda.now()
    }

    fn plan_next(&mut self) {
        let gap = exponential(Duration::from_secs_f64(1.0 / self.rate), &mut self.rng);
        self.agenda.plan(gap, Event::Comes);
    }

    fn happen(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Comes => {
                let life = self.setup.lives.whole(MEAN_LIFE, &mut self.rng);
                let client = self.new_client(life);
                self.connect(client, Vec::new());
                self.plan_next();
            }
            Event::Connects(client) => self.connect(client, Vec::new()),
            Event::Reaches(client, turn) => self.reach(client, turn),
            Event::IsAnswered(client, turn) => self.answer(client, turn),
            Event::Leaves(client, turn) => drop(self.end(client, turn)),
            Event::IsDropped(client, turn) => self.lose(client, turn),
            Event::Learns(replica, pods) => {
                let is_new = |pod: &usize| !self.replicas[replica].knows(*pod);
                let new: Vec<usize> = pods.iter().copied().filter(is_new).collect();
                self.replicas[replica].set_pods(&pods, now);
                new.into_iter().for_each(|pod| self.ask(replica, pod));
            }
            Event::Asks(replica, pod) => self.ask(replica, pod),
            Event::Reads(replica, poll) => {
                let (result, past) = (self.report(poll.pod), self.pods[poll.pod].past);
                let way = exponential(POLL_TIME / 2, &mut self.rng);
                self.agenda.plan(way, Event::Hears(replica, Box::new(Answer(*poll, result, past))));
            }
            Event::Hears(replica, answer) => {
                let Answer(poll, result, past) = *answer;
                let pod = poll.pod;
                self.replicas[replica].record(poll, result, past, now);
                let moved = 1.0 + POLL_JITTER * (2.0 * self.rng.f64() - 1.0);
                let next = self.setup.replicas.poll.mul_f64(moved);
                self.agenda.plan(next, Event::Asks(replica, pod));
            }
        }
    }

    /// A replica polls a pod, unless the pod is gone.
    fn ask(&mut self, replica: usize, pod: usize) {
        if self.replicas[replica].knows(pod) {
            let poll = self.replicas[replica].begin_poll(pod, self.instant());
            let way = exponential(POLL_TIME / 2, &mut self.rng);
            self.agenda.plan(way, Event::Reads(replica, Box::new(poll)));
        }
    }

    fn report(&self, pod: usize) -> Result<Report, ReportError> {
        let Pod { weight, count, is_there, .. } = self.pods[pod];
        if !is_there {
            return Err(ReportError::Unreachable("connection refused".to_owned()));
        }
        Ok(Report { connections: Some(count), weight: Some(weight), ..Report::default() })
    }
}
