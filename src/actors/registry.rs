//! Knows every live session.

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
    Actor, Addr, AsyncContext as _, Context, Handler, Message, MessageResult, ResponseFuture,
    Supervised, WeakRecipient,
};
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::session::CloseSession;
use crate::{
    domain::{lease::Backend, rebalance::Moves},
    relay::{TunnelStats, close::CloseCode},
};

/// How long nothing must have passed on a session that is moved.
const IDLE_FOR: Duration = Duration::from_secs(1);

/// How long a client that was moved is left alone.
const MOVED_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// What the rest of the program may know of a live session.
#[derive(Debug)]
pub struct SessionInfo {
    /// Unique in this process, counted from 1.
    pub id: u64,
    /// The client's address, as far as proxies in front are believed.
    pub client: IpAddr,
    /// Where its bytes go.
    pub backend: Arc<Backend>,
    /// When its tunnel opened.
    pub opened_at: Instant,
    /// Live figures of both directions.
    pub stats: Arc<TunnelStats>,
}

impl SessionInfo {
    /// A session that opens now.
    pub fn new(client: IpAddr, backend: Arc<Backend>) -> Self {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Relaxed) + 1;
        Self { id, client, backend, opened_at: Instant::now(), stats: Arc::default() }
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

/// Closes every session, and those that still open from now on.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct CloseAll(pub CloseSession);

/// Closes the youngest idle sessions of a backend, so that their clients come back elsewhere.
///
/// A client is moved at most once an hour, by its address.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct MoveSessions(pub Moves);

/// Answers once no session lives.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AwaitEmpty;

/// Holds an entry per live session.
#[derive(Default)]
pub struct RegistryActor {
    sessions: HashMap<u64, (Arc<SessionInfo>, WeakRecipient<CloseSession>)>,
    /// Set once the balancer goes down.
    closing: Option<CloseSession>,
    waiting_for_empty: Vec<oneshot::Sender<()>>,
    /// Clients that have been moved within the last [`MOVED_AGAIN_AFTER`].
    moved: HashMap<IpAddr, Instant>,
}

impl Actor for RegistryActor {
    type Context = Context<Self>;
}

impl Supervised for RegistryActor {}

impl Handler<SessionOpened> for RegistryActor {
    type Result = ();

    fn handle(&mut self, opened: SessionOpened, _: &mut Self::Context) {
        if let Some(close) = &self.closing {
            send(&opened.session, close);
        }
        self.sessions.insert(opened.info.id, (opened.info, opened.session));
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

impl Handler<CloseAll> for RegistryActor {
    type Result = MessageResult<CloseAll>;

    fn handle(&mut self, CloseAll(close): CloseAll, _: &mut Self::Context) -> Self::Result {
        for (_, session) in self.sessions.values() {
            send(session, &close);
        }
        self.closing = Some(close);
        MessageResult(())
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

impl Handler<MoveSessions> for RegistryActor {
    type Result = ();

    fn handle(&mut self, MoveSessions(moves): MoveSessions, ctx: &mut Self::Context) {
        let now = Instant::now();
        self.moved.retain(|_, at| now.duration_since(*at) < MOVED_AGAIN_AFTER);
        let on_it =
            self.sessions.values().map(|(info, _)| info).filter(|info| {
                *info.backend == *moves.from && !self.moved.contains_key(&info.client)
            });
        let mut youngest: Vec<&Arc<SessionInfo>> = on_it.collect();
        youngest.sort_unstable_by_key(|info| std::cmp::Reverse(info.id));
        // More than are wanted, because some of them will turn out to be busy.
        youngest.truncate(moves.count * 4);
        let candidates: Vec<(u64, u64)> =
            youngest.iter().map(|info| (info.id, info.stats.bytes())).collect();
        ctx.run_later(IDLE_FOR, move |registry, _| registry.move_idle(&candidates, &moves));
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
    /// Closes those of `candidates` (identifier, bytes) that have been idle since.
    fn move_idle(&mut self, candidates: &[(u64, u64)], moves: &Moves) {
        let mut moved = 0;
        for (id, bytes) in candidates {
            let Some((info, session)) = self.sessions.get(id) else { continue };
            if info.stats.bytes() != *bytes || self.moved.contains_key(&info.client) {
                continue;
            }
            if moved == moves.count {
                break;
            }
            send(
                session,
                &CloseSession {
                    to_client: CloseCode::SERVICE_RESTART,
                    to_pod: CloseCode::GOING_AWAY,
                    reason: "moved to another pod",
                },
            );
            self.moved.insert(info.client, Instant::now());
            moved += 1;
        }
        if moved > 0 {
            log::info!("{}: {moved} sessions are moved to emptier pods", moves.from.url);
        }
    }
}

fn send(session: &WeakRecipient<CloseSession>, close: &CloseSession) {
    if let Some(session) = session.upgrade() {
        session.do_send(close.clone());
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
