//! Applies changed settings while the process serves.
//!
//! ```text
//!  SIGHUP, POST /api/reload, a changed file ─► read settings ─► compare ─► refused: nothing changes
//!                                                                  │
//!     MetricsActor: pools, polls ◄── new services first ───────────┤
//!     workers: one pointer swap, for handshakes that begin ◄───────┤
//!     DiscoveryActor: names to look up ◄───────────────────────────┘
//! ```

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::{Addr, MailboxError};
use actix_rt::task::JoinHandle;
use tokio::sync::mpsc;

use crate::{
    actors::{
        discovery::{DiscoveryActor, SetLookups},
        metrics::{MetricsActor, Reconfigure},
        supervision::send_retrying,
    },
    config::{
        self, Config, FileChange, FileWatch, Problems,
        diff::Difference,
        live::{LiveConfig, ReloadOutcome, ReloadRequest, ReloadResult},
    },
    domain::service_id::ServiceIds,
    net::tls::ServerTls,
    services,
    telemetry::logging,
    traffic::state::CurrentState,
};

/// How often invalid settings are read again without a request or a change of the file.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Reads the settings again and passes changes on to everything that depends on them.
pub(super) struct Reloader {
    /// Delivers requests, and keeps the outcome and the active settings.
    pub live_config: Arc<LiveConfig>,
    /// The state that workers load for each request.
    pub current: Arc<CurrentState>,
    pub metrics: Addr<MetricsActor>,
    pub discovery: Addr<DiscoveryActor>,
    pub ids: ServiceIds,
    pub certificate: CertificateWatch,
}

impl Reloader {
    /// Reads `file` and the environment on each request, and when the file or one that it names
    /// has changed. Never returns.
    pub async fn run(mut self, file: Option<PathBuf>, mut requests: mpsc::Receiver<ReloadRequest>) {
        let mut watch = self.watch(file.as_ref(), None);
        loop {
            let (request, change) = tokio::select! {
                Some(request) = requests.recv() => (Some(request), None),
                change = next_change(&mut watch, self.last_failed()) => (None, Some(change)),
            };
            watch.as_mut().map(FileWatch::mark_as_read);
            let settings = config::load(file.as_deref());
            let is_known = match change {
                // The files may have changed after the process read them at its start.
                Some(FileChange::Started) => self.is_active(&settings),
                Some(FileChange::Retry) => self.has_same_problems(&settings),
                Some(FileChange::Contents) | None => false,
            };
            if is_known {
                continue;
            }
            let outcome = self.reload(settings).await;
            watch = self.watch(file.as_ref(), watch);
            if let Some(request) = request {
                let _ = request.send(outcome);
            }
        }
    }

    /// Whether the last reload found invalid settings. The cause may be in a file that the settings
    /// name, which is not watched then.
    fn last_failed(&self) -> bool {
        self.live_config.last_outcome().is_some_and(|last| last.result == ReloadResult::Invalid)
    }

    /// Whether `settings` have exactly the problems of the last reload.
    fn has_same_problems(&self, settings: &Result<Config, Problems>) -> bool {
        let last = self.live_config.last_outcome();
        let same = |problems| last.is_some_and(|last| last.problems == messages(problems));
        settings.as_ref().err().is_some_and(same)
    }

    /// Whether `settings` are those that are active.
    fn is_active(&self, settings: &Result<Config, Problems>) -> bool {
        let active = self.live_config.current();
        settings.as_ref().is_ok_and(|config| Difference::between(&active, config).is_empty())
    }

    /// Watches the files of the active settings, if `admin.watch_config` is set.
    fn watch(&self, file: Option<&PathBuf>, before: Option<FileWatch>) -> Option<FileWatch> {
        let config = self.live_config.current();
        if !config.admin.watch_config {
            return None;
        }
        let files: Vec<PathBuf> = file.cloned().into_iter().chain(config.pod_tls_files()).collect();
        match before {
            Some(mut watch) => {
                watch.set_files(files);
                Some(watch)
            }
            None => match FileWatch::new(files) {
                Ok(watch) => Some(watch),
                Err(error) => {
                    log::warn!("settings files are not watched, reload on request only: {error}");
                    None
                }
            },
        }
    }

    async fn reload(&mut self, settings: Result<Config, Problems>) -> Arc<ReloadOutcome> {
        let (result, problems) = match settings {
            Ok(config) => self.apply(config).await,
            Err(problems) => (ReloadResult::Invalid, messages(&problems)),
        };
        for problem in &problems {
            log::warn!("reload {}, no setting changes: {problem}", result.label());
        }
        self.current.load().counters.count_reload(result.label());
        let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let outcome = Arc::new(ReloadOutcome { at, result, problems });
        self.live_config.set_last_outcome(outcome.clone());
        outcome
    }

    async fn apply(&mut self, mut config: Config) -> (ReloadResult, Vec<String>) {
        let old = self.live_config.current();
        let difference = Difference::between(&old, &config);
        if difference.is_empty() {
            log::info!("reload: settings unchanged");
            return (ReloadResult::Unchanged, Vec::new());
        }
        let fixed = difference.needing_restart();
        let fixed: Vec<String> =
            fixed.map(|change| format!("{change} requires a restart")).collect();
        if !fixed.is_empty() {
            return (ReloadResult::Refused, fixed);
        }
        config.reuse_unchanged(&old, &difference);
        if let Err(error) = self.distribute(&config).await {
            let problem = format!("internal error: control actor unavailable: {error}");
            return (ReloadResult::Refused, vec![problem]);
        }
        if difference.affects_server_tls() {
            self.certificate = CertificateWatch::new(config.server.tls.as_ref());
        }
        config.log_warnings();
        // A level that an operator has set stays until the setting itself changes.
        let level = Some(config.log.level).filter(|level| *level != old.log.level);
        // The next line must not be hidden by the new level.
        level.into_iter().for_each(|level| logging::set_level(level.max(log::max_level())));
        log::info!("reload applied: {difference}");
        level.into_iter().for_each(logging::set_level);
        self.live_config.replace(config);
        (ReloadResult::Applied, Vec::new())
    }

    /// Passes valid settings on. The MetricsActor has to know new services before workers ask for
    /// their pods.
    async fn distribute(&mut self, config: &Config) -> Result<(), MailboxError> {
        let mut ids = self.ids.clone();
        let rules = services::rules(&mut ids, config);
        send_retrying(&self.metrics, || Reconfigure(rules.clone())).await?;
        let traffic = self.current.load().with_config(config, &ids);
        self.current.store(Arc::new(traffic));
        self.discovery.do_send(SetLookups(services::lookups(&mut ids, config)));
        self.ids = ids;
        Ok(())
    }
}

fn messages(Problems(problems): &Problems) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Waits for a change of the watched files, or for the time to read invalid settings again.
async fn next_change(watch: &mut Option<FileWatch>, last_failed: bool) -> FileChange {
    match watch {
        Some(watch) => watch.wait_for_change(last_failed.then_some(RETRY_INTERVAL)).await,
        None => std::future::pending().await,
    }
}

/// Reloads the certificate of the traffic listener when its files change, until this is dropped.
pub(super) struct CertificateWatch(Option<JoinHandle<()>>);

impl CertificateWatch {
    /// Watches the files of `tls`, if clients use TLS.
    pub fn new(tls: Option<&ServerTls>) -> Self {
        Self(tls.map(|tls| actix_rt::spawn(tls.certificate.clone().watch_files())))
    }
}

impl Drop for CertificateWatch {
    fn drop(&mut self) {
        if let Some(watch) = &self.0 {
            watch.abort();
        }
    }
}
