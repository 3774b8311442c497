//! Looks after all sessions of one thread: time-outs and Pings.
//!
//! One task per worker thread looks at what the pumps show of themselves, a few times in the
//! shortest time-out. So no session has a timer, and relaying a message touches no clock, unless it is
//! one that is counted.

use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Message, WeakAddr};
use actix_rt::task::JoinHandle;

use super::{
    registry::SessionInfo,
    session::{Rules, SessionActor},
};
use crate::{
    domain::life::{Action, Life, Peer, Seen},
    relay::{Direction, Pulse},
};

/// Tells a session what the rules of its life want.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Act(pub Action);

thread_local! {
    static SWEEPER: RefCell<Sweeper> = RefCell::default();
}

/// The sessions of this thread, and who looks at them.
#[derive(Default)]
struct Sweeper {
    sessions: Vec<Watched>,
    /// The shortest of their ticks.
    tick: Duration,
    task: Option<JoinHandle<()>>,
}

struct Watched {
    session: WeakAddr<SessionActor>,
    info: Arc<SessionInfo>,
    pulse: Pulse,
    rules: Arc<Rules>,
    life: Life,
    /// As of the turns of the pumps that are seen.
    seen: Seen,
    turns: u32,
}

/// Looks after `session` until it is gone.
pub fn watch(
    session: WeakAddr<SessionActor>,
    info: Arc<SessionInfo>,
    pulse: Pulse,
    rules: Arc<Rules>,
) {
    SWEEPER.with_borrow_mut(|sweeper| {
        let life = Life::new(fastrand::f32(), since_start());
        let tick = rules.life.tick();
        sweeper.tick = if sweeper.sessions.is_empty() { tick } else { sweeper.tick.min(tick) };
        sweeper.make_room();
        let (seen, turns) = (Seen::default(), pulse.turns());
        sweeper.sessions.push(Watched { session, info, pulse, rules, life, seen, turns });
        if sweeper.task.as_ref().is_none_or(JoinHandle::is_finished) {
            sweeper.task = Some(actix_rt::spawn(sweep()));
        }
    });
}

/// Ends with the last session.
async fn sweep() {
    while let Some(tick) = SWEEPER.with_borrow(Sweeper::next_tick) {
        actix_rt::time::sleep(tick).await;
        SWEEPER.with_borrow_mut(Sweeper::look);
    }
}

impl Sweeper {
    fn next_tick(&self) -> Option<Duration> {
        (!self.sessions.is_empty()).then_some(self.tick)
    }

    /// In small steps: a vector that doubles would hold as much again in vain.
    fn make_room(&mut self) {
        let Self { sessions, .. } = self;
        if sessions.len() == sessions.capacity() {
            sessions.reserve_exact(16 + sessions.len() / 8);
        }
    }

    fn look(&mut self) {
        let now = since_start();
        self.sessions.retain_mut(|watched| {
            if watched.pulse.is_gone() {
                return false;
            }
            watched.look(now);
            true
        });
        if self.sessions.len() < self.sessions.capacity() / 2 {
            self.sessions.shrink_to_fit();
        }
    }
}

impl Watched {
    /// Most sessions are idle: of those only one word is read that is not at hand.
    fn look(&mut self, now: Duration) {
        let turns = self.pulse.turns();
        let has_changed = std::mem::replace(&mut self.turns, turns) != turns;
        if has_changed {
            self.seen = self.look_closely();
        }
        if let Some(action) = self.life.look(self.seen, &self.rules.life, now)
            && let Some(session) = self.session.upgrade()
        {
            session.do_send(Act(action));
        }
        if has_changed {
            self.info.note_idle(self.life.idle(now));
        }
    }

    fn look_closely(&self) -> Seen {
        let Self { info, pulse, .. } = self;
        let peer = |from: Direction, to: Direction| {
            let relayed = info.stats.of(from).bytes() as u32;
            Peer {
                relayed,
                heard: relayed.wrapping_add(pulse.swallowed(from) as u32),
                waiting: pulse.waiting(to) as u32,
                pings: pulse.pings(to),
            }
        };
        Seen {
            peers: [peer(Direction::Up, Direction::Down), peer(Direction::Down, Direction::Up)],
            is_half_closed: info.stats.first_end().is_some(),
            is_closing: pulse.is_closing(),
        }
    }
}

/// Moments of one thread, small enough to keep many of.
fn since_start() -> Duration {
    thread_local! {
        static START: Instant = Instant::now();
    }
    START.with(Instant::elapsed)
}
