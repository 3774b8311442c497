//! The settings in use: read them, request a reload, see the result of the last one.

use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::model::Config;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadResult {
    /// The new settings are in use.
    Applied,
    /// The settings are the same as before.
    Unchanged,
    /// A changed setting requires a restart: the old settings stay in use.
    Refused,
    /// The new settings have problems or cannot be read: the old settings stay in use.
    Invalid,
}

impl ReloadResult {
    pub const ALL: [Self; 4] = [Self::Applied, Self::Unchanged, Self::Refused, Self::Invalid];

    /// Returns the name that telemetry uses.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
        }
    }
}

/// Result of a finished reload, with the reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReloadOutcome {
    /// When it finished (RFC 3339).
    pub at: String,
    pub result: ReloadResult,
    /// Why it was not applied, one sentence per key.
    pub problems: Vec<String>,
}

/// A request for a reload; the outcome is sent to it.
pub type ReloadRequest = oneshot::Sender<Arc<ReloadOutcome>>;

/// Requests for a reload that can be queued. Further ones wait until there is room.
const MAX_QUEUED_REQUESTS: usize = 16;

/// The settings in use, and the requests to reload them.
#[derive(Debug)]
pub struct LiveConfig {
    requests: OnceLock<mpsc::Sender<ReloadRequest>>,
    current: ArcSwap<Config>,
    last_outcome: ArcSwapOption<ReloadOutcome>,
}

impl LiveConfig {
    /// Holds `config`; reloads are not available before [`take_requests`](Self::take_requests).
    pub fn new(config: Config) -> Self {
        let current = ArcSwap::from_pointee(config);
        Self { requests: OnceLock::new(), current, last_outcome: ArcSwapOption::empty() }
    }

    /// Returns the requests for the one task that answers them.
    pub fn take_requests(&self) -> mpsc::Receiver<ReloadRequest> {
        let (sender, requests) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let _ = self.requests.set(sender);
        requests
    }

    /// Requests a reload and waits for its outcome; `None` if this process does not reload.
    pub async fn request_reload(&self) -> Option<Arc<ReloadOutcome>> {
        let (sender, outcome) = oneshot::channel();
        self.requests.get()?.send(sender).await.ok()?;
        outcome.await.ok()
    }

    pub fn current(&self) -> Arc<Config> {
        self.current.load_full()
    }

    pub fn replace(&self, config: Config) {
        self.current.store(Arc::new(config));
    }

    pub fn last_outcome(&self) -> Option<Arc<ReloadOutcome>> {
        self.last_outcome.load_full()
    }

    pub fn set_last_outcome(&self, outcome: Arc<ReloadOutcome>) {
        self.last_outcome.store(Some(outcome));
    }
}
