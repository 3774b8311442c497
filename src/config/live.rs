//! What the rest of the program knows of reloads: how to ask for one, and what came of the last.

use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::Config;

/// What came of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadResult {
    /// The new settings hold.
    Applied,
    /// They are the old ones.
    Unchanged,
    /// Some of them take a restart: nothing has changed.
    Refused,
    /// Some of them are wrong, or cannot be read: nothing has changed.
    Invalid,
}

impl ReloadResult {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Applied, Self::Unchanged, Self::Refused, Self::Invalid];

    /// Its name in telemetry.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
        }
    }
}

/// A reload that has been tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// When (RFC 3339).
    pub at: String,
    /// What came of it.
    pub result: ReloadResult,
    /// Why it was not applied, one sentence for each key.
    pub problems: Vec<String>,
}

/// Whoever waits for a reload.
pub type Request = oneshot::Sender<Arc<Outcome>>;

/// Reloads that may wait; more wait for a place first.
const WAITING: usize = 16;

/// Asks for reloads and knows the settings that hold.
#[derive(Debug)]
pub struct Reloads {
    requests: OnceLock<mpsc::Sender<Request>>,
    config: ArcSwap<Config>,
    last: ArcSwapOption<Outcome>,
}

impl Reloads {
    /// Nobody answers requests yet.
    pub fn new(config: Config) -> Self {
        let config = ArcSwap::from_pointee(config);
        Self { requests: OnceLock::new(), config, last: ArcSwapOption::empty() }
    }

    /// The requests, for whoever answers them.
    pub fn listen(&self) -> mpsc::Receiver<Request> {
        let (sender, requests) = mpsc::channel(WAITING);
        let _ = self.requests.set(sender);
        requests
    }

    /// Reads the settings again; `None` where nobody does that.
    pub async fn reload(&self) -> Option<Arc<Outcome>> {
        let (sender, outcome) = oneshot::channel();
        self.requests.get()?.send(sender).await.ok()?;
        outcome.await.ok()
    }

    /// The settings that hold.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// What came of the last reload, if there was one.
    pub fn last(&self) -> Option<Arc<Outcome>> {
        self.last.load_full()
    }

    /// From now on these settings hold.
    pub fn set_config(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// This came of the last reload.
    pub fn set_last(&self, outcome: Arc<Outcome>) {
        self.last.store(Some(outcome));
    }
}
