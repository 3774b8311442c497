//! Plain HTTP: passed on to the least-loaded pod, streamed both ways.
//!
//! hyper speaks both ways here. awc sends a request whole before it reads the answer and takes an
//! interim answer for the final one; actix-http decodes the next request while it answers the last
//! and then frames the answer as the next one would want it. Trailers are dropped (RFC 9110
//! §6.5.1), which is why `TE` is not forwarded.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::{
    Method, RequestHead, Response, StatusCode, Uri, Version,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use hyper::{
    body::{Body as HyperBody, Frame, Incoming, SizeHint},
    client::conn::{
        TrySendError,
        http1::{self as client, SendRequest},
    },
    server::conn::http1 as server,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};

use super::{
    dial::{Body, DialError},
    forward::{Forwarded, x_request_id},
    handshake::{self, Established, Opened, Worker},
    headers::{end_to_end, has_token, keep_upgrade_required},
    refusal::Refusal,
    request,
    reuse::Idle,
    rewind::Rewind,
    tries::Tries,
};
use crate::{
    actors::session::Slot,
    domain::lease::Backend,
    relay::{Io, Peer},
};

/// How long a pod may take to say 100 before the body is sent without it (RFC 9110 §10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the rest of an upload is taken from a client whose answer has come early.
const LINGER: Duration = Duration::from_secs(30);

/// Fields that hyper itself takes; what is over the configured limit below that gets our sentence.
const MAX_FIELDS: usize = 256;

type Answer = hyper::Response<Outgoing>;

/// Serves the requests of one connection, one after the other, until it ends or becomes a tunnel.
pub async fn serve(worker: Rc<Worker>, io: Rewind, peer: IpAddr) {
    let head_timeout = worker.traffic.settings.head.timeout;
    let service = service_fn(move |request| {
        let worker = worker.clone();
        async move {
            let refused = |refusal: Refusal| {
                worker.traffic.refused(&refusal, peer);
                refusal_answer(&refusal)
            };
            Ok::<_, Infallible>(answer(&worker, request, peer).await.unwrap_or_else(refused))
        }
    });
    let connection = server::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        log::debug!("the connection of {peer} ended: {}", describe(&error));
    }
}

async fn answer(
    worker: &Rc<Worker>,
    mut incoming: hyper::Request<Incoming>,
    peer: IpAddr,
) -> Result<Answer, Refusal> {
    let traffic = &worker.traffic;
    let request = request_head(&incoming)?;
    traffic.settings.head.check(&request)?;
    if request.method == Method::CONNECT {
        return Err(Refusal::Method(request.method.to_string()));
    }
    request::check(&request)?;
    let forwarded = traffic.settings.forwarding.apply(&request, peer);
    if has_token(&request.headers, header::UPGRADE, "websocket") {
        let opened = handshake::open(worker, &request, &forwarded).await?;
        let upgrade = hyper::upgrade::on(&mut incoming);
        return Ok(switch(worker, opened, forwarded, upgrade));
    }
    if traffic.health.is_draining() {
        return Err(Refusal::ShuttingDown);
    }
    traffic.counters.requests.fetch_add(1, Relaxed);
    forward(worker, &request, &forwarded, incoming.into_body()).await
}

/// A handshake that follows a plain request on the same connection.
fn switch(worker: &Rc<Worker>, opened: Opened, forwarded: Forwarded, upgrade: OnUpgrade) -> Answer {
    let (head, pod, slot) = match opened {
        Opened::Rejection { head, body } => {
            let response = handshake::rejection(&head, &forwarded.request_id);
            return to_answer(response, Outgoing::Rejection(body));
        }
        Opened::Tunnel { head, pod, slot } => (head, pod, slot),
    };
    let response = handshake::switching(&head, &forwarded.request_id);
    let mut answer = to_answer(response, Outgoing::Text(Bytes::new()));
    let upgrade_field = hyper::header::HeaderValue::from_static("upgrade");
    answer.headers_mut().insert(hyper::header::CONNECTION, upgrade_field);
    let worker = worker.clone();
    actix_rt::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Rewind>>() else { return };
        let (io, unread) = parts.io.into_inner().into_parts();
        let mut early = BytesMut::from(parts.read_buf);
        early.unsplit(unread);
        Established { client: Peer::new(io, early), pod, slot }.start(&worker, forwarded.client);
    });
    answer
}

