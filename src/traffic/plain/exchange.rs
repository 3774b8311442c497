//! One plain request to one pod, up to the head of its answer.

use std::{sync::Arc, time::Duration};

use actix_http::RequestHead;
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

use super::{
    convert::to_hyper,
    idle::IdleConnections,
    request_body::{ContinueGate, RequestBody},
    response_body::PodBody,
};
use crate::{
    actors::session::SessionPermit,
    domain::balance::backend::Backend,
    relay::Io,
    traffic::{
        refusal::Refusal,
        routing::RoutedRequest,
        upstream::{UpstreamConnector, UpstreamError},
    },
};

/// Opens an HTTP connection to `backend`.
///
/// # Errors
/// The pod cannot be reached.
pub async fn connect(
    connector: &UpstreamConnector,
    backend: &Backend,
) -> Result<SendRequest<RequestBody>, UpstreamError> {
    let io: Box<dyn Io> = connector.connect(backend).await?;
    let broken = |error: hyper::Error| UpstreamError::Failed(describe(&error));
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    actix_rt::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!("connection to a pod ended: {}", describe(&error));
        }
    });
    Ok(sender)
}

/// Returns the request head for the pod. `length` is the length of the body, `None` for a body that
/// is sent in chunks.
///
/// # Errors
/// [`Refusal::Target`]: hyper cannot represent the target.
pub fn head(
    request: &RequestHead,
    routed: &RoutedRequest<'_>,
    backend: &Backend,
    length: Option<u64>,
) -> Result<hyper::http::request::Parts, Refusal> {
    let mut head = hyper::Request::builder()
        .method(request.method.as_str())
        .uri(routed.target.as_str())
        .body(())
        .map_err(|_| Refusal::Target(request.uri.to_string()))?
        .into_parts()
        .0;
    head.headers = to_hyper(&routed.headers(backend));
    if !head.headers.contains_key(hyper::header::HOST)
        && let Ok(host) = backend.host().parse()
    {
        head.headers.insert(hyper::header::HOST, host);
    }
    match length {
        Some(length) if head.headers.contains_key(hyper::header::CONTENT_LENGTH) => {
            head.headers.insert(hyper::header::CONTENT_LENGTH, length.into());
        }
        Some(_) => {}
        None => {
            head.headers.remove(hyper::header::CONTENT_LENGTH);
            let chunked = hyper::header::HeaderValue::from_static("chunked");
            head.headers.insert(hyper::header::TRANSFER_ENCODING, chunked);
        }
    }
    Ok(head)
}

type Sent = Result<hyper::Response<Incoming>, TrySendError<hyper::Request<RequestBody>>>;

/// A request that is being sent, and its answer.
pub struct Exchange {
    response: LocalBoxFuture<'static, Sent>,
    sender: SendRequest<RequestBody>,
    permit: SessionPermit,
    /// Receives whether the client sent its whole body.
    uploaded: oneshot::Receiver<bool>,
    head_timeout: Duration,
    reuse: Option<IdleConnections>,
}

/// Why an exchange gave no answer, and the parts that can be used again.
pub struct ExchangeFailure {
    pub error: UpstreamError,
    /// Returned, so that it can be released or used for the next pod.
    pub permit: SessionPermit,
    /// The body, when nothing of the request was sent.
    pub unsent: Option<RequestBody>,
    /// The client failed, not the pod.
    pub client_failed: bool,
    /// The pod has received the request and answered it, so it must not be repeated.
    pub was_answered: bool,
}

impl Exchange {
    /// Starts to send `request` over `sender`.
    pub fn start(
        routed: &RoutedRequest<'_>,
        mut sender: SendRequest<RequestBody>,
        permit: SessionPermit,
        mut request: hyper::Request<RequestBody>,
        expects_continue: bool,
    ) -> Self {
        let (done, uploaded) = oneshot::channel();
        request.body_mut().report_end(done);
        if expects_continue {
            let continue_received = Arc::<Notify>::default();
            request.body_mut().wait_for(ContinueGate::new(continue_received.clone()));
            hyper::ext::on_informational(&mut request, move |interim| {
                if interim.status() == hyper::StatusCode::CONTINUE {
                    continue_received.notify_one();
                }
            });
        }
        let response = sender.try_send_request(request).boxed_local();
        let head_timeout = routed.upstream.connector.read_timeout;
        let reuse = routed.service.settings.reuse_connections.then(|| routed.upstream.idle.clone());
        Self { response, sender, permit, uploaded, head_timeout, reuse }
    }

    /// Waits for the head of the answer. Its timeout starts when the whole request has been sent.
    ///
    /// # Errors
    /// The pod gave no answer, or the client failed.
    pub async fn response(
        mut self,
    ) -> Result<(hyper::http::response::Parts, PodBody), Box<ExchangeFailure>> {
        let uploaded = &mut self.uploaded;
        let too_late = async {
            let client_failed = uploaded.await == Ok(false);
            if !client_failed {
                sleep(self.head_timeout).await;
            }
            client_failed
        };
        let sent: Result<Sent, bool> = tokio::select! {
            biased;
            client_failed = too_late => Err(client_failed),
            sent = &mut self.response => Ok(sent),
        };
        let mut was_answered = false;
        let (error, unsent, client_failed) = match sent {
            Ok(Ok(answer)) if answer.status().is_informational() => {
                was_answered = true;
                let reason = format!("answered {} to a plain request", answer.status());
                (UpstreamError::Failed(reason), None, false)
            }
            Ok(Ok(answer)) => {
                self.permit.lease.record_answer();
                let (response, incoming) = answer.into_parts();
                let address = self.permit.lease.backend().address.clone();
                let connection = self.reuse.map(|idle| (idle, address, self.sender));
                return Ok((response, PodBody::new(incoming, connection, self.permit)));
            }
            Ok(Err(mut failed)) => {
                let unsent = failed.take_message().map(hyper::Request::into_body);
                (UpstreamError::Failed(describe(&failed.into_error())), unsent, false)
            }
            Err(true) => (
                UpstreamError::Failed("client did not send its whole request body".into()),
                None,
                true,
            ),
            Err(false) => (UpstreamError::HeadTimeout(self.head_timeout), None, false),
        };
        Err(Box::new(ExchangeFailure {
            error,
            permit: self.permit,
            unsent,
            client_failed,
            was_answered,
        }))
    }
}

/// Returns `error` with its cause, which hyper does not include in its text.
pub fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
