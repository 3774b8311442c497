//! One client connection: owns the direction from the client to the pod, and the session's end.

use std::sync::Arc;

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler,
    Message, fut::wrap_future,
};

use tokio::sync::Notify;

use super::{
    backend::BackendActor,
    ending::Ending,
    registry::{CloseSession, Registration, RegistryActor, SessionInfo},
    timeouts::{self, Act},
};
use crate::{
    domain::{
        balance::{health::EARLY_DEATH, lease::Lease},
        session::{
            admission::Ticket,
            timeouts::{Action, Cause, Leg, Loss, SessionTimeouts},
        },
    },
    relay::{Control, Direction, End, FirstEnd, Tunnel, TunnelPeer, TunnelRules, close::CloseCode},
    telemetry::counters::Counters,
};

/// Close codes of a pod that is not well: going away, internal error, service restart, try again
/// later (RFC 6455 §7.4.1 and the IANA registry).
const UNWELL: [u16; 4] = [1001, 1011, 1012, 1013];

/// What holds for a session as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRules {
    /// When it ends by itself.
    pub timeouts: SessionTimeouts,
    /// What may pass.
    pub tunnel: TunnelRules,
    /// What its client is told when it should come back.
    pub close_code: CloseCode,
}

/// The direction from the pod to the client has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PodSideEnded(pub End);

/// What a connection occupies, released by being dropped: first the places, then the bell is rung
/// for whoever waits for one.
pub struct SessionPermit {
    /// The place on the backend.
    pub lease: Lease,
    /// The place in the balancer, where places are limited.
    pub ticket: Option<Ticket>,
    /// Rung by being dropped.
    pub queue_waker: QueueWaker,
}

/// Tells the first in the queue, if there is a queue, that there may be room.
pub struct QueueWaker(pub Option<Arc<Notify>>);

impl Drop for QueueWaker {
    fn drop(&mut self) {
        if let Some(bell) = &self.0 {
            bell.notify_one();
        }
    }
}

/// A client connection past its handshake, paired with a [`BackendActor`].
///
/// Everything it holds is released by being dropped: its permit, its place in the registry, both
/// sockets.
pub struct SessionActor {
    info: Arc<SessionInfo>,
    control: Control,
    ends: [Option<End>; 2],
    /// Why we have ended it ourselves.
    closed_by_us: Option<Ending>,
    permit: SessionPermit,
    counters: Arc<Counters>,
    _registration: Registration,
}

impl SessionActor {
    /// Joins `client` and `pod` on the current thread.
    pub fn start(
        client: TunnelPeer,
        pod: TunnelPeer,
        info: SessionInfo,
        mut permit: SessionPermit,
        (registry, counters): (Arc<Addr<RegistryActor>>, Arc<Counters>),
        rules: &Arc<SessionRules>,
    ) {
        permit.lease.establish();
        let info = Arc::new(info);
        let Tunnel { up, down, control } = Tunnel::new(client, pod, &info.stats, &rules.tunnel);
        // The pumps go straight to their contexts: as fields they would cost every idle session
        // their room for good.
        Self::create(|ctx| {
            BackendActor::start(down, ctx.address());
            let session = ctx.address().downgrade();
            timeouts::watch(session.clone(), info.clone(), control.pulse(), rules.clone());
            ctx.spawn(wrap_future(up).map(|end, session: &mut Self, ctx| {
                session.direction_ended(Direction::Up, end, ctx);
            }));
            let registration = Registration::new(registry, info.clone(), session.recipient());
            Self {
                info,
                control,
                ends: [None, None],
                closed_by_us: None,
                permit,
                counters,
                _registration: registration,
            }
        });
    }

    fn direction_ended(&mut self, direction: Direction, end: End, ctx: &mut Context<Self>) {
        let by_sender = matches!(end, End::Eof | End::ReadFailed(_));
        if direction == Direction::Down && by_sender {
            self.judge_pod();
        }
        // Anything else has been passed on; the other direction goes on for a while.
        if matches!(end, End::Aborted) {
            self.control.abort();
        }
        self.ends[direction as usize] = Some(end);
        if self.ends.iter().all(Option::is_some) {
            ctx.stop();
        }
    }

