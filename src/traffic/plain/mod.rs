//! Plain HTTP: passed on to the least-loaded pod, streamed both ways.
//!
//! hyper speaks both ways here. awc sends a request whole before it reads the answer and takes an
//! interim answer for the final one; actix-http decodes the next request while it answers the last
//! and then frames the answer as the next one would want it. Trailers are dropped (RFC 9110
//! §6.5.1), which is why `TE` is not forwarded.

pub mod convert;
pub mod exchange;
pub mod idle;
mod request_body;
mod response_body;

use std::{
    cell::Cell,
    convert::Infallible,
    net::IpAddr,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix_http::{Method, RequestHead, StatusCode, header};
use bytes::{Bytes, BytesMut};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};

use self::{
    convert::{from_hyper, request_head, response_head, to_hyper},
    exchange::{Exchange, describe},
    request_body::RequestBody,
    response_body::{PodResponseBody, ResponseBody},
};
use super::{
    attempts::Attempts,
    handshake::{self, EstablishedSession, HandshakeOutcome},
    headers::{forwarded::PeerInfo, has_token, request},
    lifecycle::UnansweredConnection,
    refusal::Refusal,
    routing::RoutedRequest,
    worker::{Worker, WorkerState},
};
use crate::{
    domain::balance::lease::Backend,
    net::{ClientStream, rewind::Rewind, write_timeout::WriteTimeout},
    relay::TunnelPeer,
};

/// Fields that hyper itself takes; what is over the configured limit below that gets our sentence.
const MAX_FIELDS: usize = 256;

/// How long a client may take nothing of an answer, as in nginx's `send_timeout`.
const PATIENCE: Duration = Duration::from_secs(60);

type Answer = hyper::Response<ResponseBody>;

/// Serves the requests of one connection, one after the other, until it ends or becomes a tunnel.
/// `arrival` ends with the first answer. A process that goes down lets nobody wait here for another
/// request: a proxy that keeps connections would send it to a process that refuses it.
pub async fn serve(
    worker: Rc<Worker>,
    io: Rewind<ClientStream>,
    peer: PeerInfo,
    unanswered: UnansweredConnection,
) {
    let head_timeout = worker.state().traffic.settings.head.timeout;
    let lifecycle = worker.state().traffic.lifecycle.clone();
    let unanswered = Cell::new(Some(unanswered));
    let service = service_fn(move |request| {
        // A connection may outlive many rules.
        let state = worker.state();
        let unanswered = unanswered.take();
        async move {
            let refused = |refusal: Refusal| {
                state.traffic.refused(&refusal, peer.address);
                refusal_answer(&refusal)
            };
            let answer = answer(&state, request, peer).await.unwrap_or_else(refused);
            drop(unanswered);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(WriteTimeout::new(io, PATIENCE)), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // What is there is a request to be answered, even now.
        biased;
        ended = connection.as_mut() => ended,
        () = lifecycle.wait_for_closing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        log::debug!("the connection of {} ended: {}", peer.address, describe(&error));
    }
}

async fn answer(
    state: &Rc<WorkerState>,
    mut incoming: hyper::Request<Incoming>,
    peer: PeerInfo,
) -> Result<Answer, Refusal> {
    let traffic = &state.traffic;
    let request = request_head(&incoming)?;
    traffic.settings.head.check(&request)?;
    if request.method == Method::CONNECT {
        return Err(Refusal::Method(request.method.to_string()));
    }
    request::check(&request)?;
    if has_token(&request.headers, header::UPGRADE, "websocket") {
        let opened = handshake::open(state, &request, peer).await?;
        let upgrade = hyper::upgrade::on(&mut incoming);
        let client = traffic.settings.forwarding.client(&request.headers, peer.address);
        return Ok(switch(state, opened, client, upgrade));
    }
    if traffic.lifecycle.is_draining() {
        return Err(Refusal::ShuttingDown);
    }
    traffic.counters.plain_requests.fetch_add(1, Relaxed);
    let routed = RoutedRequest::new(state, &request, peer)?;
    forward(&routed, &request, incoming.into_body()).await
}

/// A handshake that follows a plain request on the same connection.
fn switch(
    state: &Rc<WorkerState>,
    opened: HandshakeOutcome,
    address: IpAddr,
    upgrade: OnUpgrade,
) -> Answer {
    let (answer, pod, permit, rules) = match opened {
        HandshakeOutcome::Rejection { answer, body } => {
            return response_head(answer, ResponseBody::Rejection(body));
        }
        HandshakeOutcome::Tunnel { answer, pod, permit, rules } => (answer, pod, permit, rules),
    };
    let mut answer = response_head(answer, ResponseBody::Text(Bytes::new()));
    let upgrade_field = hyper::header::HeaderValue::from_static("upgrade");
    answer.headers_mut().insert(hyper::header::CONNECTION, upgrade_field);
    let state = state.clone();
    actix_rt::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<WriteTimeout<Rewind<ClientStream>>>>() else {
            return;
        };
        let (io, unread) = parts.io.into_inner().into_inner().into_parts();
        let mut early = BytesMut::from(parts.read_buf);
        early.unsplit(unread);
        EstablishedSession { client: TunnelPeer::new(io, early), pod, permit, rules }
            .start(&state, address);
    });
    answer
}

/// Sends the request to a pod, and to the next while that does no harm.
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
        let mut permit = attempts.next().await?;
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
            let exchange = Exchange::begin(routed, sender, permit, outgoing, expects_continue);
            let failure = match exchange.answered().await {
                Ok((response, download)) => {
                    return Ok(passed_on(routed, response, download, &backend));
                }
                Err(failure) => *failure,
            };
            permit = failure.permit;
            if failure.client_failed {
                return Err(Refusal::BrokenBody);
            }
            // Sent nothing, or nothing that may not be sent twice (RFC 9110 §9.2.2).
            upload = failure.unsent.or_else(|| repeatable.then(RequestBody::default));
            if upload.is_none() || failure.settled || failure.error.timed_out() {
                attempts.failed(permit, &failure.error);
                return Err(attempts.give_up());
            }
            if !was_reused {
                break failure.error;
            }
        };
        attempts.failed(permit, &error);
    }
}

fn refusal_answer(refusal: &Refusal) -> Answer {
    let mut answer = response_head(refusal.head(), ResponseBody::Text(refusal.body().into()));
    // A client whose messages are not as they should be is not listened to any further, and one that
    // comes too late should try elsewhere.
    if refusal.status().is_client_error() || matches!(refusal, Refusal::ShuttingDown) {
        let close = hyper::header::HeaderValue::from_static("close");
        answer.headers_mut().insert(hyper::header::CONNECTION, close);
    }
    answer
}

/// A pod's answer as the client gets it.
fn passed_on(
    routed: &RoutedRequest<'_>,
    response: hyper::http::response::Parts,
    download: PodResponseBody,
    backend: &Arc<Backend>,
) -> Answer {
    let status = StatusCode::from_u16(response.status.as_u16()).unwrap_or_default();
    let fields = routed.answer_fields(status, &from_hyper(&response.headers), backend);
    let mut answer = hyper::Response::new(ResponseBody::PodResponseBody(download));
    *answer.status_mut() = response.status;
    *answer.headers_mut() = to_hyper(&fields);
    answer
}
