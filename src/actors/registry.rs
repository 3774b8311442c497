//! Knows every live session.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use actix::{Actor, Addr, Context, Handler, Message, MessageResult, ResponseFuture, WeakRecipient};
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::session::CloseSession;
use crate::{domain::lease::Backend, relay::TunnelStats};

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
}

impl Actor for RegistryActor {
    type Context = Context<Self>;
}

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
