//! The pod's side of a session: drives the direction from the pod to the client.

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler,
    Message, fut::wrap_future,
};

use crate::relay::{Pump, PumpEnd};

/// Reports to the session that the direction from the pod to the client has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PodSideEnded(pub PumpEnd);

/// Drives the pump from the pod to the client. It is paired with the session actor `S` on the same
/// thread.
pub struct BackendActor<S>
where
    S: Actor<Context = Context<S>> + Handler<PodSideEnded>,
{
    /// Keeps the session alive if its own direction ends first.
    session: Addr<S>,
    end: Option<PumpEnd>,
}

impl<S> BackendActor<S>
where
    S: Actor<Context = Context<S>> + Handler<PodSideEnded>,
{
    pub(super) fn start(pump: Pump, session: Addr<S>) {
        Self::create(|ctx| {
            ctx.spawn(wrap_future(pump).map(|end, backend: &mut Self, ctx: &mut Context<Self>| {
                backend.end = Some(end);
                ctx.stop();
            }));
            Self { session, end: None }
        });
    }
}

impl<S> Actor for BackendActor<S>
where
    S: Actor<Context = Context<S>> + Handler<PodSideEnded>,
{
    type Context = Context<Self>;
}

impl<S> Drop for BackendActor<S>
where
    S: Actor<Context = Context<S>> + Handler<PodSideEnded>,
{
    /// Reports on drop, so that a panic here ends the whole session and not half of it.
    fn drop(&mut self) {
        self.session.do_send(PodSideEnded(self.end.take().unwrap_or(PumpEnd::Aborted)));
    }
}
