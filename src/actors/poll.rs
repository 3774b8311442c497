//! Asks one pod for its count, again and again, outside the actor that takes the answers.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::Recipient;
use actix_rt::task::JoinHandle;
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;

use super::metrics::Polled;
use crate::{
    domain::{
        lease::{Backend, Transport},
        pool::PollTarget,
        report::{JsonReader, Reader, Report, ReportError, check_status},
    },
    net::connect::{ConnectSettings, Connector},
};

/// Share of the interval by which polls are moved at random, so that replicas do not sample in
/// step and pods are not all asked at once.
const JITTER: f64 = 0.1;

/// How pods are polled.
#[derive(Clone, Debug)]
pub struct PollSettings {
    /// Path of the metric route, with its leading slash.
    pub path: String,
    /// Port of the metric route, unless it is the pod's own.
    pub port: Option<u16>,
    /// From one poll's answer to the next poll.
    pub interval: Duration,
    /// For a whole poll: connect, answer, body.
    pub timeout: Duration,
    /// How pods are reached, the same way as by sessions.
    pub connect: ConnectSettings,
}

/// A task that polls one backend until it is dropped.
pub(super) struct Poller(JoinHandle<()>);

impl Poller {
    /// Starts one poller per target of `service` on the current thread.
    pub fn start_all(
        service: usize,
        targets: Vec<PollTarget>,
        settings: &PollSettings,
        reports: &Recipient<Polled>,
    ) -> Vec<Self> {
        let connector = Rc::new(Connector::new(settings.connect.clone()));
        let start = |target: PollTarget| {
            let line = Line::new(target.backend(), settings, connector.clone());
            let settings = settings.clone();
            Self(actix_rt::spawn(poll_forever(service, target, line, settings, reports.clone())))
        };
        targets.into_iter().map(start).collect()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn poll_forever(
    service: usize,
    target: PollTarget,
    mut line: Line,
    settings: PollSettings,
    reports: Recipient<Polled>,
) {
    let timeout = settings.timeout;
    loop {
        let poll = target.begin(Instant::now());
        let result = actix_rt::time::timeout(timeout, line.ask()).await.unwrap_or_else(|_| {
            line.sender = None;
            Err(ReportError::Unreachable(format!("nothing within {timeout:?}")))
        });
        reports.do_send(Polled { service, poll, result });
        let jitter = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
        actix_rt::time::sleep(settings.interval.mul_f64(jitter)).await;
    }
}

/// The way to one pod's metric route, with the connection of the last poll if it is still open.
struct Line {
    connector: Rc<Connector>,
    pod: Backend,
    path: String,
    reader: Arc<dyn Reader>,
    sender: Option<SendRequest<String>>,
}

impl Line {
    fn new(backend: &Backend, settings: &PollSettings, connector: Rc<Connector>) -> Self {
        let mut pod = backend.clone();
        if let Some(port) = settings.port
            && pod.transport != Transport::Unix
            && let Some((host, _)) = pod.address.rsplit_once(':')
        {
            pod.address = format!("{host}:{port}");
        }
        let reader = Arc::new(JsonReader::default());
        Self { connector, pod, path: settings.path.clone(), reader, sender: None }
    }

    /// One poll. A connection that the pod has closed in the meantime is replaced.
    async fn ask(&mut self) -> Result<Report, ReportError> {
        if let Some(sender) = self.sender.take().filter(SendRequest::is_ready) {
            let result = self.ask_over(sender).await;
            if !matches!(result, Err(ReportError::Unreachable(_))) {
                return result;
            }
        }
        let sender = self.connect().await?;
        self.ask_over(sender).await
    }

    async fn connect(&self) -> Result<SendRequest<String>, ReportError> {
        let io = self.connector.connect(&self.pod).await.map_err(unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(unreachable)?;
        // It ends with its sender.
        actix_rt::spawn(connection);
        Ok(sender)
    }

    async fn ask_over(&mut self, mut sender: SendRequest<String>) -> Result<Report, ReportError> {
        let request = hyper::Request::get(&self.path)
            .header(HOST, self.pod.host())
            .header(ACCEPT, "application/json")
            .body(String::new())
            .map_err(unreachable)?;
        let response = sender.send_request(request).await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = read_whole(response.into_body(), self.reader.max_len()).await?;
        self.sender = Some(sender);
        check_status(status)?;
        self.reader.read(&body)
    }
}

/// With its cause, which hyper keeps apart.
fn unreachable(error: impl std::error::Error) -> ReportError {
    ReportError::Unreachable(match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

/// A body of at most `max` bytes.
async fn read_whole(mut body: Incoming, max: usize) -> Result<Vec<u8>, ReportError> {
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.map_err(unreachable)?.into_data() {
            whole.extend_from_slice(&data);
        }
        if whole.len() > max {
            return Err(ReportError::TooLong(max));
        }
    }
    Ok(whole)
}
