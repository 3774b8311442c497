//! Takes changed settings over while the process serves.
//!
//! ```text
//!  SIGHUP, POST /api/reload, a changed file ──► read ─► difference ─► refused: nothing happens
//!                                                           │
//!     MetricsActor: pools, polls ◄── new indexes first ───────┤
//!     workers: one swap, for handshakes that begin ◄────────┤
//!     DiscoveryActor: names that are looked up ◄────────────┘
//! ```

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::{Addr, MailboxError};
use actix_rt::task::JoinHandle;

use crate::{
    actors::{
        discovery::{DiscoveryActor, SetWatches},
        metrics::{MetricsActor, Reconfigure},
    },
    config::{
        self, Config, FileChange, FileWatch, Problems,
        diff::Difference,
        live::{LiveConfig, ReloadOutcome, ReloadResult},
    },
    net::tls::ServerTls,
    services::Indexes,
    telemetry::logging,
    traffic::state::CurrentState,
};

/// How long until settings that were wrong are read again unasked.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Knows whom to tell of other settings.
pub struct Reloader {
    /// Where requests come from and outcomes go to.
    pub live_config: Arc<LiveConfig>,
    /// What workers go by.
    pub live: Arc<CurrentState>,
    /// Who chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Who looks names up.
    pub discovery: Addr<DiscoveryActor>,
    /// Which service is known by which number.
    pub indexes: Indexes,
    /// The look at the listener's certificate.
    pub certificate: CertificateWatch,
}

impl Reloader {
    /// Reads `file` and the environment whenever that is asked for, or when the file or one of those
    /// that it names has changed. For ever.
    pub async fn run(mut self, file: Option<PathBuf>) {
        let mut requests = self.live_config.take_requests();
        let mut watch = self.watch(file.as_ref(), None);
        loop {
            let (request, change) = tokio::select! {
                Some(request) = requests.recv() => (Some(request), None),
                change = changed(&mut watch, self.has_failed()) => (None, Some(change)),
            };
            watch.as_mut().map(FileWatch::mark_as_read);
            let read = config::load(file.as_deref());
            let is_known = match change {
                // The files may have changed since the process began to read them.
                Some(FileChange::Started) => self.goes_by(&read),
                Some(FileChange::Retry) => self.fails_alike(&read),
                Some(FileChange::Contents) | None => false,
            };
            if is_known {
                continue;
            }
            let outcome = self.reload(read).await;
            watch = self.watch(file.as_ref(), watch);
            if let Some(request) = request {
                let _ = request.send(outcome);
            }
        }
    }

    /// Whether the last settings were not to be had. The reason may lie in files that they name, which
    /// nobody watches.
    fn has_failed(&self) -> bool {
        self.live_config.last_outcome().is_some_and(|last| last.result == ReloadResult::Invalid)
    }

    /// Whether what has been read is no better than at the last time.
    fn fails_alike(&self, read: &Result<Config, Problems>) -> bool {
        let last = self.live_config.last_outcome();
        let same = |problems| last.is_some_and(|last| last.problems == sentences(problems));
        read.as_ref().err().is_some_and(same)
    }

    /// Whether what has been read holds already.
    fn goes_by(&self, read: &Result<Config, Problems>) -> bool {
        let holds = self.live_config.current();
        read.as_ref().is_ok_and(|config| Difference::between(&holds, config).is_empty())
    }

    /// Watches what the settings that hold were read from, if they say so.
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
                    log::warn!("changes of settings will not be seen: {error}");
                    None
                }
            },
        }
    }

    async fn reload(&mut self, read: Result<Config, Problems>) -> Arc<ReloadOutcome> {
        let (result, problems) = match read {
            Ok(config) => self.take(config).await,
            Err(problems) => (ReloadResult::Invalid, sentences(&problems)),
        };
        for problem in &problems {
            log::warn!("reload {}, nothing changes: {problem}", result.label());
        }
        self.live.load().counters.count_reload(result.label());
        let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let outcome = Arc::new(ReloadOutcome { at, result, problems });
        self.live_config.set_last_outcome(outcome.clone());
        outcome
    }

    async fn take(&mut self, mut config: Config) -> (ReloadResult, Vec<String>) {
        let old = self.live_config.current();
        let difference = Difference::between(&old, &config);
        if difference.is_empty() {
            log::info!("reload: the settings are the same as before");
            return (ReloadResult::Unchanged, Vec::new());
        }
        let fixed = difference.needing_restart();
        let fixed: Vec<String> =
            fixed.map(|change| format!("{change} requires a restart")).collect();
        if !fixed.is_empty() {
            return (ReloadResult::Refused, fixed);
        }
        config.reuse_unchanged(&old, &difference);
        if let Err(error) = self.apply(&config).await {
            return (ReloadResult::Refused, vec![format!("the control actors are away: {error}")]);
        }
        if difference.affects_server_tls() {
            self.certificate = CertificateWatch::new(config.server.tls.as_ref());
        }
        config.log_warnings();
        // What an operator has set meanwhile goes on until the file says something else.
        let level = Some(config.log.level).filter(|level| *level != old.log.level);
        // A level that hides this line holds only after it.
        level.into_iter().for_each(|level| logging::set_level(level.max(log::max_level())));
        log::info!("reload applied: {difference}");
        level.into_iter().for_each(logging::set_level);
        self.live_config.replace(config);
        (ReloadResult::Applied, Vec::new())
    }

    async fn apply(&mut self, config: &Config) -> Result<(), MailboxError> {
        // Before anybody asks for a service that is new.
        let mut indexes = self.indexes.clone();
        let rules = indexes.rules(config);
        if self.metrics.send(Reconfigure(rules.clone())).await.is_err() {
            // The first word may have been lost to a panic.
            self.metrics.send(Reconfigure(rules)).await?;
        }
        let traffic = self.live.load().renewed(config, &indexes);
        self.live.store(Arc::new(traffic));
        self.discovery.do_send(SetWatches(indexes.lookups(config)));
        self.indexes = indexes;
        Ok(())
    }
}

fn sentences(Problems(problems): &Problems) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Why the files are to be read: what has failed is tried again.
async fn changed(watch: &mut Option<FileWatch>, has_failed: bool) -> FileChange {
    match watch {
        Some(watch) => watch.wait_for_change(has_failed.then_some(TRY_AGAIN)).await,
        None => std::future::pending().await,
    }
}

/// Looks at the files of the listener's certificate until it is dropped.
pub struct CertificateWatch(Option<JoinHandle<()>>);

impl CertificateWatch {
    /// At those of `tls`, if clients speak TLS.
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
