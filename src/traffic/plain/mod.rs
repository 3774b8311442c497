//! Plain HTTP: each request goes to the least-loaded pod, and bodies are streamed both ways.
//!
//! hyper frames the exchange on both sides; heads are read by [`RequestReader`], as everywhere in
//! `traffic`. awc does not fit here: it sends a request whole before it reads the answer, and takes an
//! interim answer for the final one. Neither does the server of actix-http: it decodes the next
//! request while it answers the last one, and frames the answer for the wrong request. Trailers are
//! dropped (RFC 9110 §6.5.1), so `TE` is not forwarded.

mod convert;
mod exchange;
pub mod idle;
mod request_body;
mod response_body;
mod server_io;

use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix_http::{Request, RequestHead, StatusCode, header};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;

use self::{
    convert::{from_hyper, to_hyper},
    exchange::{Exchange, describe},
    request_body::RequestBody,
    response_body::{Content, PodBody, ResponseBody},
    server_io::ServerIo,
};
use super::{
    attempts::Attempts,
    headers::{forwarded::PeerInfo, has_token},
    lifecycle::UnansweredConnection,
    refusal::Refusal,
    request_reader::{LastHead, RequestReader},
    routing::RoutedRequest,
    worker::{Worker, WorkerState},
};
use crate::{
    domain::balance::backend::Backend,
    net::{ClientStream, write_timeout::WriteTimeout},
};

/// Time that a client can take before it reads more of an answer, as nginx's `send_timeout`.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

type Answer = hyper::Response<Content>;

/// A client whose first request is a plain one.
pub struct PlainClient {
    pub io: ClientStream,
    pub reader: RequestReader,
    pub peer: PeerInfo,
}

/// Serves `first` and the plain requests that follow it on the same connection. Returns the
/// connection when a head comes that is not for plain HTTP, otherwise `None` at its end.
///
/// `unanswered` ends with the first answer. A process that shuts down closes a connection that waits
/// for its next request: a proxy would send that request to a process that refuses it.
pub async fn serve(
    worker: Rc<Worker>,
    client: PlainClient,
    first: Request,
    unanswered: UnansweredConnection,
) -> Option<(ClientStream, RequestReader, LastHead)> {
    let PlainClient { io, reader, peer } = client;
    let lifecycle = worker.state().traffic.lifecycle.clone();
    let io = ServerIo::new(WriteTimeout::new(io, WRITE_TIMEOUT), reader, first);
    let requests = io.clone();
    let unanswered = Cell::new(Some(unanswered));
    let service = service_fn(move |framed: hyper::Request<Incoming>| {
        // The settings may have been reloaded since the connection was accepted.
        let state = worker.state();
        let request = requests.next_request(state.traffic.settings.head);
        let unanswered = unanswered.take();
        async move {
            let (request, in_progress) =
                request.ok_or("hyper has read a request that was not passed on")?;
            let refuse = |refusal: Refusal| {
                state.traffic.record_refusal(&refusal, peer.address);
                refusal_answer(&refusal)
            };
            let answer = answer(&state, request.head(), framed.into_body(), peer).await;
            drop(unanswered);
            let answer = answer.unwrap_or_else(refuse);
            Ok::<_, &str>(answer.map(|content| ResponseBody::new(content, in_progress)))
        }
    });
    let ended = {
        let connection = http1::Builder::new().serve_connection(TokioIo::new(io.clone()), service);
        let mut connection = pin!(connection);
        tokio::select! {
            // A request that has arrived is answered, even now.
            biased;
            ended = connection.as_mut() => ended,
            () = lifecycle.wait_for_closing() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = ended {
        log::debug!("connection of client {} ended: {}", peer.address, describe(&error));
        return None;
    }
    io.take_over()
}

async fn answer(
    state: &WorkerState,
    request: &RequestHead,
    body: Incoming,
    peer: PeerInfo,
) -> Result<Answer, Refusal> {
    let traffic = &state.traffic;
    if traffic.lifecycle.is_draining() {
        return Err(Refusal::ShuttingDown);
    }
    traffic.counters.plain_requests.fetch_add(1, Relaxed);
    let routed = RoutedRequest::new(state, request, peer)?;
    forward(&routed, request, body).await
}

/// Sends the request to a pod, and to the next one when a pod fails and the request can be repeated.
async fn forward(
    routed: &RoutedRequest<'_>,
    request: &RequestHead,
    body: Incoming,
) -> Result<Answer, Refusal> {
    let expects_continue = has_token(&request.headers, header::EXPECT, "100-continue");
    let repeatable = body.is_end_stream() && request.method.is_idempotent();
    let length = body.size_hint().exact();
    let mut upload = Some(RequestBody::new(body));
    let mut attempts = Attempts::for_request(routed);
    loop {
        let mut permit = attempts.next_pod().await?;
        let backend = permit.lease.backend().clone();
        let mut reused = routed.upstream.idle.take(&backend.address);
        let error = loop {
            let was_reused = reused.is_some();
            let sender = match reused.take() {
                Some(sender) => sender,
                None => match exchange::connect(&routed.upstream.connector, &backend).await {
                    Ok(sender) => sender,
                    Err(error) => break error,
                },
            };
            let head = exchange::head(request, routed, &backend, length)?;
            let outgoing = hyper::Request::from_parts(head, upload.take().unwrap_or_default());
            let exchange = Exchange::start(routed, sender, permit, outgoing, expects_continue);
            let failure = match exchange.response().await {
                Ok((response, body)) => {
                    return Ok(forwarded_answer(routed, response, body, &backend));
                }
                Err(failure) => *failure,
            };
            permit = failure.permit;
            if failure.client_failed {
                return Err(Refusal::BrokenBody);
            }
            // Nothing was sent, or the request may be sent twice (RFC 9110 §9.2.2).
            upload = failure.unsent.or_else(|| repeatable.then(RequestBody::default));
            if upload.is_none() || failure.was_answered || failure.error.is_timeout() {
                attempts.record_failure(permit, &failure.error);
                return Err(attempts.take_refusal());
            }
            if !was_reused {
                break failure.error;
            }
        };
        attempts.record_failure(permit, &error);
    }
}

fn refusal_answer(refusal: &Refusal) -> Answer {
    let response = refusal.response();
    let mut answer = hyper::Response::new(Content::Text(refusal.body().into()));
    *answer.status_mut() = to_hyper_status(response.status());
    *answer.headers_mut() = to_hyper(response.headers());
    // Nothing more is read from a client whose request is malformed, and a client of a process that
    // shuts down should connect to another one.
    if refusal.status().is_client_error() || matches!(refusal, Refusal::ShuttingDown) {
        let close = hyper::header::HeaderValue::from_static("close");
        answer.headers_mut().insert(hyper::header::CONNECTION, close);
    }
    answer
}

fn to_hyper_status(status: StatusCode) -> hyper::StatusCode {
    hyper::StatusCode::from_u16(status.as_u16()).unwrap_or(hyper::StatusCode::BAD_GATEWAY)
}

/// Returns a pod's answer as the client gets it.
fn forwarded_answer(
    routed: &RoutedRequest<'_>,
    response: hyper::http::response::Parts,
    body: PodBody,
    backend: &Arc<Backend>,
) -> Answer {
    let status = StatusCode::from_u16(response.status.as_u16()).unwrap_or_default();
    let fields = routed.answer_fields(status, &from_hyper(&response.headers), backend);
    let mut answer = hyper::Response::new(Content::Pod(body));
    *answer.status_mut() = response.status;
    *answer.headers_mut() = to_hyper(&fields);
    answer
}
