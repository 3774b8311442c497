//! The live sessions: lists them, counts them, and closes them on request.

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

use crate::{
    actors::ending::Ending,
    domain::{balance::backend::Backend, session::departures::Departures},
    relay::{TunnelStats, close::CloseCode},
};

/// A live session, as other parts of the process see it.
#[derive(Debug)]
pub struct SessionInfo {
    /// Unique in this process, counted from 1.
    pub id: u64,
    /// The client's address, from trusted proxies where there are any.
    pub client: IpAddr,
    pub backend: Arc<Backend>,
    /// Close code for its client when it should reconnect.
    pub close_code: CloseCode,
    pub opened_at: Instant,
    pub stats: Arc<TunnelStats>,
    /// Time of the last activity in milliseconds since `opened_at`, as of the last timeout scan.
    active_at: AtomicU64,
}

impl SessionInfo {
    /// Describes a session that opens now.
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

    /// Time without a byte in either direction, up to the last timeout scan of its worker.
    pub fn idle(&self) -> Duration {
        let active_at = Duration::from_millis(self.active_at.load(Relaxed));
        self.opened_at.elapsed().saturating_sub(active_at)
    }

    /// Records that no byte has passed for `idle`.
    pub(in crate::actors) fn set_idle(&self, idle: Duration) {
        let active_at = self.opened_at.elapsed().saturating_sub(idle);
        self.active_at.store(active_at.as_millis() as u64, Relaxed);
    }
}

/// A session has opened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionOpened {
    info: Arc<SessionInfo>,
    session: WeakRecipient<CloseSession>,
}

/// A session has ended.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionClosed {
    id: u64,
}

/// Asks for the number of live sessions.
#[derive(Debug, Message)]
#[rtype(result = "usize")]
pub struct CountSessions;

/// Asks for all live sessions, in the order in which they opened.
#[derive(Debug, Message)]
#[rtype(result = "Sessions")]
pub struct ListSessions;

/// Answer to [`ListSessions`].
#[derive(Debug, MessageResponse)]
pub struct Sessions(pub Vec<Arc<SessionInfo>>);

/// Closes one session on behalf of an operator. The answer is the session, if it is live.
#[derive(Debug, Message)]
#[rtype(result = "Option<Arc<SessionInfo>>")]
pub struct CloseById {
    pub id: u64,
}

/// Makes a session send a Close frame to both sides.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct CloseSession {
    /// Code for the client.
    pub to_client: CloseCode,
    /// Code for the pod.
    pub to_pod: CloseCode,
    /// Why; both frames carry its reason.
    pub why: Ending,
}

/// Asks for an answer as soon as there is no live session.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct WaitUntilEmpty;

pub(super) struct Entry {
    pub(super) info: Arc<SessionInfo>,
    session: WeakRecipient<CloseSession>,
    /// Whether it was sent a [`CloseSession`].
    pub(super) close_sent: bool,
    /// Whether the shutdown of the balancer closed it.
    pub(super) closed_by_drain: bool,
}

/// Keeps an entry for each live session.
#[derive(Default)]
pub struct RegistryActor {
    pub(super) sessions: HashMap<u64, Entry>,
    /// Sessions that the shutdown has yet to close; `None` before the shutdown.
    pub(super) shutdown: Option<Departures>,
    /// Number of sessions that the shutdown has closed.
    pub(super) drained: usize,
    /// Backends whose sessions are being moved.
    pub(super) moving: HashMap<Arc<Backend>, Departures>,
    pub(super) next_tick: Option<SpawnHandle>,
    waiting_for_empty: Vec<oneshot::Sender<()>>,
    /// Clients that the rebalancer has moved within the last hour.
    pub(super) moved: HashMap<IpAddr, Instant>,
}

impl Actor for RegistryActor {
    type Context = Context<Self>;

    /// Runs again after a panic, which loses the timer: sets it anew.
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
        let must_close = departures.map(join).is_some();
        let entry = Entry { info, session, close_sent: false, closed_by_drain: false };
        self.sessions.insert(entry.info.id, entry);
        if must_close {
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
        let mut all: Vec<_> = self.sessions.values().map(|entry| entry.info.clone()).collect();
        all.sort_unstable_by_key(|info| info.id);
        Sessions(all)
    }
}

impl Handler<CloseById> for RegistryActor {
    type Result = Option<Arc<SessionInfo>>;

    fn handle(&mut self, CloseById { id }: CloseById, _: &mut Self::Context) -> Self::Result {
        self.close(id, Ending::Operator);
        self.sessions.get(&id).map(|entry| entry.info.clone())
    }
}

impl Handler<WaitUntilEmpty> for RegistryActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: WaitUntilEmpty, _: &mut Self::Context) -> Self::Result {
        let (sender, empty) = oneshot::channel();
        if !self.sessions.is_empty() {
            self.waiting_for_empty.push(sender);
        }
        empty.map(drop).boxed_local()
    }
}

#[cfg(feature = "fault-hooks")]
impl Handler<crate::actors::supervision::Panic> for RegistryActor {
    type Result = ();

    fn handle(&mut self, _: crate::actors::supervision::Panic, _: &mut Self::Context) {
        panic!("panic requested by a test");
    }
}

impl RegistryActor {
    /// Closes a session, if it is live and was not sent a [`CloseSession`] before.
    pub(super) fn close(&mut self, id: u64, why: Ending) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        if !std::mem::replace(&mut entry.close_sent, true)
            && let Some(session) = entry.session.upgrade()
        {
            session.do_send(CloseSession {
                to_client: entry.info.close_code,
                to_pod: CloseCode::GOING_AWAY,
                why,
            });
        }
    }
}

/// A session's entry in the registry; dropping it removes the entry.
pub struct Registration {
    id: u64,
    registry: Arc<Addr<RegistryActor>>,
}

impl Registration {
    /// Adds an entry for a session that has opened.
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
