//! Scans all sessions of one thread for timeouts and due Pings.
//!
//! One task per worker thread reads the activity of the pumps, several times within the shortest
//! timeout. So no session has a timer, and relaying a message reads no clock. Only a limit for the
//! message rate is different: the pumps enforce it themselves.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    thread::LocalKey,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, Message, WeakAddr};
use actix_rt::{task::JoinHandle, time::timeout};
use tokio::sync::Notify;

use super::session_info::{SessionInfo, SessionRules};
use crate::{
    domain::session::{
        side::Side,
        timeouts::{SessionActivity, SideActivity, TimeoutAction, TimeoutState},
    },
    relay::ActivityView,
};

/// Makes a session do what its timeouts require.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct ApplyTimeout(pub TimeoutAction);

/// Scans the sessions of one thread, each of them an actor `S`.
pub struct TimeoutScanner<S: Actor> {
    sessions: Vec<ScannedSession<S>>,
    /// The shortest of the scan intervals of the sessions.
    interval: Duration,
    /// Notified when the interval gets shorter.
    interval_shortened: Rc<Notify>,
    task: Option<JoinHandle<()>>,
}

/// A session and the state of its timeouts.
pub struct ScannedSession<S: Actor> {
    session: WeakAddr<S>,
    info: Arc<SessionInfo>,
    view: ActivityView,
    rules: Arc<SessionRules>,
    state: TimeoutState,
    /// The activity when the poll count was `poll_count`.
    activity: SessionActivity,
    poll_count: u32,
}

impl<S: Actor> Default for TimeoutScanner<S> {
    fn default() -> Self {
        let (sessions, interval, interval_shortened, task) = Default::default();
        Self { sessions, interval, interval_shortened, task }
    }
}

impl<S> TimeoutScanner<S>
where
    S: Actor<Context = Context<S>> + Handler<ApplyTimeout>,
{
    /// Scans `session` until it is gone.
    pub fn watch(scanner: &'static LocalKey<RefCell<Self>>, session: ScannedSession<S>) {
        scanner.with_borrow_mut(|this| {
            this.add(session);
            if this.task.as_ref().is_none_or(JoinHandle::is_finished) {
                this.task = Some(actix_rt::spawn(Self::run(scanner)));
            }
        });
    }

    /// Scans periodically, and returns when no session is left.
    async fn run(scanner: &'static LocalKey<RefCell<Self>>) {
        while let Some((interval, shortened)) = scanner.with_borrow(Self::next_scan) {
            // A session that needs a shorter interval starts the wait again.
            if timeout(interval, shortened.notified()).await.is_err() {
                scanner.with_borrow_mut(Self::scan);
            }
        }
    }

    fn next_scan(&self) -> Option<(Duration, Rc<Notify>)> {
        (!self.sessions.is_empty()).then(|| (self.interval, self.interval_shortened.clone()))
    }

    fn add(&mut self, session: ScannedSession<S>) {
        let interval = session.scan_interval();
        if self.sessions.is_empty() || interval < self.interval {
            self.interval = interval;
            self.interval_shortened.notify_one();
        }
        self.reserve();
        self.sessions.push(session);
    }

    /// Grows in small steps: a vector that doubles would leave as much memory again unused.
    fn reserve(&mut self) {
        let Self { sessions, .. } = self;
        if sessions.len() == sessions.capacity() {
            sessions.reserve_exact(16 + sessions.len() / 8);
        }
    }

    fn scan(&mut self) {
        let now = since_start();
        self.sessions.retain_mut(|session| {
            if session.view.is_orphaned() {
                return false;
            }
            session.scan(now);
            true
        });
        if self.sessions.len() < self.sessions.capacity() / 2 {
            self.sessions.shrink_to_fit();
        }
        // Usually the first session needs the current interval, which makes this cheap.
        if self.sessions.iter().all(|session| session.scan_interval() > self.interval) {
            let intervals = self.sessions.iter().map(ScannedSession::scan_interval);
            self.interval = intervals.min().unwrap_or_default();
        }
    }
}

