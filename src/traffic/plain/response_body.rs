//! The body of a response on its way to the client.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::SendRequest,
};

use super::{idle::IdleConnections, request_body::RequestBody, server_io::AnswerInProgress};
use crate::actors::session::SessionPermit;

/// A body, and the mark that its request is being answered until it has been written.
pub struct ResponseBody {
    content: Content,
    _in_progress: AnswerInProgress,
}

/// What the client gets.
pub enum Content {
    /// The body of a pod's answer.
    Pod(PodBody),
    /// The text of a refusal.
    Text(Bytes),
}

impl ResponseBody {
    pub fn new(content: Content, in_progress: AnswerInProgress) -> Self {
        Self { content, _in_progress: in_progress }
    }
}

/// The body of a pod's answer. Holds the pod's connection and the permit until its end.
pub struct PodBody {
    incoming: Incoming,
    /// Kept for the next request when the body is complete.
    connection: Option<(IdleConnections, String, SendRequest<RequestBody>)>,
    _permit: SessionPermit,
}

impl PodBody {
    /// Creates the body of an answer whose head has been read. `connection` is kept for reuse, and
    /// where to keep it.
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

impl Drop for PodBody {
    /// hyper does not poll a body that is known to be empty.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.keep_connection();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.get_mut().content {
            Content::Pod(body) => loop {
                match ready!(Pin::new(&mut body.incoming).poll_frame(cx)) {
                    Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                    // Trailers are not forwarded.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => {
                        body.keep_connection();
                        return Poll::Ready(None);
                    }
                }
            },
            Content::Text(text) if text.is_empty() => Poll::Ready(None),
            Content::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Pod(body) => body.incoming.is_end_stream(),
            Content::Text(text) => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Pod(body) => body.incoming.size_hint(),
            Content::Text(text) => SizeHint::with_exact(text.len() as u64),
        }
    }
}
