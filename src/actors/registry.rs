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
    Actor, Addr, AsyncContext as _, Context, Handler, Message, MessageResponse, ResponseFuture,
    SpawnHandle, WeakRecipient,
};
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::session::CloseSession;
use crate::{
    domain::{lease::Backend, rebalance::Moves, spread::Departures},
    relay::{TunnelStats, close::CloseCode},
};

/// How long nothing must have passed on a session that is moved.
const IDLE_FOR: Duration = Duration::from_secs(1);

/// How long a client that was moved is left alone.
const MOVED_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// Closes that are due within this time go out together.
const TICK: Duration = Duration::from_millis(50);

/// What clients and pods are told in Close frames.
const SHUTTING_DOWN: &str = "balancer is shutting down";
const MOVED: &str = "moved to another pod";
const BY_OPERATOR: &str = "closed by an operator";

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
}

impl SessionInfo {
    /// A session that opens now.
    pub fn new(client: IpAddr, backend: Arc<Backend>, close_code: CloseCode) -> Self {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Relaxed) + 1;
        let (opened_at, stats) = (Instant::now(), Arc::default());
        Self { id, client, backend, close_code, opened_at, stats }
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

/// Closes every session, and those that still open from now on, spread over a time.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DrainAll {
    /// The time; zero means all at once.
    pub over: Duration,
}

/// Asks what became of [`DrainAll`].
#[derive(Debug, Message)]
#[rtype(result = "Drained")]
pub struct CountDrained;

/// Answer to [`CountDrained`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, MessageResponse)]
pub struct Drained {
    /// Sessions that have been closed by the drain, and those whose turn has yet to come.
    pub sessions: usize,
    /// Those among them that still live.
    pub live: usize,
}

/// Says whether the sessions of a backend are closed, so that their clients come back elsewhere.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct MoveAll {
    /// The backend.
    pub from: Arc<Backend>,
    /// How fast.
    pub pace: Pace,
}

/// How fast sessions are moved away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Those that are there and those that still open, spread over this time.
    Over(Duration),
    /// Those that are there, at once.
    AtOnce,
    /// They stay, and moves that are under way end.
    Never,
}

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

/// A live session.
struct Live {
    info: Arc<SessionInfo>,
    session: WeakRecipient<CloseSession>,
    /// It has been told to close.
    told: bool,
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
    /// Clients that have been moved within the last [`MOVED_AGAIN_AFTER`].
    moved: HashMap<IpAddr, Instant>,
}

impl Actor for RegistryActor {
    type Context = Context<Self>;
}

impl Handler<SessionOpened> for RegistryActor {
    type Result = ();

    fn handle(&mut self, opened: SessionOpened, ctx: &mut Self::Context) {
        let SessionOpened { info, session } = opened;
        let departures = self.shutdown.as_mut().or_else(|| self.moving.get_mut(&info.backend));
        let must_go = departures.map(|departures| {
            departures.join(info.id, Instant::now(), fastrand::u64(..));
        });
        self.sessions.insert(info.id, Live { info, session, told: false });
        if must_go.is_some() {
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
        self.close(id, BY_OPERATOR);
        self.sessions.get(&id).map(|live| live.info.clone())
    }
}

impl Handler<DrainAll> for RegistryActor {
    type Result = ();

    fn handle(&mut self, DrainAll { over }: DrainAll, ctx: &mut Self::Context) {
        let all: Vec<u64> = self.sessions.keys().copied().collect();
        log::info!("{} sessions are closed over {over:?}", all.len());
        self.shutdown = Some(Departures::new(&all, over, Instant::now(), fastrand::u64(..)));
        self.moving.clear();
        self.close_due(ctx);
    }
}

impl Handler<CountDrained> for RegistryActor {
    type Result = Drained;

    fn handle(&mut self, _: CountDrained, _: &mut Self::Context) -> Drained {
        let untold = self.sessions.values().filter(|live| !live.told).count();
        Drained { sessions: self.drained + untold, live: self.sessions.len() }
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

impl Handler<MoveAll> for RegistryActor {
    type Result = ();

    fn handle(&mut self, MoveAll { from, pace }: MoveAll, ctx: &mut Self::Context) {
        if self.shutdown.is_some() {
            return;
        }
        self.moving.remove(&from);
        let over = match pace {
            Pace::Over(time) => time,
            Pace::AtOnce => Duration::ZERO,
            Pace::Never => return,
        };
        let on_it = self.sessions.values().filter(|live| live.info.backend == from && !live.told);
        let ids: Vec<u64> = on_it.map(|live| live.info.id).collect();
        log::info!("{}: {} sessions are moved over {over:?}", from.url, ids.len());
        let departures = Departures::new(&ids, over, Instant::now(), fastrand::u64(..));
        self.moving.insert(from.clone(), departures);
        self.close_due(ctx);
        if pace == Pace::AtOnce {
            self.moving.remove(&from);
        }
    }
}

impl Handler<MoveSessions> for RegistryActor {
    type Result = ();

    fn handle(&mut self, MoveSessions(moves): MoveSessions, ctx: &mut Self::Context) {
        let now = Instant::now();
        self.moved.retain(|_, at| now.duration_since(*at) < MOVED_AGAIN_AFTER);
        let on_it =
            self.sessions.values().map(|live| &live.info).filter(|info| {
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

impl RegistryActor {
    /// Closes the sessions whose time has come, and comes back for the next.
    fn close_due(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        while let Some(id) = self.shutdown.as_mut().and_then(|all| all.take_due(now)) {
            self.drained += usize::from(self.close(id, SHUTTING_DOWN));
        }
        let due = |moving: &mut Departures| std::iter::from_fn(|| moving.take_due(now)).collect();
        let moved: Vec<Vec<u64>> = self.moving.values_mut().map(due).collect();
        for id in moved.into_iter().flatten() {
            self.close(id, MOVED);
        }
        if let Some(tick) = self.next_tick.take() {
            ctx.cancel_future(tick);
        }
        let next = self.shutdown.iter().chain(self.moving.values());
        self.next_tick = next.filter_map(Departures::next_due).min().map(|due| {
            let wait = due.saturating_duration_since(now).max(TICK);
            ctx.run_later(wait, Self::close_due)
        });
    }

    /// Closes a session, unless that has been done. Says whether it lives.
    fn close(&mut self, id: u64, reason: &'static str) -> bool {
        let Some(live) = self.sessions.get_mut(&id) else { return false };
        if !std::mem::replace(&mut live.told, true)
            && let Some(session) = live.session.upgrade()
        {
            session.do_send(CloseSession {
                to_client: live.info.close_code,
                to_pod: CloseCode::GOING_AWAY,
                reason,
            });
        }
        true
    }

    /// Closes those of `candidates` (identifier, bytes) that have been idle since.
    fn move_idle(&mut self, candidates: &[(u64, u64)], moves: &Moves) {
        let mut moved = 0;
        for (id, bytes) in candidates {
            let Some(Live { info, told: false, .. }) = self.sessions.get(id) else { continue };
            if info.stats.bytes() != *bytes || self.moved.contains_key(&info.client) {
                continue;
            }
            if moved == moves.count {
                break;
            }
            self.moved.insert(info.client, Instant::now());
            self.close(*id, MOVED);
            moved += 1;
        }
        if moved > 0 {
            log::info!("{}: {moved} sessions are moved to emptier pods", moves.from.url);
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
