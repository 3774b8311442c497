//! Clients connect, stay for some time, and reconnect when their pod is gone.

use std::time::Duration;

use wsbalancer::domain::balance::health::EARLY_DEATH;

use crate::{
    choosers::{Slot, Truth},
    lives::exponential,
    world::{Event, Pod, World},
};

/// From a client's request to its 101, on average.
const HANDSHAKE: Duration = Duration::from_millis(2);

/// Clients that lost their session reconnect within this time.
pub const RECONNECT: Duration = Duration::from_secs(2);

/// The duration of a session on a pod that drops everything.
const DROPPED_AFTER: Duration = Duration::from_millis(1);

/// The number of further pods to try when one refuses a connection.
const RETRIES: usize = 2;

pub struct Client {
    /// The time at which the client leaves.
    leaves_at: Duration,
    /// The replica that it uses; `None` past the balancer.
    pub through: Option<usize>,
    at: Place,
    /// Number of its handshakes: events of an earlier one are ignored.
    turn: u32,
}

enum Place {
    Away,
    Shaking { pod: usize, slot: Slot, tried: Vec<usize>, has_reached: bool },
    On { pod: usize, slot: Slot, since: Duration },
}

impl World {
    /// Adds a client that stays for `time`.
    pub fn new_client(&mut self, time: Duration) -> usize {
        let is_past = self.rng.f64() < self.setup.past;
        let through = (!is_past).then(|| self.rng.usize(0..self.replicas.len()));
        let leaves_at = self.agenda.now() + time;
        self.clients.push(Client { leaves_at, through, at: Place::Away, turn: 0 });
        self.clients.len() - 1
    }

    /// A client requests a session; `tried` have refused it.
    pub fn connect(&mut self, client: usize, tried: Vec<usize>) {
        if self.clients[client].leaves_at <= self.agenda.now() {
            return;
        }
        let Some((pod, slot)) = self.choose(client, &tried) else {
            return self.come_again(client);
        };
        self.pods[pod].offered += 1;
        self.pods[pod].shaking += 1;
        self.pods[pod].placed += u64::from(self.clients[client].through.is_some());
        let Client { at, turn, .. } = &mut self.clients[client];
        *at = Place::Shaking { pod, slot, tried, has_reached: false };
        *turn += 1;
        let (turn, time) = (*turn, exponential(HANDSHAKE, &mut self.rng));
        self.agenda.plan(time / 2, Event::Reaches(client, turn));
        self.agenda.plan(time, Event::IsAnswered(client, turn));
    }

    /// Chooses a random pod for a client past the balancer.
    fn choose(&mut self, client: usize, tried: &[usize]) -> Option<(usize, Slot)> {
        let now = self.instant();
        let Some(replica) = self.clients[client].through else {
            let there: Vec<usize> = self.there().collect();
            return self.rng.choice(there).map(|pod| (pod, Slot::Free));
        };
        let truth = |pod: usize| {
            let Pod { is_there, drops, count, past, shaking, .. } = self.pods[pod];
            let through =
                if is_there && !drops { (count - past + shaking) as f64 } else { f64::INFINITY };
            Truth { through, past }
        };
        self.replicas[replica].choose(tried, truth, now)
    }

    fn come_again(&mut self, client: usize) {
        let after = RECONNECT.mul_f64(self.rng.f64());
        self.agenda.plan(after, Event::Connects(client));
    }

    /// The handshake of a client reaches its pod, if the pod exists.
    pub fn reach(&mut self, client: usize, turn: u32) {
        let Client { turn: current, at, .. } = &mut self.clients[client];
        if *current == turn
            && let Place::Shaking { pod, has_reached, .. } = at
        {
            let pod = *pod;
            *has_reached = self.pods[pod].is_there;
            self.pods[pod].shaking -= 1;
            if self.pods[pod].is_there {
                self.add(client, pod);
            }
        }
    }

    /// The response to a handshake arrives, or none.
    pub fn answer(&mut self, client: usize, turn: u32) {
        if self.clients[client].turn != turn {
            return;
        }
        let at = std::mem::replace(&mut self.clients[client].at, Place::Away);
        let Place::Shaking { pod, slot, mut tried, has_reached } = at else { return };
        if has_reached && self.pods[pod].is_there {
            return self.settle(client, pod, slot);
        }
        slot.failed();
        tried.push(pod);
        match tried.len() <= RETRIES && self.clients[client].through.is_some() {
            true => self.connect(client, tried),
            false => self.come_again(client),
        }
    }

    /// The session of a client opens on a pod that counts it.
    pub fn settle(&mut self, client: usize, pod: usize, mut slot: Slot) {
        slot.establish();
        let since = self.agenda.now();
        let Client { at, turn, leaves_at, .. } = &mut self.clients[client];
        *at = Place::On { pod, slot, since };
        let (turn, left) = (*turn, leaves_at.saturating_sub(since));
        match self.pods[pod].drops {
            true => self.agenda.plan(DROPPED_AFTER, Event::IsDropped(client, turn)),
            false => self.agenda.plan(left, Event::Leaves(client, turn)),
        }
    }

    /// Removes a client from its pod and returns its slot and the time at which it connected.
    pub fn end(&mut self, client: usize, turn: u32) -> Option<(Slot, Duration)> {
        let client = &mut self.clients[client];
        if client.turn != turn {
            return None;
        }
        match std::mem::replace(&mut client.at, Place::Away) {
            Place::On { pod, slot, since } => {
                self.pods[pod].count -= 1;
                self.pods[pod].past -= u64::from(client.through.is_none());
                Some((slot, since))
            }
            other => {
                client.at = other;
                None
            }
        }
    }

    /// The pod cuts the session of a client.
    pub fn lose(&mut self, client: usize, turn: u32) {
        let Some((slot, since)) = self.end(client, turn) else { return };
        if self.agenda.now() - since < EARLY_DEATH {
            slot.died_early();
        }
        self.cut += u64::from(self.clients[client].through.is_some());
        self.come_again(client);
    }

    /// The pod cuts all of its sessions.
    pub fn cut_all(&mut self, pod: usize) {
        for client in 0..self.clients.len() {
            let Client { at, turn, .. } = &self.clients[client];
            if matches!(at, Place::On { pod: on, .. } if *on == pod) {
                self.lose(client, *turn);
            }
        }
    }
}