    /// Tells of a pod, whose direction ends just now, that it has ended a session which it had
    /// taken a moment ago; and whether it has dropped it, or closed it for a reason of the
    /// application's.
    fn judge_pod(&self) {
        let SessionInfo { opened_at, stats, .. } = &*self.info;
        if self.closed_by_us.is_some() || opened_at.elapsed() >= EARLY_DEATH {
            return;
        }
        let is_unwell = || stats.down.close_code().is_some_and(|code| UNWELL.contains(&code));
        match stats.first_end() {
            Some(FirstEnd::Close(Direction::Down)) if !is_unwell() => {
                self.permit.lease.record_early_end();
            }
            Some(FirstEnd::Close(Direction::Down) | FirstEnd::Vanished(Direction::Down)) => {
                self.permit.lease.record_early_death();
            }
            _ => {}
        }
    }

    /// Closes it for a reason of ours, at the next frame boundary.
    fn close(&mut self, to_client: CloseCode, to_pod: CloseCode, why: Ending) {
        self.ends_by(why);
        self.control.close(to_client, to_pod, why.reason());
    }

    /// Lets it end as if one side had vanished.
    fn give_up(&mut self, leg: Leg, why: Ending) {
        self.ends_by(why);
        self.control.give_up(comes_from(leg), why.reason());
    }

    /// We end it, unless that has begun.
    fn ends_by(&mut self, why: Ending) {
        let first = self.info.stats.first_end().map(Ending::from);
        self.closed_by_us.get_or_insert(first.unwrap_or(why));
    }

    /// Why it has ended.
    fn ending(&self) -> Ending {
        let first = self.info.stats.first_end().map(Ending::from);
        // Who takes nothing has gone, even if nothing has been heard of that.
        let lost = |direction: Direction, leg: Leg| {
            let end = &self.ends[direction as usize];
            matches!(end, Some(End::WriteFailed(_))).then_some(Ending::Lost(leg))
        };
        self.closed_by_us
            .or(first)
            .or_else(|| lost(Direction::Down, Leg::Client))
            .or_else(|| lost(Direction::Up, Leg::Pod))
            .unwrap_or(Ending::Cut)
    }
}

impl Actor for SessionActor {
    type Context = Context<Self>;
}

impl Drop for SessionActor {
    fn drop(&mut self) {
        let ending = self.ending();
        self.counters.count_ending(ending.label());
        let SessionInfo { id, client, backend, stats, opened_at, .. } = &*self.info;
        log::log!(
            ending.level(),
            "session {id} of {client} on {} ended after {:.1?}, {ending}: \
             up {} bytes in {} messages ({:?}), down {} bytes in {} messages ({:?})",
            backend.url,
            opened_at.elapsed(),
            stats.up.bytes(),
            stats.up.messages(),
            self.ends[Direction::Up as usize],
            stats.down.bytes(),
            stats.down.messages(),
            self.ends[Direction::Down as usize],
        );
    }
}

impl Handler<CloseSession> for SessionActor {
    type Result = ();

    fn handle(&mut self, close: CloseSession, _: &mut Self::Context) {
        self.close(close.to_client, close.to_pod, close.why);
    }
}

impl Handler<Act> for SessionActor {
    type Result = ();

    fn handle(&mut self, Act(action): Act, _: &mut Self::Context) {
        let (restart, going) = (CloseCode::SERVICE_RESTART, CloseCode::GOING_AWAY);
        match action {
            Action::Ping(leg) => self.control.ping(comes_from(leg)),
            Action::Close(Cause::Age) => self.close(restart, restart, Ending::Age),
            Action::Close(Cause::Idle) => self.close(going, going, Ending::Idle),
            Action::GiveUp(leg, Loss::Silent) => self.give_up(leg, Ending::Silent(leg)),
            Action::GiveUp(leg, Loss::Stalled) => self.give_up(leg, Ending::Stalled(leg)),
            Action::Cut => self.control.abort(),
        }
    }
}

/// The direction from this peer.
fn comes_from(leg: Leg) -> Direction {
    match leg {
        Leg::Client => Direction::Up,
        Leg::Pod => Direction::Down,
    }
}

impl Handler<PodSideEnded> for SessionActor {
    type Result = ();

    fn handle(&mut self, PodSideEnded(end): PodSideEnded, ctx: &mut Self::Context) {
        self.direction_ended(Direction::Down, end, ctx);
    }
}
