//! Bodies on their way through: requests' to pods, answers' to clients.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use hyper::{
    body::{Body as HyperBody, Frame, Incoming, SizeHint},
    client::conn::http1::SendRequest,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::timeout,
};

use super::idle::Idle;
use crate::{actors::session::SessionPermit, traffic::upstream::Body};

/// How long a pod may take to say 100 before the body is sent without it (RFC 9110 §10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the rest of an upload is taken from a client whose answer has come early.
const LINGER: Duration = Duration::from_secs(30);

/// A request's body on its way to a pod.
#[derive(Default)]
pub struct Upload {
    incoming: Option<Incoming>,
    /// Closed until the pod says 100: asking the client for its body is what makes hyper say it.
    gate: Option<Gate>,
    /// Told at the end of the body whether it came as it was announced.
    done: Option<oneshot::Sender<bool>>,
}

/// Opens when the pod says 100, or does not for too long.
pub struct Gate(LocalBoxFuture<'static, ()>);

impl Gate {
    /// Opened by `go_on`.
    pub fn new(go_on: Arc<Notify>) -> Self {
        let open = async move { drop(timeout(CONTINUE_TIMEOUT, go_on.notified()).await) };
        Self(open.boxed_local())
    }
}

impl Upload {
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
    pub fn hold(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    fn end(&mut self, whole: bool) {
        self.incoming = None;
        if let Some(done) = self.done.take() {
            let _ = done.send(whole);
        }
    }
}

impl Drop for Upload {
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

impl HyperBody for Upload {
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

/// An answer's body on its way to a client.
pub enum Outgoing {
    /// A pod's answer to a plain request.
    Download(Download),
    /// A pod's answer to a handshake.
    Rejection(Body),
    /// Our own.
    Text(Bytes),
}

/// A pod's answer, with the pod's connection and the place on the pod.
pub struct Download {
    incoming: Incoming,
    /// Kept for the next request once the answer is whole.
    connection: Option<(Idle, String, SendRequest<Upload>)>,
    _permit: SessionPermit,
}

impl Download {
    /// The rest of an answer. `connection` is kept at its end, `permit` given back.
    pub fn new(
        incoming: Incoming,
        connection: Option<(Idle, String, SendRequest<Upload>)>,
        permit: SessionPermit,
    ) -> Self {
        Self { incoming, connection, _permit: permit }
    }

    fn keep_connection(&mut self) {
        if let Some((idle, address, sender)) = self.connection.take() {
            idle.keep(address, sender);
        }
    }
}

impl Drop for Download {
    /// hyper does not ask for a body where there can be none.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.keep_connection();
        }
    }
}

impl HyperBody for Outgoing {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Download(download) => loop {
                match ready!(Pin::new(&mut download.incoming).poll_frame(cx)) {
                    Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                    // Trailers.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                    None => {
                        download.keep_connection();
                        return Poll::Ready(None);
                    }
                }
            },
            Self::Rejection(body) => body
                .as_mut()
                .poll_next(cx)
                .map_ok(Frame::data)
                .map_err(|error| error.to_string().into()),
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Download(download) => download.incoming.is_end_stream(),
            Self::Rejection(_) => false,
            Self::Text(text) => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Download(download) => download.incoming.size_hint(),
            Self::Rejection(_) => SizeHint::default(),
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
        }
    }
}
