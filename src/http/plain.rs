//! Plain HTTP: passed on to the least-loaded pod, streamed both ways.
//!
//! hyper speaks to the pods here, because awc sends a request whole before it reads the answer and
//! takes an interim answer for the final one. Trailers are dropped (RFC 9110 §6.5.1), which is why
//! `TE` is not forwarded.

use std::{
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use actix_http::{
    ConnectionType, Error, HttpMessage as _, Method, Payload, Request, Response, StatusCode,
    Version,
    body::{BodySize, BoxBody, MessageBody},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream as _, future::LocalBoxFuture};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};

use super::{
    dial::DialError,
    forward::{Forwarded, x_request_id},
    handshake::Worker,
    headers::{end_to_end, has_token, shown},
    refusal::Refusal,
    reuse::Idle,
    tries::Tries,
};
use crate::{actors::session::Slot, domain::lease::Backend};

/// How long a pod may take to say 100 before the client is told to go on without it (RFC 9110
/// §10.1.1 lets clients do so themselves).
const CONTINUE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// Passes `request` on and answers with the pod's answer.
///
/// # Errors
/// Never; the type is what actix-http wants.
pub async fn serve(worker: Rc<Worker>, mut request: Request) -> Result<Response<BoxBody>, Error> {
    let begun = request.extensions_mut().remove::<InFlight>();
    let answered = match begun {
        Some(in_flight) => in_flight.finish().await,
        None => match begin(&worker, &mut request, None).await {
            Ok(Begun::Answered(response)) => Ok(response),
            Ok(Begun::Continue(in_flight)) => in_flight.finish().await,
            Err(refusal) => Err(refusal),
        },
    };
    Ok(answered.unwrap_or_else(|refusal| refused(&worker, &request, &refusal)))
}

/// Passes a request on that wants to hear 100 before it sends its body (RFC 9110 §10.1.1): the
/// pod is asked, and its final answer, if it gives one at once, is the client's.
///
/// # Errors
/// The answer, when there is no need to go on.
pub async fn expect(worker: Rc<Worker>, mut request: Request) -> Result<Request, Declined> {
    match begin(&worker, &mut request, Some(Arc::default())).await {
        Ok(Begun::Continue(in_flight)) => {
            request.extensions_mut().insert(in_flight);
            Ok(request)
        }
        Ok(Begun::Answered(response)) => Err(Declined(response)),
        Err(refusal) => Err(Declined(refused(&worker, &request, &refusal))),
    }
}

/// An answer in place of a 100.
pub struct Declined(Response<BoxBody>);

impl From<Declined> for Response<BoxBody> {
    fn from(declined: Declined) -> Self {
        declined.0
    }
}

fn refused(worker: &Worker, request: &Request, refusal: &Refusal) -> Response<BoxBody> {
    if let Some(peer) = request.peer_addr() {
        worker.traffic.refused(refusal, peer.ip());
    }
    let mut response = refusal.response();
    if refusal.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    response
}

/// How far a request has come.
enum Begun {
    /// The pod has answered.
    Answered(Response<BoxBody>),
    /// The pod waits for the body.
    Continue(InFlight),
}

/// Sends the request to a pod, and to the next while that does no harm. With `go_on`, returns as
/// soon as the pod says 100.
async fn begin(
    worker: &Worker,
    request: &mut Request,
    go_on: Option<Arc<Notify>>,
) -> Result<Begun, Refusal> {
    let traffic = &worker.traffic;
    check(worker, request)?;
    let peer = request.peer_addr().ok_or(Refusal::Internal)?.ip();
    let forwarded = traffic.settings.forwarding.apply(request.head(), peer);
    traffic.counters.requests.fetch_add(1, Relaxed);
    let repeatable = Upload::framing(request) == Framing::Empty && request.method().is_idempotent();
    let mut upload = Some(Upload::of(request));
    let mut tries = Tries::new(traffic, None);
    loop {
        let mut slot = tries.next().await?;
        let backend = slot.lease.backend().clone();
        let mut reused = worker.idle.take(&backend.address);
        let error = loop {
            let was_reused = reused.is_some();
            let sender = match reused.take() {
                Some(sender) => sender,
                None => match connect(worker, &backend).await {
                    Ok(sender) => sender,
                    Err(error) => break error,
                },
            };
            let body = upload.take().unwrap_or_default();
            let head = head(request, &forwarded, worker, &backend)?;
            let mut in_flight =
                InFlight::send(worker, sender, slot, request, &forwarded, head, body, &go_on);
            let failure = match in_flight.answered(go_on.as_deref()).await {
                Ok(Some(response)) => {
                    return Ok(Begun::Answered(in_flight.into_response(response)));
                }
                Ok(None) => return Ok(Begun::Continue(in_flight)),
                Err(failure) => failure,
            };
            slot = in_flight.slot;
            // Sent nothing, or nothing that may not be sent twice (RFC 9110 §9.2.2).
            upload = failure.unsent.or_else(|| repeatable.then(Upload::default));
            let timed_out = failure.error.timed_out();
            if upload.is_none() || timed_out {
                tries.failed(slot, &failure.error);
                return Err(tries.give_up());
            }
            if !was_reused {
                break failure.error;
            }
        };
        tries.failed(slot, &error);
    }
}

