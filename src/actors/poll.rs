//! Asks one pod for its count, again and again, outside the actor that takes the answers.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
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
use tokio::io::AsyncReadExt as _;

use super::metrics::Polled;
use crate::{
    domain::{
        balance::{
            lease::{Backend, Transport},
            pool::PollTarget,
        },
        report::{MAX_REPORT_LEN, Report, ReportError, check_status, query::Question},
    },
    net::connect::{ConnectSettings, Connector},
};

/// Share of the interval by which polls are moved at random, so that replicas do not sample in
/// step and pods are not all asked at once.
const JITTER: f64 = 0.1;

/// How pods are polled.
#[derive(Clone, Debug, PartialEq)]
pub struct PollSettings {
    /// What they are asked.
    pub question: Question,
    /// Port where they are asked, unless it is the pod's own.
    pub port: Option<u16>,
    /// From one poll's answer to the next poll.
    pub interval: Duration,
    /// For a whole poll: connect, answer, body.
    pub timeout: Duration,
    /// How pods are reached, the same way as by sessions.
    pub connect: ConnectSettings,
}

/// Who polls the backends of one service, on one thread.
pub(super) struct Pollers {
    service: usize,
    /// `None` where pods are not asked.
    way: Option<(PollSettings, Rc<Connector>)>,
    reports: Recipient<Polled>,
    running: Vec<(Backend, Poller)>,
}

impl Pollers {
    /// Nobody is polled yet.
    pub fn new(
        service: usize,
        settings: Option<&PollSettings>,
        reports: Recipient<Polled>,
    ) -> Self {
        let way = settings
            .map(|settings| (settings.clone(), Rc::new(Connector::new(settings.connect.clone()))));
        Self { service, way, reports, running: Vec::new() }
    }

    /// Polls `targets` and nobody else, those that were polled before without interruption.
    pub fn poll(&mut self, targets: Vec<PollTarget>) {
        let Some((settings, connector)) = &self.way else { return };
        // One that has ended panicked: it is begun anew.
        self.running.retain(|(known, Poller(task))| {
            !task.is_finished() && targets.iter().any(|target| target.backend() == known)
        });
        for target in targets {
            if self.running.iter().any(|(known, _)| known == target.backend()) {
                continue;
            }
            let backend = target.backend().clone();
            let line = Line::new(&backend, settings, connector.clone());
            let (settings, reports) = (settings.clone(), self.reports.clone());
            let task = poll_forever(self.service, target, line, settings, reports);
            self.running.push((backend, Poller(actix_rt::spawn(task))));
        }
    }
}

/// A task that polls one backend until it is dropped.
struct Poller(JoinHandle<()>);

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

/// The way to one pod, with the connection of the last poll if it is still open.
struct Line {
    connector: Rc<Connector>,
    pod: Backend,
    question: Question,
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
        if matches!(settings.question, Question::Agent(_)) && pod.transport == Transport::Tls {
            pod.transport = Transport::Tcp;
        }
        Self { connector, pod, question: settings.question.clone(), sender: None }
    }

    /// One poll.
    async fn ask(&mut self) -> Result<Report, ReportError> {
        match self.question.clone() {
            Question::Metric { path, reader } => {
                let (status, body) = self.get(&path, reader.max_len()).await?;
                check_status(status)?;
                reader.read(&body)
            }
            Question::Health(path) => match self.get(&path, MAX_REPORT_LEN).await? {
                (200..=299, _) => Ok(Report::default()),
                (status, _) => Err(ReportError::Unreachable(format!("{path} says {status}"))),
            },
            Question::Connect => {
                self.connector.connect(&self.pod).await.map_err(unreachable)?;
                Ok(Report::default())
            }
            Question::Agent(reader) => {
                let mut io = self.connector.connect(&self.pod).await.map_err(unreachable)?;
                let mut line = Vec::new();
                while !line.ends_with(b"\n") && line.len() <= reader.max_len() {
                    let mut some = [0; 1024];
                    match io.read(&mut some).await.map_err(unreachable)? {
                        0 => break,
                        n => line.extend_from_slice(&some[..n]),
                    }
                }
                reader.read(&line)
            }
        }
    }

    /// Status and body at `path`. A connection that the pod has closed since the last poll is
    /// replaced.
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
        // It ends with its sender.
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

/// With its cause, which hyper keeps apart.
fn unreachable(error: impl std::error::Error) -> ReportError {
    ReportError::Unreachable(match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

/// A body that may be as long as a report.
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
