//! What a session is to the rest of the program: its facts, its statistics and its rules.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    domain::{
        balance::backend::Backend,
        session::{close_code::CloseCodes, timeouts::SessionTimeouts},
    },
    relay::{TunnelRules, TunnelStats},
};

/// The rules of a session, fixed when it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRules {
    pub timeouts: SessionTimeouts,
    pub tunnel: TunnelRules,
}

/// A live session, as its actors, the registry and the admin API share it.
#[derive(Debug)]
pub struct SessionInfo {
    /// Unique in this process, counted from 1.
    pub id: u64,
    /// The client's address, taken from proxy headers if the proxy is trusted.
    pub client: IpAddr,
    pub backend: Arc<Backend>,
    pub close_codes: CloseCodes,
    pub opened_at: Instant,
    pub stats: Arc<TunnelStats>,
    /// Milliseconds from `opened_at` to the last activity that a timeout scan has seen.
    active_at: AtomicU64,
}

impl SessionInfo {
    /// Describes a session that opens now.
    pub fn new(client: IpAddr, backend: Arc<Backend>, close_codes: CloseCodes) -> Self {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Relaxed) + 1;
        Self {
            id,
            client,
            backend,
            close_codes,
            opened_at: Instant::now(),
            stats: Arc::default(),
            active_at: AtomicU64::new(0),
        }
    }

    /// Returns for how long no byte has passed, as of the last timeout scan.
    pub fn idle(&self) -> Duration {
        let active_at = Duration::from_millis(self.active_at.load(Relaxed));
        self.opened_at.elapsed().saturating_sub(active_at)
    }

    /// Stores for how long no byte has passed now.
    pub(super) fn set_idle(&self, idle: Duration) {
        let active_at = self.opened_at.elapsed().saturating_sub(idle);
        self.active_at.store(active_at.as_millis() as u64, Relaxed);
    }
}
