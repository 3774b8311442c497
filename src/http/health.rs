//! Whether this process takes new connections.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Shared by the probes and the handshakes. The probes go first, so that whoever routes to this
/// process stops before anybody is refused.
#[derive(Debug, Default)]
pub struct Health {
    leaving: AtomicBool,
    draining: AtomicBool,
}

impl Health {
    /// Whether the balancer wants new connections.
    pub fn is_ready(&self) -> bool {
        !self.leaving.load(Relaxed)
    }

    /// From now on no further connection is wanted; those that come are served all the same.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Whether the balancer refuses new connections.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// From now on no connection is taken.
    pub fn drain(&self) {
        self.leave();
        self.draining.store(true, Relaxed);
    }
}
