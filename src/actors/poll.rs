//! Polls pods for their counts, outside the actor that takes the results.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{Message, Recipient};
use actix_rt::task::JoinHandle;
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;

use crate::{
    domain::{
        balance::{
            backend::{Backend, Transport},
            poll::{Poll, PollTarget},
        },
        report::{MAX_REPORT_LEN, Report, ReportError, check_status, query::ReportQuery},
        service_id::ServiceId,
    },
    net::connect::{ConnectSettings, Connector},
};

/// The result of one poll of one backend.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PollFinished {
    pub service: ServiceId,
    /// The poll, with the time at which it was sent.
    pub poll: Poll,
    pub result: Result<Report, ReportError>,
}

/// Share of the interval by which each wait is varied at random, so that replicas do not poll at
/// the same moments and pods are not all polled at once.
const JITTER: f64 = 0.1;

/// How the pods of a service are polled.
#[derive(Clone, Debug, PartialEq)]
pub struct PollSettings {
    /// What pods are asked.
    pub question: ReportQuery,
    /// Port that is polled, or `None` for the pod's own.
    pub port: Option<u16>,
    /// From the result of one poll to the next poll.
    pub interval: Duration,
    /// For a whole poll: connect, answer, body.
    pub timeout: Duration,
    /// How pods are connected to, the same as for sessions.
    pub connect: ConnectSettings,
}

/// The tasks that poll the backends of one service.
pub(super) struct Pollers {
    service: ServiceId,
    /// `None` if pods are not polled.
    polls: Option<(PollSettings, Rc<Connector>)>,
    results: Recipient<PollFinished>,
    running: Vec<(Backend, PollTask)>,
}

impl Pollers {
    pub fn new(
        service: ServiceId,
        settings: Option<&PollSettings>,
        results: Recipient<PollFinished>,
    ) -> Self {
        let polls = settings
            .map(|settings| (settings.clone(), Rc::new(Connector::new(settings.connect.clone()))));
        Self { service, polls, results, running: Vec::new() }
    }

    /// Polls exactly `targets` from now on. Tasks of backends that stay are not interrupted.
    pub fn set_targets(&mut self, targets: Vec<PollTarget>) {
        let Some((settings, connector)) = &self.polls else { return };
        // A task that has ended has panicked; it is replaced below.
        self.running.retain(|(known, PollTask(task))| {
            !task.is_finished() && targets.iter().any(|target| target.backend() == known)
        });
        for target in targets {
            if self.running.iter().any(|(known, _)| known == target.backend()) {
                continue;
            }
            let backend = target.backend().clone();
            let client = PollClient::new(&backend, settings, connector.clone());
            let (settings, results) = (settings.clone(), self.results.clone());
            let task = poll_forever(self.service, target, client, settings, results);
            self.running.push((backend, PollTask(actix_rt::spawn(task))));
        }
    }
}

/// A task that polls one backend; dropping this ends it.
struct PollTask(JoinHandle<()>);

impl Drop for PollTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn poll_forever(
    service: ServiceId,
    target: PollTarget,
    mut client: PollClient,
    settings: PollSettings,
    results: Recipient<PollFinished>,
) {
    let timeout = settings.timeout;
    loop {
        let poll = target.start_poll(Instant::now());
        let result = actix_rt::time::timeout(timeout, client.poll()).await.unwrap_or_else(|_| {
            client.sender = None;
            Err(ReportError::Unreachable(format!("no answer within {timeout:?}")))
        });
        results.do_send(PollFinished { service, poll, result });
        let jitter = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
        actix_rt::time::sleep(settings.interval.mul_f64(jitter)).await;
    }
}

/// Polls one pod, over the connection of the previous poll if it is still open.
struct PollClient {
    connector: Rc<Connector>,
    pod: Backend,
    question: ReportQuery,
    sender: Option<SendRequest<String>>,
}

impl PollClient {
    fn new(backend: &Backend, settings: &PollSettings, connector: Rc<Connector>) -> Self {
        let mut pod = backend.clone();
        if let Some(port) = settings.port
            && pod.transport != Transport::Unix
            && let Some((host, _)) = pod.address.rsplit_once(':')
        {
            pod.address = format!("{host}:{port}");
        }
        if matches!(settings.question, ReportQuery::Agent(_)) && pod.transport == Transport::Tls {
            pod.transport = Transport::Tcp;
        }
        Self { connector, pod, question: settings.question.clone(), sender: None }
    }

    /// Polls once.
    async fn poll(&mut self) -> Result<Report, ReportError> {
        match self.question.clone() {
            ReportQuery::Metric { path, reader } => {
                let (status, body) = self.get(&path, reader.max_len()).await?;
                check_status(status)?;
                reader.read(&body)
            }
            ReportQuery::Health(path) => match self.get(&path, MAX_REPORT_LEN).await? {
                (200..=299, _) => Ok(Report::default()),
                (status, _) => Err(ReportError::Unreachable(format!(
                    "{path} answered {status}, expected 200 to 299"
                ))),
            },
            ReportQuery::Connect => {
                self.connector.connect(&self.pod).await.map_err(unreachable)?;
                Ok(Report::default())
            }
            ReportQuery::Agent(reader) => {
                let mut io = self.connector.connect(&self.pod).await.map_err(unreachable)?;
                let mut line = Vec::new();
                while !line.ends_with(b"\n") && line.len() <= reader.max_len() {
                    let mut chunk = [0; 1024];
                    match io.read(&mut chunk).await.map_err(unreachable)? {
                        0 => break,
                        n => line.extend_from_slice(&chunk[..n]),
                    }
                }
                reader.read(&line)
            }
        }
    }

    /// Requests `path` and returns status and body. Reconnects if the pod has closed the connection
    /// since the previous poll.
    async fn get(&mut self, path: &str, max_len: usize) -> Result<(u16, Vec<u8>), ReportError> {
        if let Some(sender) = self.sender.take().filter(SendRequest::is_ready) {
            let result = self.get_over(sender, path, max_len).await;
            if !matches!(result, Err(ReportError::Unreachable(_))) {
                return result;
            }
        }
        let sender = self.connect().await?;
        self.get_over(sender, path, max_len).await
    }

    async fn connect(&self) -> Result<SendRequest<String>, ReportError> {
        let io = self.connector.connect(&self.pod).await.map_err(unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(unreachable)?;
        // The task ends when the sender is dropped.
        actix_rt::spawn(connection);
        Ok(sender)
    }

    async fn get_over(
        &mut self,
        mut sender: SendRequest<String>,
        path: &str,
        max_len: usize,
    ) -> Result<(u16, Vec<u8>), ReportError> {
        let request = hyper::Request::get(path)
            .header(HOST, self.pod.host())
            .header(ACCEPT, "application/json, text/plain;q=0.5")
            .body(String::new())
            .map_err(unreachable)?;
        let response = sender.send_request(request).await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = read_whole(response.into_body(), max_len).await?;
        self.sender = Some(sender);
        Ok((status, body))
    }
}

/// Includes the error's cause, which hyper does not print.
fn unreachable(error: impl std::error::Error) -> ReportError {
    ReportError::Unreachable(match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

/// Reads a whole body of at most `max_len` bytes.
async fn read_whole(mut body: Incoming, max_len: usize) -> Result<Vec<u8>, ReportError> {
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.map_err(unreachable)?.into_data() {
            whole.extend_from_slice(&data);
        }
        if whole.len() > max_len {
            return Err(ReportError::TooLong(max_len));
        }
    }
    Ok(whole)
}
