//! What clients do: they connect, stay for their time, and come back when their pod has gone.

use std::time::Duration;

use wsbalancer::domain::balance::health::EARLY_DEATH;

use crate::{
    choosers::{Slot, Truth},
    lives::exponential,
    world::{Event, Pod, World},
};

/// From a client's request to its 101, on average.
const HANDSHAKE: Duration = Duration::from_millis(2);

/// Clients that have lost their session come back within this time.
pub const RECONNECT: Duration = Duration::from_secs(2);

/// How long a session lives on a pod that drops everything.
const DROPPED_AFTER: Duration = Duration::from_millis(1);

/// Further pods a connection is offered to when one refuses it.
const RETRIES: usize = 2;

pub struct Client {
    /// When it wants no session any more.
    leaves_at: Duration,
    /// The replica that it comes through; `None` past the balancer.
    pub through: Option<usize>,
    at: Place,
    /// Counts its handshakes: what was planned for an earlier one is void.
    turn: u32,
}

enum Place {
    Away,
    Shaking { pod: usize, slot: Slot, tried: Vec<usize>, has_reached: bool },
    On { pod: usize, slot: Slot, since: Duration },
}

impl World {
    /// A client that stays for `time`.
    pub fn new_client(&mut self, time: Duration) -> usize {
        let is_past = self.rng.f64() < self.setup.past;
        let through = (!is_past).then(|| self.rng.usize(0..self.replicas.len()));
        let leaves_at = self.agenda.now() + time;
        self.clients.push(Client { leaves_at, through, at: Place::Away, turn: 0 });
        self.clients.len() - 1
    }

    /// A client asks for a session; `tried` have refused it.
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

    /// Past the balancer, clients go anywhere.
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

    /// A client's handshake reaches its pod, if that is there.
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

    /// Its answer comes, or none.
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

    /// A client's session begins on a pod that counts it.
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

    /// Takes a client off its pod. Tells its slot and since when it has been there.
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

    /// The pod has cut a client's session.
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
