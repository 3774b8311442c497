//! Sessions that are closed so that their clients come back: all of them when the balancer goes down,
//! those of a pod that drains, a few of a pod that is fuller than others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{AsyncContext as _, Context, Handler, Message, MessageResponse};

use super::{Live, RegistryActor, SessionInfo};
use crate::{
    actors::ending::Ending,
    domain::{
        balance::{lease::Backend, rebalance::Moves},
        session::departures::Departures,
    },
};

/// How long nothing must have passed on a session that is moved.
const IDLE_FOR: Duration = Duration::from_secs(1);

/// How long a client that was moved is left alone.
const MOVED_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// Closes that are due within this time go out together.
const TICK: Duration = Duration::from_millis(50);

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
    /// Those that are there, at once; moves that are under way go on.
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
        let left = self.sessions.values().filter(|live| !live.drained).count();
        Drained { sessions: self.drained + left, live: self.sessions.len() }
    }
}

impl Handler<MoveAll> for RegistryActor {
    type Result = ();

    fn handle(&mut self, MoveAll { from, pace }: MoveAll, ctx: &mut Self::Context) {
        if self.shutdown.is_some() {
            return;
        }
        let on_it = self.sessions.values().filter(|live| live.info.backend == from && !live.told);
        let ids: Vec<u64> = on_it.map(|live| live.info.id).collect();
        let told = |how: &str| {
            log::info!("{}: {} sessions are moved {how}", from.address, ids.len());
        };
        match pace {
            Pace::Over(over) => {
                told(&format!("over {over:?}"));
                let departures = Departures::new(&ids, over, Instant::now(), fastrand::u64(..));
                self.moving.insert(from, departures);
                self.close_due(ctx);
            }
            // Whoever comes later is the concern of a move that may be under way.
            Pace::AtOnce => {
                told("at once");
                ids.into_iter().for_each(|id| self.close(id, Ending::Moved));
            }
            Pace::Never => {
                self.moving.remove(&from);
            }
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
    pub(super) fn close_due(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        while let Some(id) = self.shutdown.as_mut().and_then(|all| all.take_due(now)) {
            if let Some(live) = self.sessions.get_mut(&id) {
                live.drained = true;
                self.drained += 1;
                self.close(id, Ending::Shutdown);
            }
        }
        let due = |moving: &mut Departures| std::iter::from_fn(|| moving.take_due(now)).collect();
        let moved: Vec<Vec<u64>> = self.moving.values_mut().map(due).collect();
        for id in moved.into_iter().flatten() {
            self.close(id, Ending::Moved);
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
            self.close(*id, Ending::Moved);
            moved += 1;
        }
        if moved > 0 {
            log::info!("{}: {moved} sessions are moved to emptier pods", moves.from.url);
        }
    }
}
