//! Whether this process takes new connections.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Shared by the probes and the handshakes, so that both say the same.
#[derive(Debug, Default)]
pub struct Health {
    draining: AtomicBool,
}

impl Health {
    /// Whether the balancer is going down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// From now on no connection is welcome.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }
}