impl<S> ScannedSession<S>
where
    S: Actor<Context = Context<S>> + Handler<ApplyTimeout>,
{
    pub fn new(
        session: WeakAddr<S>,
        info: Arc<SessionInfo>,
        view: ActivityView,
        rules: Arc<SessionRules>,
    ) -> Self {
        let state = TimeoutState::new(fastrand::f32(), since_start());
        let (activity, poll_count) = (SessionActivity::default(), view.poll_count());
        Self { session, info, view, rules, state, activity, poll_count }
    }

    fn scan_interval(&self) -> Duration {
        self.rules.timeouts.scan_interval()
    }

    /// Most sessions are idle. For those this reads only one word outside of the scanner's own memory.
    fn scan(&mut self, now: Duration) {
        let poll_count = self.view.poll_count();
        let has_changed = std::mem::replace(&mut self.poll_count, poll_count) != poll_count;
        if has_changed {
            self.activity = self.read_activity();
        }
        if let Some(action) = self.state.scan(self.activity, &self.rules.timeouts, now)
            && let Some(session) = self.session.upgrade()
        {
            session.do_send(ApplyTimeout(action));
        }
        if has_changed {
            self.info.set_idle(self.state.idle(now));
        }
    }

    fn read_activity(&self) -> SessionActivity {
        let Self { info, view, .. } = self;
        let side_activity = |side: Side| {
            let relayed = info.stats.from(side).bytes() as u32;
            SideActivity {
                relayed,
                received: relayed.wrapping_add(view.pong_bytes_from(side) as u32),
                pending: view.pending_to(side) as u32,
                pings: view.pings_to(side),
            }
        };
        SessionActivity {
            sides: Side::BOTH.map(side_activity),
            is_half_closed: info.stats.first_ending().is_some(),
            is_closing: view.is_closing(),
        }
    }
}

/// Returns the time since the start of this thread, which is smaller to store than an [`Instant`].
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
        task::{Context as TaskContext, Wake},
    };

    use actix::AsyncContext as _;
    use bytes::BytesMut;

    use super::*;
    use crate::{
        domain::{
            balance::backend::{Backend, Transport},
            session::{close_code::CloseCodes, timeouts::SessionTimeouts},
        },
        relay::{Tunnel, TunnelPeer, TunnelRules},
    };

    const SHORT_TIMEOUT: Duration = Duration::from_millis(80);

    /// An actor that ignores its timeouts.
    struct IdleActor;

    impl Actor for IdleActor {
        type Context = Context<Self>;
    }

    impl Handler<ApplyTimeout> for IdleActor {
        type Result = ();

        fn handle(&mut self, _: ApplyTimeout, _: &mut Self::Context) {}
    }

    thread_local! {
        static SCANNER: RefCell<TimeoutScanner<IdleActor>> = RefCell::default();
    }

    /// A tunnel and what the scanner knows of it.
    fn session(idle_timeout: Option<Duration>) -> (Tunnel, ScannedSession<IdleActor>) {
        let hour = Duration::from_secs(3600);
        let timeouts = SessionTimeouts {
            idle_timeout,
            write_timeout: None,
            half_closed_timeout: hour,
            close_timeout: hour,
            max_age: None,
            client_ping_interval: None,
            pod_ping_interval: None,
            ping_timeout: hour,
        };
        let rules = SessionRules { timeouts, tunnel: TunnelRules::default() };
        let backend = Backend {
            service: "default".into(),
            url: "http://pod:1".into(),
            address: "pod:1".into(),
            transport: Transport::Tcp,
        };
        let codes = CloseCodes::default();
        let info = SessionInfo::new([127, 0, 0, 1].into(), Arc::new(backend), codes);
        let peer = || TunnelPeer::new(tokio::io::duplex(1).0, BytesMut::new());
        let tunnel = Tunnel::new(peer(), peer(), &info.stats, &rules.tunnel);
        let view = tunnel.control.view();
        let actor = Context::<IdleActor>::new().address().downgrade();
        (tunnel, ScannedSession::new(actor, Arc::new(info), view, Arc::new(rules)))
    }

    #[test]
    fn the_interval_follows_the_sessions_that_are_open() {
        let (relaxed, urgent) = (session(None), session(Some(SHORT_TIMEOUT)));
        let relaxed_interval = relaxed.1.scan_interval();
        let mut scanner = TimeoutScanner::default();
        scanner.add(relaxed.1);
        assert_eq!(scanner.interval, relaxed_interval);
        scanner.add(urgent.1);
        assert_eq!(scanner.interval, SHORT_TIMEOUT / 8);
        scanner.scan();
        assert_eq!(scanner.interval, SHORT_TIMEOUT / 8);
        drop(urgent.0);
        scanner.scan();
        assert_eq!((scanner.sessions.len(), scanner.interval), (1, relaxed_interval));
        drop(relaxed.0);
        scanner.scan();
        assert!(scanner.next_scan().is_none());
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[actix_rt::test]
    async fn a_session_with_a_shorter_interval_brings_the_next_scan_forward() {
        let (relaxed, urgent) = (session(None), session(Some(SHORT_TIMEOUT)));
        let other = session(None);
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let mut cx = TaskContext::from_waker(&waker);
        SCANNER.with_borrow_mut(|scanner| scanner.add(relaxed.1));
        let mut run = pin!(TimeoutScanner::run(&SCANNER));
        assert!(run.as_mut().poll(&mut cx).is_pending());
        SCANNER.with_borrow_mut(|scanner| scanner.add(other.1));
        assert!(!woken.0.load(Relaxed), "the same interval changes nothing");
        SCANNER.with_borrow_mut(|scanner| scanner.add(urgent.1));
        assert!(woken.0.load(Relaxed));
        assert!(run.as_mut().poll(&mut cx).is_pending(), "until the shorter interval is over");
    }
}
