//! The body of a response on its way to the client.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    body::{Body as HyperBody, Frame, Incoming, SizeHint},
    client::conn::http1::SendRequest,
};

use super::{idle::IdleConnections, request_body::RequestBody};
use crate::{actors::session::SessionPermit, traffic::upstream::Body};

/// An answer's body on its way to a client.
pub enum ResponseBody {
    /// A pod's answer to a plain request.
    PodResponseBody(PodResponseBody),
    /// A pod's answer to a handshake.
    Rejection(Body),
    /// Our own.
    Text(Bytes),
}

/// A pod's answer, with the pod's connection and the place on the pod.
pub struct PodResponseBody {
    incoming: Incoming,
    /// Kept for the next request once the answer is whole.
    connection: Option<(IdleConnections, String, SendRequest<RequestBody>)>,
    _permit: SessionPermit,
}

impl PodResponseBody {
    /// The rest of an answer. `connection` is kept at its end, `permit` given back.
    pub fn new(
        incoming: Incoming,
        connection: Option<(IdleConnections, String, SendRequest<RequestBody>)>,
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

impl Drop for PodResponseBody {
    /// hyper does not ask for a body where there can be none.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.keep_connection();
        }
    }
}

impl HyperBody for ResponseBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::PodResponseBody(download) => loop {
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
            Self::PodResponseBody(download) => download.incoming.is_end_stream(),
            Self::Rejection(_) => false,
            Self::Text(text) => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::PodResponseBody(download) => download.incoming.size_hint(),
            Self::Rejection(_) => SizeHint::default(),
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
        }
    }
}
