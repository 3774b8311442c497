//! Polls of backends, as the pool sees them.

use std::{sync::Arc, time::Instant};

use super::{backend::Backend, lease::Gauge};

/// A poll under way. Remembers the open sessions at its start.
#[derive(Debug)]
pub struct Poll {
    pub(super) backend: Arc<Backend>,
    pub(super) sent_at: Instant,
    pub(super) own_when_sent: u32,
}

impl Poll {
    pub fn backend(&self) -> &Backend {
        &self.backend
    }
}

/// A backend to poll, with the gauge of its load.
#[derive(Clone, Debug)]
pub struct PollTarget {
    backend: Arc<Backend>,
    gauge: Arc<Gauge>,
}

impl PollTarget {
    pub(super) fn new(backend: Arc<Backend>, gauge: Arc<Gauge>) -> Self {
        Self { backend, gauge }
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Starts a poll. Call this when the request is sent, not when its answer arrives: the answer
    /// may not count sessions that open in between.
    pub fn start_poll(&self, now: Instant) -> Poll {
        Poll { backend: self.backend.clone(), sent_at: now, own_when_sent: self.gauge.load().open }
    }
}
