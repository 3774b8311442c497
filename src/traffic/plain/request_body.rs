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

/// Time that a pod can take to answer 100 before the body is sent without it (RFC 9110 §10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which the rest of a body is read and dropped after an early answer.
const LINGER: Duration = Duration::from_secs(30);

/// A request's body on its way to a pod.
#[derive(Default)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    /// Closed until the pod answers 100: hyper sends 100 to the client when the body is polled.
    gate: Option<ContinueGate>,
    /// Gets `true` when the body was complete, `false` when it was malformed or cut short.
    done: Option<oneshot::Sender<bool>>,
}

/// Opens when the pod answers 100, or after [`CONTINUE_TIMEOUT`].
pub struct ContinueGate(LocalBoxFuture<'static, ()>);

impl ContinueGate {
    /// Creates a gate that `continue_received` opens.
    pub fn new(continue_received: Arc<Notify>) -> Self {
        let open =
            async move { drop(timeout(CONTINUE_TIMEOUT, continue_received.notified()).await) };
        Self(open.boxed_local())
    }
}

impl RequestBody {
    /// Creates the body of a request whose head has been read.
    pub fn new(incoming: Incoming) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        Self { incoming, gate: None, done: None }
    }

    /// Reports at the end of the body whether it was complete.
    pub fn report_end(&mut self, done: oneshot::Sender<bool>) {
        self.done = Some(done);
    }

    /// Reads nothing from the client before `gate` opens.
    pub fn wait_for(&mut self, gate: ContinueGate) {
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
    /// Reads and drops the rest of the body for a while when the pod has answered early. Some clients
    /// read the answer only after they have sent everything, and closing a connection with unread
    /// bytes resets it (RFC 9112 §9.6).
    fn drop(&mut self) {
        let rest = self.incoming.take().filter(|_| self.gate.is_none());
        // There is no runtime while a worker thread ends.
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
                // Trailers are not forwarded.
                Some(Ok(_)) => {}
                // hyper then cuts the pod's connection, so the pod does not take the body for complete.
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