fn check(worker: &Worker, request: &Request) -> Result<(), Refusal> {
    let traffic = &worker.traffic;
    traffic.settings.head.check(request)?;
    // A handshake whose list of protocols or body kept actix-http from handing it over.
    let headers = &request.head().headers;
    if has_token(headers, header::UPGRADE, "websocket") {
        return Err(Refusal::Upgrade(shown(headers, header::UPGRADE)));
    }
    if traffic.health.is_draining() { Err(Refusal::ShuttingDown) } else { Ok(()) }
}

async fn connect(worker: &Worker, backend: &Backend) -> Result<SendRequest<Upload>, DialError> {
    let io = TokioIo::new(worker.dialer.connect(backend).await?);
    let broken = |error: hyper::Error| DialError::Broken(error.to_string());
    let (sender, connection) = http1::handshake(io).await.map_err(broken)?;
    actix_rt::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!("a connection to a pod ended: {error}");
        }
    });
    Ok(sender)
}

/// The request as the pod gets it, without its body.
fn head(
    request: &Request,
    forwarded: &Forwarded,
    worker: &Worker,
    backend: &Backend,
) -> Result<hyper::http::request::Parts, Refusal> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or_else(|| uri.path(), |target| target.as_str());
    let mut head = hyper::Request::builder()
        .method(request.method().as_str())
        .uri(target)
        .body(())
        .map_err(|_| Refusal::Internal)?
        .into_parts()
        .0;
    let headers = forwarded.headers(&worker.traffic.settings.forwarding, &backend.address);
    for (name, value) in &headers {
        if let Ok((name, value)) = to_hyper(name, value) {
            head.headers.append(name, value);
        }
    }
    if !head.headers.contains_key(hyper::header::HOST)
        && let Ok(host) = backend.address.parse()
    {
        head.headers.insert(hyper::header::HOST, host);
    }
    if Upload::framing(request) == Framing::Chunked {
        let chunked = hyper::header::HeaderValue::from_static("chunked");
        head.headers.insert(hyper::header::TRANSFER_ENCODING, chunked);
    }
    Ok(head)
}

type HyperField = (hyper::header::HeaderName, hyper::header::HeaderValue);

/// actix-http and hyper use different releases of the same types.
fn to_hyper(name: &HeaderName, value: &HeaderValue) -> Result<HyperField, hyper::http::Error> {
    Ok((
        hyper::header::HeaderName::from_bytes(name.as_str().as_bytes())?,
        hyper::header::HeaderValue::from_bytes(value.as_bytes())?,
    ))
}

fn from_hyper(headers: &hyper::HeaderMap) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            map.append(name, value);
        }
    }
    map
}

type Sent =
    Result<hyper::Response<Incoming>, hyper::client::conn::TrySendError<hyper::Request<Upload>>>;

/// A request on its way.
struct InFlight {
    response: LocalBoxFuture<'static, Sent>,
    sender: SendRequest<Upload>,
    slot: Slot,
    /// Resolves when the body has been sent.
    uploaded: Option<oneshot::Receiver<()>>,
    head_timeout: std::time::Duration,
    reuse: Option<Idle>,
    request_id: HeaderValue,
    /// Of the request: what the answer to it may look like.
    method: Method,
    version: Version,
}

/// Why there is no answer, and what was not sent.
struct Failure {
    error: DialError,
    unsent: Option<Upload>,
}

impl InFlight {
    #[allow(clippy::too_many_arguments, reason = "one caller, and each is a thing of its own")]
    fn send(
        worker: &Worker,
        mut sender: SendRequest<Upload>,
        slot: Slot,
        request: &Request,
        forwarded: &Forwarded,
        head: hyper::http::request::Parts,
        mut body: Upload,
        go_on: &Option<Arc<Notify>>,
    ) -> Self {
        let (done, uploaded) = oneshot::channel();
        body.done = Some(done);
        let mut outgoing = hyper::Request::from_parts(head, body);
        if let Some(go_on) = go_on.clone() {
            hyper::ext::on_informational(&mut outgoing, move |interim| {
                if interim.status() == hyper::StatusCode::CONTINUE {
                    go_on.notify_one();
                }
            });
        }
        let response = sender.try_send_request(outgoing).boxed_local();
        Self {
            response,
            sender,
            slot,
            uploaded: Some(uploaded),
            head_timeout: worker.dialer.head_timeout(),
            reuse: worker.traffic.settings.reuse_connections.then(|| worker.idle.clone()),
            request_id: forwarded.request_id.clone(),
            method: request.method().clone(),
            version: request.version(),
        }
    }

