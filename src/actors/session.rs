//! One client connection: drives the direction from the client to the pod, and ends the session.

use std::{cell::RefCell, sync::Arc};

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler,
    fut::wrap_future,
};
use tokio::sync::Notify;

use super::{
    backend::{BackendActor, PodSideEnded},
    registry::{CloseSession, Registration, RegistryActor},
    session_info::{SessionInfo, SessionRules},
    timeouts::{ApplyTimeout, ScannedSession, TimeoutScanner},
};
use crate::{
    domain::{
        balance::{health::EARLY_DEATH, lease::Lease},
        session::{admission::Ticket, ending::Ending, side::Side, timeouts::TimeoutAction},
    },
    relay::{PumpEnd, Tunnel, TunnelControl, TunnelPeer},
    telemetry::counters::Counters,
};

/// Close codes of a pod that is not well: going away, internal error, service restart, try again
/// later (RFC 6455 §7.4.1 and the IANA registry).
const UNWELL: [u16; 4] = [1001, 1011, 1012, 1013];

thread_local! {
    static SCANNER: RefCell<TimeoutScanner<SessionActor>> = RefCell::default();
}

/// The capacity that a connection occupies. Dropping it frees the capacity first and then wakes the
/// queue.
pub struct SessionPermit {
    /// The connection's share of the backend's capacity.
    pub lease: Lease,
    /// The session's share of the balancer's capacity. Plain requests have none.
    pub ticket: Option<Ticket>,
    pub queue_waker: QueueWaker,
}

/// Wakes the first client in the queue, if there is a queue, when it is dropped.
pub struct QueueWaker(pub Option<Arc<Notify>>);

impl Drop for QueueWaker {
    fn drop(&mut self) {
        if let Some(queue) = &self.0 {
            queue.notify_one();
        }
    }
}

/// A client connection after its handshake, paired with a [`BackendActor`].
///
/// Dropping it releases everything that it holds: its permit, its entry in the registry, both sockets.
pub struct SessionActor {
    info: Arc<SessionInfo>,
    control: TunnelControl,
    /// How the directions have ended, by the [`Side`] that they come from.
    ends: [Option<PumpEnd>; 2],
    /// Why the balancer has ended the session, if it has.
    ended_by_us: Option<Ending>,
    permit: SessionPermit,
    counters: Arc<Counters>,
    _registration: Registration,
}

impl SessionActor {
    /// Starts a session between `client` and `pod` on the current thread.
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
        let Tunnel { from_client, from_pod, control } =
            Tunnel::new(client, pod, &info.stats, &rules.tunnel);
        // The pumps are moved into the contexts of the actors at once: an actor that held its pump until
        // it starts would keep the memory of the empty field for the lifetime of the session.
        Self::create(|ctx| {
            BackendActor::start(from_pod, ctx.address());
            let session = ctx.address().downgrade();
            let (view, rules) = (control.view(), rules.clone());
            let scanned = ScannedSession::new(session.clone(), info.clone(), view, rules);
            TimeoutScanner::watch(&SCANNER, scanned);
            ctx.spawn(wrap_future(from_client).map(|end, session: &mut Self, ctx| {
                session.direction_ended(Side::Client, end, ctx);
            }));
            let registration = Registration::new(registry, info.clone(), session.recipient());
            Self {
                info,
                control,
                ends: [None, None],
                ended_by_us: None,
                permit,
                counters,
                _registration: registration,
            }
        });
    }

    fn direction_ended(&mut self, from: Side, end: PumpEnd, ctx: &mut Context<Self>) {
        let source_ended = matches!(end, PumpEnd::Eof | PumpEnd::ReadFailed(_));
        if from == Side::Pod && source_ended {
            self.report_early_death();
        }
        // All other ends are passed on to the other side, and the other direction may go on.
        if matches!(end, PumpEnd::Aborted) {
            self.control.abort();
        }
        self.ends[from as usize] = Some(end);
        if self.ends.iter().all(Option::is_some) {
            ctx.stop();
        }
    }

    /// Reports a pod that has ended a session which is only a moment old. Called when the pod's
    /// direction ends. It is reported as a failure unless the pod closed the session with a code that
    /// says the application wanted it.
    fn report_early_death(&self) {
        let SessionInfo { opened_at, stats, .. } = &*self.info;
        if self.ended_by_us.is_some() || opened_at.elapsed() >= EARLY_DEATH {
            return;
        }
        let is_unwell = || stats.from_pod.close_code().is_some_and(|code| UNWELL.contains(&code));
        match stats.first_ending() {
            Some(Ending::Closed(Side::Pod)) if !is_unwell() => {
                self.permit.lease.record_early_end();
            }
            Some(Ending::Closed(Side::Pod) | Ending::Lost(Side::Pod)) => {
                self.permit.lease.record_early_death();
            }
            _ => {}
        }
    }

    /// Ends the session for a reason of the balancer's own. An earlier ending takes precedence.
    fn end(&mut self, ending: Ending) {
        let first = self.info.stats.first_ending().unwrap_or(ending);
        self.ended_by_us.get_or_insert(first);
        self.control.end(ending, self.info.close_codes);
    }

    /// Returns why the session has ended.
    fn ending(&self) -> Ending {
        // A failed write shows that a side is dead even if nothing was read from it.
        let write_failed = |side: Side| {
            let end = &self.ends[side.other() as usize];
            matches!(end, Some(PumpEnd::WriteFailed(_))).then_some(Ending::Lost(side))
        };
        self.ended_by_us
            .or(self.info.stats.first_ending())
            .or_else(|| write_failed(Side::Client))
            .or_else(|| write_failed(Side::Pod))
            .unwrap_or(Ending::Aborted)
    }
}

impl Actor for SessionActor {
    type Context = Context<Self>;
}

impl Drop for SessionActor {
    fn drop(&mut self) {
        let ending = self.ending().row();
        self.counters.count_ending(ending.label);
        let SessionInfo { id, client, backend, stats, opened_at, .. } = &*self.info;
        let end = |side: Side| match &self.ends[side as usize] {
            Some(end) => end as &dyn std::fmt::Display,
            None => &"not ended",
        };
        log::log!(
            ending.level,
            "session {id} of {client} on {} ended after {:.1?}: {} (client sent {} bytes in {} \
             messages, {}; pod sent {} bytes in {} messages, {})",
            backend.url,
            opened_at.elapsed(),
            ending.reason,
            stats.from_client.bytes(),
            stats.from_client.messages(),
            end(Side::Client),
            stats.from_pod.bytes(),
            stats.from_pod.messages(),
            end(Side::Pod),
        );
    }
}

impl Handler<CloseSession> for SessionActor {
    type Result = ();

    fn handle(&mut self, CloseSession(ending): CloseSession, _: &mut Self::Context) {
        self.end(ending);
    }
}

impl Handler<ApplyTimeout> for SessionActor {
    type Result = ();

    fn handle(&mut self, ApplyTimeout(action): ApplyTimeout, _: &mut Self::Context) {
        match action {
            TimeoutAction::Ping(side) => self.control.ping(side),
            TimeoutAction::End(ending) => self.end(ending),
            TimeoutAction::Abort => self.control.abort(),
        }
    }
}

impl Handler<PodSideEnded> for SessionActor {
    type Result = ();

    fn handle(&mut self, PodSideEnded(end): PodSideEnded, ctx: &mut Self::Context) {
        self.direction_ended(Side::Pod, end, ctx);
    }
}
