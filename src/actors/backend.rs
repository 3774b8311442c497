//! The pod's side of a session: drives the direction from the pod to the client.

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, AsyncContext as _, Context,
    fut::wrap_future,
};

use super::session::{PodSideEnded, SessionActor};
use crate::relay::{End, Pump};

/// Drives the pump from the pod to the client; paired with a [`SessionActor`] on the same thread.
pub struct BackendActor {
    /// Keeps it alive when its own direction has ended first.
    session: Addr<SessionActor>,
    end: Option<End>,
}

impl BackendActor {
    pub(super) fn start(pump: Pump, session: Addr<SessionActor>) {
        Self::create(|ctx| {
            ctx.spawn(wrap_future(pump).map(|end, backend: &mut Self, ctx: &mut Context<Self>| {
                backend.end = Some(end);
                ctx.stop();
            }));
            Self { session, end: None }
        });
    }
}

impl Actor for BackendActor {
    type Context = Context<Self>;
}

impl Drop for BackendActor {
    /// Told on drop, so that a panic here ends the session instead of leaving half of one.
    fn drop(&mut self) {
        self.session.do_send(PodSideEnded(self.end.take().unwrap_or(End::Aborted)));
    }
}
