//! The pod's side of a session: owns the connection to the pod and the direction from it.

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, AsyncContext as _, Context, WeakAddr,
    fut::wrap_future,
};

use super::session::{PodSideEnded, SessionActor};
use crate::relay::{End, Pump};

/// Holds the awc connection to the chosen pod; paired with a [`SessionActor`] on the same thread.
pub struct BackendActor {
    session: WeakAddr<SessionActor>,
    end: Option<End>,
}

impl BackendActor {
    pub(super) fn start(pump: Pump, session: WeakAddr<SessionActor>) {
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
        if let Some(session) = self.session.upgrade() {
            session.do_send(PodSideEnded(self.end.take().unwrap_or(End::Aborted)));
        }
    }
}
