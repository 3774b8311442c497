//! Knows every live session.

mod departure;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::{
    Actor, Addr, Context, Handler, Message, MessageResponse, ResponseFuture, SpawnHandle,
    Supervised, WeakRecipient,
};
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

pub use self::departure::{CountDrained, DrainAll, Drained, MoveAll, MoveSessions, Pace};
use super::{ending::Ending, session::CloseSession};
use crate::{
    domain::{balance::lease::Backend, session::departures::Departures},
    relay::{TunnelStats, close::CloseCode},
};

/// What the rest of the program may know of a live session.
#[derive(Debug)]
pub struct SessionInfo {
    /// Unique in this process, counted from 1.
    pub id: u64,
    /// The client's address, as far as proxies in front are believed.
    pub client: IpAddr,
    /// Where its bytes go.
    pub backend: Arc<Backend>,
    /// What its client is told when it should come back.
    pub close_code: CloseCode,
    /// When its tunnel opened.
    pub opened_at: Instant,
    /// Live figures of both directions.
    pub stats: Arc<TunnelStats>,
    /// As it was seen last, in milliseconds.
    active_at: AtomicU64,
}

impl SessionInfo {
    /// A session that opens now.
    pub fn new(client: IpAddr, backend: Arc<Backend>, close_code: CloseCode) -> Self {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Relaxed) + 1;
        Self {
            id,
            client,
            backend,
            close_code,
            opened_at: Instant::now(),
            stats: Arc::default(),
            active_at: AtomicU64::new(0),
        }
    }

    /// How long nothing had passed when its worker looked last, a moment ago.
    pub fn idle(&self) -> Duration {
        let active_at = Duration::from_millis(self.active_at.load(Relaxed));
        self.opened_at.elapsed().saturating_sub(active_at)
    }

    /// Nothing has passed for this long, now.
    pub(super) fn note_idle(&self, idle: Duration) {
        let active_at = self.opened_at.elapsed().saturating_sub(idle);
        self.active_at.store(active_at.as_millis() as u64, Relaxed);
    }
}

/// A session's tunnel is open.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionOpened {
    info: Arc<SessionInfo>,
    session: WeakRecipient<CloseSession>,
}

/// A session is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionClosed {
    id: u64,
}

/// Asks how many sessions live.
#[derive(Debug, Message)]
#[rtype(result = "usize")]
pub struct CountSessions;

/// Asks for every live session, in the order in which they opened.
#[derive(Debug, Message)]
#[rtype(result = "Sessions")]
pub struct ListSessions;

/// Answer to [`ListSessions`].
#[derive(Debug, MessageResponse)]
pub struct Sessions(pub Vec<Arc<SessionInfo>>);

/// Closes one session; answers with it, if it lives.
#[derive(Debug, Message)]
#[rtype(result = "Option<Arc<SessionInfo>>")]
pub struct CloseOne {
    /// Its identifier.
    pub id: u64,
}

/// Answers once no session lives.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AwaitEmpty;

/// A live session.
struct Live {
    info: Arc<SessionInfo>,
    session: WeakRecipient<CloseSession>,
    /// It has been told to close.
    told: bool,
    /// It counts among those that the drain of the balancer has closed.
    drained: bool,
}

/// Holds an entry per live session.
#[derive(Default)]
pub struct RegistryActor {
    sessions: HashMap<u64, Live>,
    /// Set once the balancer goes down.
    shutdown: Option<Departures>,
    /// Sessions that have been closed by that.
    drained: usize,
    /// Backends whose sessions are moved away.
    moving: HashMap<Arc<Backend>, Departures>,
    next_tick: Option<SpawnHandle>,
    waiting_for_empty: Vec<oneshot::Sender<()>>,
    /// Clients that have been moved within the last hour.
    moved: HashMap<IpAddr, Instant>,
}

impl Actor for RegistryActor {
    type Context = Context<Self>;

    /// Whoever has to go still has to after a restart, which loses the timer.
    fn started(&mut self, ctx: &mut Self::Context) {
        self.next_tick = None;
        self.close_due(ctx);
    }
}

impl Supervised for RegistryActor {}

impl Handler<SessionOpened> for RegistryActor {
    type Result = ();

    fn handle(&mut self, opened: SessionOpened, ctx: &mut Self::Context) {
        let SessionOpened { info, session } = opened;
        let departures = self.shutdown.as_mut().or_else(|| self.moving.get_mut(&info.backend));
        let join = |departures: &mut Departures| {
            departures.join(info.id, Instant::now(), fastrand::u64(..));
        };
        let must_go = departures.map(join).is_some();
        self.sessions.insert(info.id, Live { info, session, told: false, drained: false });
        if must_go {
            self.close_due(ctx);
        }
    }
}

impl Handler<SessionClosed> for RegistryActor {
    type Result = ();

    fn handle(&mut self, SessionClosed { id }: SessionClosed, _: &mut Self::Context) {
        self.sessions.remove(&id);
        if self.sessions.is_empty() {
            for waiting in self.waiting_for_empty.drain(..) {
                let _ = waiting.send(());
            }
        }
    }
}

impl Handler<CountSessions> for RegistryActor {
    type Result = usize;

    fn handle(&mut self, _: CountSessions, _: &mut Self::Context) -> usize {
        self.sessions.len()
    }
}

impl Handler<ListSessions> for RegistryActor {
    type Result = Sessions;

    fn handle(&mut self, _: ListSessions, _: &mut Self::Context) -> Sessions {
        let mut all: Vec<_> = self.sessions.values().map(|live| live.info.clone()).collect();
        all.sort_unstable_by_key(|info| info.id);
        Sessions(all)
    }
}

impl Handler<CloseOne> for RegistryActor {
    type Result = Option<Arc<SessionInfo>>;

    fn handle(&mut self, CloseOne { id }: CloseOne, _: &mut Self::Context) -> Self::Result {
        self.close(id, Ending::Operator);
        self.sessions.get(&id).map(|live| live.info.clone())
    }
}

impl Handler<AwaitEmpty> for RegistryActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: AwaitEmpty, _: &mut Self::Context) -> Self::Result {
        let (sender, empty) = oneshot::channel();
        if !self.sessions.is_empty() {
            self.waiting_for_empty.push(sender);
        }
        empty.map(drop).boxed_local()
    }
}

#[cfg(feature = "fault-hooks")]
impl Handler<super::supervision::Panic> for RegistryActor {
    type Result = ();

    fn handle(&mut self, _: super::supervision::Panic, _: &mut Self::Context) {
        panic!("as it was told to");
    }
}

impl RegistryActor {
    /// Closes a session, if it lives and has not been told to close before.
    fn close(&mut self, id: u64, why: Ending) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        if !std::mem::replace(&mut live.told, true)
            && let Some(session) = live.session.upgrade()
        {
            session.do_send(CloseSession {
                to_client: live.info.close_code,
                to_pod: CloseCode::GOING_AWAY,
                why,
            });
        }
    }
}

/// A session's place in the registry, given up by being dropped.
pub struct Registration {
    id: u64,
    registry: Arc<Addr<RegistryActor>>,
}

impl Registration {
    /// Enters a session whose tunnel is open.
    pub fn new(
        registry: Arc<Addr<RegistryActor>>,
        info: Arc<SessionInfo>,
        session: WeakRecipient<CloseSession>,
    ) -> Self {
        let id = info.id;
        registry.do_send(SessionOpened { info, session });
        Self { id, registry }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.do_send(SessionClosed { id: self.id });
    }
}