    /// The head of the answer, or `None` when `go_on` comes first.
    ///
    /// The time for it begins when the request has been sent whole, however long that takes.
    async fn answered(
        &mut self,
        go_on: Option<&Notify>,
    ) -> Result<Option<hyper::Response<Incoming>>, Failure> {
        let uploaded = &mut self.uploaded;
        let too_late = async {
            if let Some(uploaded) = uploaded {
                let _ = uploaded.await;
            }
            *uploaded = None;
            sleep(self.head_timeout).await;
        };
        let go_on = async {
            match go_on {
                // A pod that never says 100 must not keep its client waiting for ever.
                Some(go_on) => drop(timeout(CONTINUE_TIMEOUT, go_on.notified()).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            sent = &mut self.response => sent.map(Some).map_err(|mut failed| {
                let unsent = failed.take_message().map(hyper::Request::into_body);
                Failure { error: DialError::Broken(describe(&failed.into_error())), unsent }
            }),
            () = go_on => Ok(None),
            () = too_late => {
                Err(Failure { error: DialError::HeadTimeout(self.head_timeout), unsent: None })
            }
        }
    }

    /// Waits for the answer; there is no other pod to turn to any more.
    async fn finish(mut self) -> Result<Response<BoxBody>, Refusal> {
        match self.answered(None).await {
            Ok(Some(response)) => Ok(self.into_response(response)),
            Ok(None) => Err(Refusal::Internal),
            Err(Failure { error, .. }) => Err(Refusal::Pod {
                address: self.slot.lease.backend().address.clone(),
                reason: error.to_string(),
                timed_out: error.timed_out(),
            }),
        }
    }

    fn into_response(self, answer: hyper::Response<Incoming>) -> Response<BoxBody> {
        let (head, incoming) = answer.into_parts();
        let status = StatusCode::from_u16(head.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut headers = end_to_end(&from_hyper(&head.headers));
        if !headers.contains_key(x_request_id()) {
            headers.insert(x_request_id(), self.request_id);
        }
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let size = match (status, length) {
            // Its Content-Length is about another message (RFC 9110 §8.6) and stays a mere field.
            (StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT, _) => BodySize::None,
            (_, Some(length)) => BodySize::Sized(length),
            (_, None) => BodySize::Stream,
        };
        if status != StatusCode::NOT_MODIFIED {
            headers.remove(header::CONTENT_LENGTH);
        }
        let address = self.slot.lease.backend().address.clone();
        let download = Download {
            incoming,
            size,
            bodiless: self.method == Method::HEAD,
            connection: self.reuse.map(|idle| (idle, address, self.sender)),
            _slot: self.slot,
        };
        let mut response = Response::with_body(status, BoxBody::new(download));
        let head = response.head_mut();
        head.headers = headers;
        if self.version < Version::HTTP_11 {
            head.no_chunking(true);
            head.set_connection_type(ConnectionType::Close);
        }
        response
    }
}

fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// How a request's body is delimited (RFC 9112 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Empty,
    Length(u64),
    Chunked,
}

/// A request's body on its way to a pod.
#[derive(Default)]
pub struct Upload {
    payload: Option<Payload>,
    length: Option<u64>,
    /// Dropped when nothing more is to be sent.
    done: Option<oneshot::Sender<()>>,
}

impl Upload {
    fn of(request: &mut Request) -> Self {
        let framing = Self::framing(request);
        let payload = (framing != Framing::Empty).then(|| request.take_payload());
        let length = match framing {
            Framing::Length(length) => Some(length),
            Framing::Empty | Framing::Chunked => None,
        };
        Self { payload, length, done: None }
    }

    /// As the request's fields say, which actix-http has checked.
    fn framing(request: &Request) -> Framing {
        let headers = &request.head().headers;
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.trim().parse().ok());
        if headers.contains_key(header::TRANSFER_ENCODING) {
            Framing::Chunked
        } else {
            length.filter(|length| *length > 0).map_or(Framing::Empty, Framing::Length)
        }
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(payload) = &mut this.payload else {
            this.done = None;
            return Poll::Ready(None);
        };
        let chunk = ready!(Pin::new(payload).poll_next(cx));
        if chunk.is_none() {
            this.payload = None;
            this.done = None;
        }
        Poll::Ready(chunk.map(|chunk| {
            // Not as text of ours to the pod: hyper cuts the connection.
            chunk.map(Frame::data).map_err(|error| std::io::Error::other(error.to_string()))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.payload, self.length) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(length)) => SizeHint::with_exact(length),
            (Some(_), None) => SizeHint::default(),
        }
    }
}

/// An answer's body on its way to the client.
struct Download {
    incoming: Incoming,
    size: BodySize,
    /// The answer to HEAD: a length, but nothing of that length.
    bodiless: bool,
    /// Kept for the next request once the answer is whole.
    connection: Option<(Idle, String, SendRequest<Upload>)>,
    _slot: Slot,
}

impl MessageBody for Download {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.size
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        loop {
            match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Anything but data is trailers.
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    self.keep_connection();
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl Download {
    fn keep_connection(&mut self) {
        if let Some((idle, address, sender)) = self.connection.take() {
            idle.keep(address, sender);
        }
    }
}

impl Drop for Download {
    /// actix-http does not ask for a body where there can be none.
    fn drop(&mut self) {
        if self.bodiless || self.incoming.is_end_stream() {
            self.keep_connection();
        }
    }
}
