//! The live sessions: lists them, counts them, and closes them on request.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Instant};

use actix::{
    Actor, Addr, Context, Handler, Message, MessageResponse, ResponseFuture, SpawnHandle,
    Supervised, WeakRecipient,
};
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use crate::{
    actors::session_info::SessionInfo,
    domain::{
        balance::backend::Backend,
        session::{departures::Departures, ending::Ending},
    },
};

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

/// Ends a session with the Close frames that the table of [endings](Ending) has for it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct CloseSession(pub Ending);

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
    pub(super) fn close(&mut self, id: u64, ending: Ending) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        if !std::mem::replace(&mut entry.close_sent, true)
            && let Some(session) = entry.session.upgrade()
        {
            session.do_send(CloseSession(ending));
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
