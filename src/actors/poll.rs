//! Asks one pod for its count, again and again, outside the actor that takes the answers.

use std::time::{Duration, Instant};

use actix::Recipient;
use actix_rt::task::JoinHandle;
use awc::Client;

use super::metrics::Polled;
use crate::domain::{
    pool::PollTarget,
    report::{self, MAX_REPORT_LEN, Report, ReportError},
};

/// Share of the interval by which polls are moved at random, so that replicas do not sample in
/// step and pods are not all asked at once.
const JITTER: f64 = 0.1;

/// How pods are polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollSettings {
    /// Path of the metric route, with its leading slash.
    pub path: String,
    /// Port of the metric route, unless it is the pod's own.
    pub port: Option<u16>,
    /// From one poll's answer to the next poll.
    pub interval: Duration,
    /// For a whole poll: connect, answer, body.
    pub timeout: Duration,
}

/// A task that polls one backend until it is dropped.
pub(super) struct Poller(JoinHandle<()>);

impl Poller {
    /// Starts one poller per target on the current thread.
    pub fn start_all(
        targets: Vec<PollTarget>,
        settings: &PollSettings,
        reports: &Recipient<Polled>,
    ) -> Vec<Self> {
        let client = Client::builder().timeout(settings.timeout).finish();
        targets
            .into_iter()
            .map(|target| {
                let task = poll_forever(target, settings.clone(), client.clone(), reports.clone());
                Self(actix_rt::spawn(task))
            })
            .collect()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn poll_forever(
    target: PollTarget,
    settings: PollSettings,
    client: Client,
    reports: Recipient<Polled>,
) {
    let url = url(&target.backend().address, &settings);
    loop {
        let poll = target.begin(Instant::now());
        let result = ask(&client, &url, settings.timeout).await;
        reports.do_send(Polled { poll, result });
        let jitter = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
        actix_rt::time::sleep(settings.interval.mul_f64(jitter)).await;
    }
}

/// Where a pod at `address` (`host:port`) is asked.
fn url(address: &str, settings: &PollSettings) -> String {
    let path = &settings.path;
    match (settings.port, address.rsplit_once(':')) {
        (Some(port), Some((host, _))) => format!("http://{host}:{port}{path}"),
        _ => format!("http://{address}{path}"),
    }
}

/// One poll. The time-out covers the body too, which awc's own does not.
async fn ask(client: &Client, url: &str, timeout: Duration) -> Result<Report, ReportError> {
    let answer = async {
        let mut response = client
            .get(url)
            .insert_header(("accept", "application/json"))
            .send()
            .await
            .map_err(|error| ReportError::Unreachable(error.to_string()))?;
        let status = response.status().as_u16();
        let body = response.body().limit(MAX_REPORT_LEN).await.map_err(|error| match error {
            awc::error::PayloadError::Overflow => ReportError::TooLong,
            error => ReportError::Unreachable(error.to_string()),
        })?;
        report::read(status, &body)
    };
    let late = |_| ReportError::Unreachable(format!("nothing within {timeout:?}"));
    actix_rt::time::timeout(timeout, answer).await.map_err(late)?
}
