//! The body of a plain request on its way to the pod.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use hyper::body::{Body as HyperBody, Frame, Incoming, SizeHint};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::timeout,
};

/// How long a pod may take to say 100 before the body is sent without it (RFC 9110 §10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the rest of an upload is taken from a client whose answer has come early.
const LINGER: Duration = Duration::from_secs(30);

/// A request's body on its way to a pod.
#[derive(Default)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    /// Closed until the pod says 100: asking the client for its body is what makes hyper say it.
    gate: Option<ContinueGate>,
    /// Told at the end of the body whether it came as it was announced.
    done: Option<oneshot::Sender<bool>>,
}

/// Opens when the pod says 100, or does not for too long.
pub struct ContinueGate(LocalBoxFuture<'static, ()>);

impl ContinueGate {
    /// Opened by `go_on`.
    pub fn new(go_on: Arc<Notify>) -> Self {
        let open = async move { drop(timeout(CONTINUE_TIMEOUT, go_on.notified()).await) };
        Self(open.boxed_local())
    }
}

impl RequestBody {
    /// What is still to come of a request.
    pub fn new(incoming: Incoming) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        Self { incoming, gate: None, done: None }
    }

    /// To be told at the end of the body whether it came as it was announced.
    pub fn tell(&mut self, done: oneshot::Sender<bool>) {
        self.done = Some(done);
    }

    /// Nothing is asked of the client before `gate` opens.
    pub fn hold(&mut self, gate: ContinueGate) {
        self.gate = Some(gate);
    }

    fn end(&mut self, whole: bool) {
        self.incoming = None;
        if let Some(done) = self.done.take() {
            let _ = done.send(whole);
        }
    }
}

impl Drop for RequestBody {
    /// When a pod answers before it has read everything, its answer must still reach a client that
    /// reads only after it has sent all: what is left is taken from it for a while, because a
    /// connection that is closed with bytes unread is reset (RFC 9112 §9.6).
    fn drop(&mut self) {
        let rest = self.incoming.take().filter(|_| self.gate.is_none());
        // A worker that is torn down has neither timers nor anybody to wait for.
        if let Some(mut rest) = rest.filter(|_| Handle::try_current().is_ok()) {
            let drain = async move {
                while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await {}
            };
            actix_rt::spawn(timeout(LINGER, drain));
        }
    }
}

impl HyperBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            ready!(gate.0.as_mut().poll(cx));
            this.gate = None;
        }
        while let Some(incoming) = &mut this.incoming {
            match ready!(Pin::new(incoming).poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                // Trailers.
                Some(Ok(_)) => {}
                // hyper cuts the connection then, so that the pod does not take it for whole.
                Some(Err(error)) => {
                    this.end(false);
                    return Poll::Ready(Some(Err(error)));
                }
                None => this.end(true),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(HyperBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.incoming.as_ref().map(HyperBody::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}
