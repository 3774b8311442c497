//! Looks after all sessions of one thread: time-outs and Pings.
//!
//! One task per worker thread looks at what the pumps show of themselves, a few times in the
//! shortest time-out. So no session has a timer, and relaying a message touches no clock. Where
//! messages are counted both are otherwise: there the pumps see to it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Message, WeakAddr};
use actix_rt::{task::JoinHandle, time::timeout};
use tokio::sync::Notify;

use super::{
    registry::SessionInfo,
    session::{SessionActor, SessionRules},
};
use crate::{
    domain::session::timeouts::{Action, Life, Peer, Seen},
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
    /// Rung when it gets shorter.
    quickened: Rc<Notify>,
    task: Option<JoinHandle<()>>,
}

struct Watched {
    session: WeakAddr<SessionActor>,
    info: Arc<SessionInfo>,
    pulse: Pulse,
    rules: Arc<SessionRules>,
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
    rules: Arc<SessionRules>,
) {
    SWEEPER.with_borrow_mut(|sweeper| {
        sweeper.add(Watched::new(session, info, pulse, rules));
        if sweeper.task.as_ref().is_none_or(JoinHandle::is_finished) {
            sweeper.task = Some(actix_rt::spawn(sweep()));
        }
    });
}

/// Ends with the last session.
async fn sweep() {
    while let Some((tick, quickened)) = SWEEPER.with_borrow(Sweeper::next_look) {
        // Unless somebody comes who cannot wait for so long.
        if timeout(tick, quickened.notified()).await.is_err() {
            SWEEPER.with_borrow_mut(Sweeper::look);
        }
    }
}

impl Sweeper {
    fn next_look(&self) -> Option<(Duration, Rc<Notify>)> {
        (!self.sessions.is_empty()).then(|| (self.tick, self.quickened.clone()))
    }

    fn add(&mut self, watched: Watched) {
        let tick = watched.tick();
        if self.sessions.is_empty() || tick < self.tick {
            self.tick = tick;
            self.quickened.notify_one();
        }
        self.make_room();
        self.sessions.push(watched);
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
        // As long as somebody needs it, and mostly that is the first.
        if self.sessions.iter().all(|watched| watched.tick() > self.tick) {
            self.tick = self.sessions.iter().map(Watched::tick).min().unwrap_or_default();
        }
    }
}

impl Watched {
    fn new(
        session: WeakAddr<SessionActor>,
        info: Arc<SessionInfo>,
        pulse: Pulse,
        rules: Arc<SessionRules>,
    ) -> Self {
        let life = Life::new(fastrand::f32(), since_start());
        let (seen, turns) = (Seen::default(), pulse.turns());
        Self { session, info, pulse, rules, life, seen, turns }
    }

    /// How often it must be looked at.
    fn tick(&self) -> Duration {
        self.rules.timeouts.tick()
    }

    /// Most sessions are idle: of those only one word is read that is not at hand.
    fn look(&mut self, now: Duration) {
        let turns = self.pulse.turns();
        let has_changed = std::mem::replace(&mut self.turns, turns) != turns;
        if has_changed {
            self.seen = self.look_closely();
        }
        if let Some(action) = self.life.look(self.seen, &self.rules.timeouts, now)
            && let Some(session) = self.session.upgrade()
        {
            session.do_send(Act(action));
        }
        if has_changed {
            self.info.set_idle(self.life.idle(now));
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

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        pin::pin,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        task::{Context, Wake},
    };

    use actix::AsyncContext as _;
    use bytes::BytesMut;

    use super::*;
    use crate::{
        domain::{
            balance::backend::{Backend, Transport},
            session::timeouts::SessionTimeouts,
        },
        relay::{self, Tunnel, TunnelRules, close::CloseCode},
    };

    const HURRIED: Duration = Duration::from_millis(80);

    /// A tunnel and what the sweeper knows of it.
    fn session(idle_timeout: Option<Duration>) -> (Tunnel, Watched) {
        let end = Duration::from_secs(3600);
        let timeouts = SessionTimeouts {
            idle_timeout,
            write_timeout: None,
            half_closed_timeout: end,
            close_timeout: end,
            max_age: None,
            client_ping_interval: None,
            pod_ping_interval: None,
            ping_timeout: end,
        };
        let close_code = CloseCode::SERVICE_RESTART;
        let rules = SessionRules { timeouts, tunnel: TunnelRules::default(), close_code };
        let backend = Backend {
            service: "default".into(),
            url: "http://pod:1".into(),
            address: "pod:1".into(),
            transport: Transport::Tcp,
        };
        let info = SessionInfo::new([127, 0, 0, 1].into(), Arc::new(backend), close_code);
        let peer = || relay::TunnelPeer::new(tokio::io::duplex(1).0, BytesMut::new());
        let tunnel = Tunnel::new(peer(), peer(), &info.stats, &rules.tunnel);
        let pulse = tunnel.control.pulse();
        let nobody = actix::Context::<SessionActor>::new().address().downgrade();
        (tunnel, Watched::new(nobody, Arc::new(info), pulse, Arc::new(rules)))
    }

    #[test]
    fn looks_are_as_frequent_as_those_need_that_are_there() {
        let (calm, hurried) = (session(None), session(Some(HURRIED)));
        let calm_tick = calm.1.tick();
        let mut sweeper = Sweeper::default();
        sweeper.add(calm.1);
        assert_eq!(sweeper.tick, calm_tick);
        sweeper.add(hurried.1);
        assert_eq!(sweeper.tick, HURRIED / 8);
        sweeper.look();
        assert_eq!(sweeper.tick, HURRIED / 8);
        drop(hurried.0);
        sweeper.look();
        assert_eq!((sweeper.sessions.len(), sweeper.tick), (1, calm_tick));
        drop(calm.0);
        sweeper.look();
        assert!(sweeper.next_look().is_none());
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[actix_rt::test]
    async fn who_cannot_wait_for_the_next_look_brings_it_forward() {
        let (calm, hurried) = (session(None), session(Some(HURRIED)));
        let other = session(None);
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        SWEEPER.with_borrow_mut(|sweeper| sweeper.add(calm.1));
        let mut sweep = pin!(sweep());
        assert!(sweep.as_mut().poll(&mut cx).is_pending());
        SWEEPER.with_borrow_mut(|sweeper| sweeper.add(other.1));
        assert!(!woken.0.load(Relaxed), "no need");
        SWEEPER.with_borrow_mut(|sweeper| sweeper.add(hurried.1));
        assert!(woken.0.load(Relaxed));
        assert!(sweep.as_mut().poll(&mut cx).is_pending(), "until its own tick is over");
    }
}
