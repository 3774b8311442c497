//! Closes sessions so that their clients reconnect: all of them at shutdown, those of a draining pod,
//! and a few of a pod that has more than others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{AsyncContext as _, Context, Handler, Message, MessageResponse};

use super::sessions::{Entry, RegistryActor};
use crate::{
    actors::session_info::SessionInfo,
    domain::{
        balance::{backend::Backend, rebalance::MovePlan},
        session::{departures::Departures, ending::Ending},
    },
};

/// How long a session must have been idle before the rebalancer moves it.
const MIN_IDLE: Duration = Duration::from_secs(1);

/// How long the rebalancer does not move the same client again.
const MOVE_COOLDOWN: Duration = Duration::from_secs(3600);

/// Sessions that are due within this time are closed together.
const TICK: Duration = Duration::from_millis(50);

/// Closes all sessions, and those that still open afterwards, spread evenly over a time.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DrainAll {
    /// Zero closes all at once.
    pub over: Duration,
}

/// Asks for the result of [`DrainAll`].
#[derive(Debug, Message)]
#[rtype(result = "Drained")]
pub struct CountDrained;

/// Answer to [`CountDrained`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, MessageResponse)]
pub struct Drained {
    /// Sessions that the drain has closed or has yet to close.
    pub sessions: usize,
    /// Sessions among them that are still live.
    pub live: usize,
}

/// Moves the sessions of a backend: closes them so that their clients reconnect to another one.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct MoveAll {
    pub from: Arc<Backend>,
    pub pace: MovePace,
}

/// How fast the sessions of a backend are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovePace {
    /// Spread evenly over this time, including sessions that still open.
    Over(Duration),
    /// All present sessions at once; a move that is in progress continues for later ones.
    AtOnce,
    /// Not at all; a move that is in progress stops.
    Never,
}

/// Closes the youngest idle sessions of a backend, so that their clients reconnect to another one.
///
/// Each client address is moved at most once an hour.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct MoveSessions(pub MovePlan);

impl Handler<DrainAll> for RegistryActor {
    type Result = ();

    fn handle(&mut self, DrainAll { over }: DrainAll, ctx: &mut Self::Context) {
        let all: Vec<u64> = self.sessions.keys().copied().collect();
        let (sessions, time) = (all.len(), humantime::format_duration(over));
        log::info!("shutdown: closing {sessions} sessions over {time}");
        self.shutdown = Some(Departures::new(&all, over, Instant::now(), fastrand::u64(..)));
        self.moving.clear();
        self.close_due(ctx);
    }
}

impl Handler<CountDrained> for RegistryActor {
    type Result = Drained;

    fn handle(&mut self, _: CountDrained, _: &mut Self::Context) -> Drained {
        let open = self.sessions.values().filter(|entry| !entry.closed_by_drain).count();
        Drained { sessions: self.drained + open, live: self.sessions.len() }
    }
}

impl Handler<MoveAll> for RegistryActor {
    type Result = ();

    fn handle(&mut self, MoveAll { from, pace }: MoveAll, ctx: &mut Self::Context) {
        if self.shutdown.is_some() {
            return;
        }
        let on_backend =
            self.sessions.values().filter(|entry| entry.info.backend == from && !entry.close_sent);
        let ids: Vec<u64> = on_backend.map(|entry| entry.info.id).collect();
        let log_move = |pace: &str| {
            log::info!("pod {}: moving {} sessions {pace}", from.address, ids.len());
        };
        match pace {
            MovePace::Over(over) => {
                log_move(&format!("over {}", humantime::format_duration(over)));
                let departures = Departures::new(&ids, over, Instant::now(), fastrand::u64(..));
                self.moving.insert(from, departures);
                self.close_due(ctx);
            }
            MovePace::AtOnce => {
                log_move("at once");
                ids.into_iter().for_each(|id| self.close(id, Ending::Moved));
            }
            MovePace::Never => {
                self.moving.remove(&from);
            }
        }
    }
}

impl Handler<MoveSessions> for RegistryActor {
    type Result = ();

    fn handle(&mut self, MoveSessions(moves): MoveSessions, ctx: &mut Self::Context) {
        let now = Instant::now();
        self.moved.retain(|_, at| now.duration_since(*at) < MOVE_COOLDOWN);
        let on_backend =
            self.sessions.values().map(|entry| &entry.info).filter(|info| {
                *info.backend == *moves.from && !self.moved.contains_key(&info.client)
            });
        let mut youngest: Vec<&Arc<SessionInfo>> = on_backend.collect();
        youngest.sort_unstable_by_key(|info| std::cmp::Reverse(info.id));
        // Some candidates will turn out to be busy.
        youngest.truncate(moves.count * 4);
        let candidates: Vec<(u64, u64)> =
            youngest.iter().map(|info| (info.id, info.stats.bytes())).collect();
        ctx.run_later(MIN_IDLE, move |registry, _| registry.move_idle(&candidates, &moves));
    }
}

impl RegistryActor {
    /// Closes the sessions that are due, and sets the timer for the next ones.
    pub(super) fn close_due(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        while let Some(id) = self.shutdown.as_mut().and_then(|all| all.take_due(now)) {
            if let Some(entry) = self.sessions.get_mut(&id) {
                entry.closed_by_drain = true;
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

    /// Closes those of `candidates` (id, bytes relayed so far) that have relayed nothing since.
    fn move_idle(&mut self, candidates: &[(u64, u64)], moves: &MovePlan) {
        let mut moved = 0;
        for (id, bytes) in candidates {
            let Some(Entry { info, close_sent: false, .. }) = self.sessions.get(id) else {
                continue;
            };
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
            log::info!(
                "pod {}: moving {moved} idle sessions to less loaded pods",
                moves.from.address
            );
        }
    }
}