fn request_head(incoming: &hyper::Request<Incoming>) -> Result<RequestHead, Refusal> {
    let unreadable = || Refusal::Target(incoming.uri().to_string());
    let mut head = RequestHead::default();
    head.method = Method::from_bytes(incoming.method().as_str().as_bytes())
        .map_err(|_| Refusal::Method(incoming.method().to_string()))?;
    head.uri = incoming.uri().to_string().parse::<Uri>().map_err(|_| unreadable())?;
    head.version = match incoming.version() {
        hyper::Version::HTTP_11 => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    head.headers = from_hyper(incoming.headers());
    Ok(head)
}

/// Sends the request to a pod, and to the next while that does no harm.
async fn forward(
    worker: &Worker,
    request: &RequestHead,
    forwarded: &Forwarded,
    body: Incoming,
) -> Result<Answer, Refusal> {
    let expects_continue = has_token(&request.headers, header::EXPECT, "100-continue");
    let repeatable = body.is_end_stream() && request.method.is_idempotent();
    let length = body.size_hint().exact();
    let mut upload = Some(Upload::new(body));
    let mut tries = Tries::new(&worker.traffic, None);
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
            let head = head(request, forwarded, worker, &backend, length)?;
            let outgoing = hyper::Request::from_parts(head, upload.take().unwrap_or_default());
            let in_flight = InFlight::send(worker, sender, slot, outgoing, expects_continue);
            let failure = match in_flight.answered().await {
                Ok((response, download)) => {
                    return Ok(passed_on(response, download, &forwarded.request_id));
                }
                Err(failure) => *failure,
            };
            slot = failure.slot;
            if failure.client_failed {
                return Err(Refusal::BrokenBody);
            }
            // Sent nothing, or nothing that may not be sent twice (RFC 9110 §9.2.2).
            upload = failure.unsent.or_else(|| repeatable.then(Upload::default));
            if upload.is_none() || failure.settled || failure.error.timed_out() {
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

async fn connect(worker: &Worker, backend: &Backend) -> Result<SendRequest<Upload>, DialError> {
    let io: Box<dyn Io> = worker.dialer.connect(backend).await?;
    let broken = |error: hyper::Error| DialError::Broken(describe(&error));
    let (sender, connection) = client::handshake(TokioIo::new(io)).await.map_err(broken)?;
    actix_rt::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!("a connection to a pod ended: {}", describe(&error));
        }
    });
    Ok(sender)
}

/// The request as the pod gets it, without its body, whose `length` is known or not.
fn head(
    request: &RequestHead,
    forwarded: &Forwarded,
    worker: &Worker,
    backend: &Backend,
    length: Option<u64>,
) -> Result<hyper::http::request::Parts, Refusal> {
    let mut head = hyper::Request::builder()
        .method(request.method.as_str())
        .uri(request::origin_form(&request.uri))
        .body(())
        .map_err(|_| Refusal::Target(request.uri.to_string()))?
        .into_parts()
        .0;
    let fields = forwarded.headers(&worker.traffic.settings.forwarding, &backend.address);
    head.headers = to_hyper(&fields);
    if !head.headers.contains_key(hyper::header::HOST)
        && let Ok(host) = backend.address.parse()
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

/// actix-http and hyper use different releases of the same types.
fn to_hyper(headers: &HeaderMap) -> hyper::HeaderMap {
    let mut map = hyper::HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = hyper::header::HeaderName::from_bytes(name.as_str().as_bytes());
        let value = hyper::header::HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    map
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

fn to_answer<B>(response: Response<B>, body: Outgoing) -> Answer {
    let mut answer = hyper::Response::new(body);
    *answer.status_mut() = hyper::StatusCode::from_u16(response.status().as_u16())
        .unwrap_or(hyper::StatusCode::BAD_GATEWAY);
    *answer.headers_mut() = to_hyper(response.headers());
    answer
}

fn refusal_answer(refusal: &Refusal) -> Answer {
    let mut answer = to_answer(refusal.head(), Outgoing::Text(refusal.body().into()));
    // A client whose messages are not as they should be is not listened to any further.
    if refusal.status().is_client_error() {
        let close = hyper::header::HeaderValue::from_static("close");
        answer.headers_mut().insert(hyper::header::CONNECTION, close);
    }
    answer
}

/// A pod's answer as the client gets it.
fn passed_on(
    response: hyper::http::response::Parts,
    download: Download,
    request_id: &HeaderValue,
) -> Answer {
    let received = from_hyper(&response.headers);
    let mut fields = end_to_end(&received);
    if let Ok(status) = StatusCode::from_u16(response.status.as_u16()) {
        keep_upgrade_required(status, &received, &mut fields);
    }
    if !fields.contains_key(x_request_id()) {
        fields.insert(x_request_id(), request_id.clone());
    }
    let mut answer = hyper::Response::new(Outgoing::Download(download));
    *answer.status_mut() = response.status;
    *answer.headers_mut() = to_hyper(&fields);
    answer
}

type Sent = Result<hyper::Response<Incoming>, TrySendError<hyper::Request<Upload>>>;

/// A request on its way.
struct InFlight {
    response: LocalBoxFuture<'static, Sent>,
    sender: SendRequest<Upload>,
    slot: Slot,
    /// Tells how the body ended: whole, or not as it was announced.
    uploaded: oneshot::Receiver<bool>,
    head_timeout: Duration,
    reuse: Option<Idle>,
}

/// Why there is no answer, and what was not sent.
struct Failure {
    error: DialError,
    slot: Slot,
    unsent: Option<Upload>,
    /// The client broke off, not the pod.
    client_failed: bool,
    /// Whatever came of it, the pod has had the request and answered.
    settled: bool,
}

impl InFlight {
    fn send(
        worker: &Worker,
        mut sender: SendRequest<Upload>,
        slot: Slot,
        mut request: hyper::Request<Upload>,
        expects_continue: bool,
    ) -> Self {
        let (done, uploaded) = oneshot::channel();
        request.body_mut().done = Some(done);
        if expects_continue {
            let go_on = Arc::<Notify>::default();
            request.body_mut().gate = Some(Gate::new(go_on.clone()));
            hyper::ext::on_informational(&mut request, move |interim| {
                if interim.status() == hyper::StatusCode::CONTINUE {
                    go_on.notify_one();
                }
            });
        }
        let response = sender.try_send_request(request).boxed_local();
        let head_timeout = worker.dialer.head_timeout();
        let reuse = worker.traffic.settings.reuse_connections.then(|| worker.idle.clone());
        Self { response, sender, slot, uploaded, head_timeout, reuse }
    }

    /// The head of the answer, and the rest of it.
    ///
    /// The time for it begins when the request has been sent whole, however long that takes.
    async fn answered(mut self) -> Result<(hyper::http::response::Parts, Download), Box<Failure>> {
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
        let mut settled = false;
        let (error, unsent, client_failed) = match sent {
            Ok(Ok(answer)) if answer.status().is_informational() => {
                settled = true;
                let told = format!("answered {} to a plain request", answer.status());
                (DialError::Broken(told), None, false)
            }
            Ok(Ok(answer)) => {
                let (response, incoming) = answer.into_parts();
                let address = self.slot.lease.backend().address.clone();
                let connection = self.reuse.map(|idle| (idle, address, self.sender));
                return Ok((response, Download { incoming, connection, _slot: self.slot }));
            }
            Ok(Err(mut failed)) => {
                let unsent = failed.take_message().map(hyper::Request::into_body);
                (DialError::Broken(describe(&failed.into_error())), unsent, false)
            }
            Err(true) => (DialError::Broken("the client broke off".into()), None, true),
            Err(false) => (DialError::HeadTimeout(self.head_timeout), None, false),
        };
        Err(Box::new(Failure { error, slot: self.slot, unsent, client_failed, settled }))
    }
}

fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A request's body on its way to a pod.
#[derive(Default)]
pub struct Upload {
    incoming: Option<Incoming>,
    /// Closed until the pod says 100: asking the client for its body is what makes hyper say it.
    gate: Option<Gate>,
    /// Told at the end of the body whether it came as it was announced.
    done: Option<oneshot::Sender<bool>>,
}

struct Gate(LocalBoxFuture<'static, ()>);

impl Gate {
    fn new(go_on: Arc<Notify>) -> Self {
        let open = async move { drop(timeout(CONTINUE_TIMEOUT, go_on.notified()).await) };
        Self(open.boxed_local())
    }
}

impl Upload {
    fn new(incoming: Incoming) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        Self { incoming, gate: None, done: None }
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
        if let Some(mut rest) = self.incoming.take().filter(|_| self.gate.is_none()) {
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
enum Outgoing {
    Download(Download),
    Rejection(Body),
    Text(Bytes),
}

/// A pod's answer, with the pod's connection and the place on the pod.
struct Download {
    incoming: Incoming,
    /// Kept for the next request once the answer is whole.
    connection: Option<(Idle, String, SendRequest<Upload>)>,
    _slot: Slot,
}

impl Download {
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
