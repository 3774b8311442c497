//! A lease counts a session or a request on its backend until it is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{backend::Backend, health::FailureCounters};

/// This replica's own load on one backend, shared between the pool and the leases.
///
/// All counts are in one word, so that a reader never sees a session counted twice or not at all.
#[derive(Debug, Default)]
#[repr(C)] // A pick reads the counts and the first field of the failures: one cache line.
pub struct Gauge {
    counts: AtomicU64,
    pub failures: FailureCounters,
}

/// Bits of one count: up to two million, more than a process may have descriptors.
const BITS: u32 = 21;
const MASK: u64 = (1 << BITS) - 1;

/// The value of one in each count.
const OPEN: u64 = 1;
const CONNECTING: u64 = 1 << BITS;
const REQUEST: u64 = 1 << (2 * BITS);

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A handshake and the session that it leads to.
    Session,
    /// A plain request. Neither reports nor limits count it.
    Request,
}

/// A reading of a [`Gauge`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sessions after their handshake.
    pub open: u32,
    /// Handshakes under way.
    pub connecting: u32,
    /// Plain requests under way.
    pub requests: u32,
}

impl Gauge {
    /// Returns all counts at one instant.
    pub fn load(&self) -> Load {
        let word = self.counts.load(Relaxed);
        let count = |unit: u64| ((word / unit) & MASK) as u32;
        Load { open: count(OPEN), connecting: count(CONNECTING), requests: count(REQUEST) }
    }
}

/// Counts a session (first as connecting, then as open) or a request on `backend`, until it is
/// dropped.
///
/// Invariant: the gauge counts each lease exactly once, in every phase of its session.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    gauge: Arc<Gauge>,
    weight: u64,
}

impl Lease {
    /// Counts a handshake or a request that starts.
    pub fn new(backend: Arc<Backend>, gauge: Arc<Gauge>, purpose: Purpose) -> Self {
        let weight = match purpose {
            Purpose::Session => CONNECTING,
            Purpose::Request => REQUEST,
        };
        gauge.counts.fetch_add(weight, Relaxed);
        Self { backend, gauge, weight }
    }

    /// Records that the handshake succeeded: from now on the lease counts as an open session.
    pub fn establish(&mut self) {
        let step = OPEN.wrapping_sub(self.weight);
        self.gauge.counts.fetch_add(step, Relaxed);
        self.weight = OPEN;
        self.gauge.failures.record_opened();
    }

    /// Records that the backend has answered a plain request.
    pub fn record_answer(&self) {
        self.gauge.failures.record_success();
    }

    /// Records that the backend has not accepted the connection, for this reason.
    pub fn record_failure(self, reason: String) {
        self.gauge.failures.record_failure(reason);
    }

    /// Records that the backend has ended the session properly within
    /// [`EARLY_DEATH`](super::health::EARLY_DEATH).
    pub fn record_early_end(&self) {
        self.gauge.failures.record_early_end();
    }

    /// Records that the backend has dropped the session within
    /// [`EARLY_DEATH`](super::health::EARLY_DEATH).
    pub fn record_early_death(&self) {
        self.gauge.failures.record_early_death();
    }

    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gauge.counts.fetch_sub(self.weight, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::fixtures;

    proptest! {
        /// Steps: 0 starts a handshake, 1 establishes one (perhaps twice), 2 drops one, 3 starts a
        /// request.
        #[test]
        fn the_gauge_counts_each_lease_once(steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 0..200)) {
            let gauge = Arc::<Gauge>::default();
            let mut leases: Vec<(Lease, char)> = Vec::new();
            let backend = Arc::new(fixtures::backend("pod"));
            let lease = |purpose| Lease::new(backend.clone(), gauge.clone(), purpose);
            for (step, index) in steps {
                match step {
                    0 => leases.push((lease(Purpose::Session), 'c')),
                    3 => leases.push((lease(Purpose::Request), 'r')),
                    1 if !leases.is_empty() => {
                        let at = index.index(leases.len());
                        let (lease, counted_as) = &mut leases[at];
                        lease.establish();
                        *counted_as = 'o';
                    }
                    2 if !leases.is_empty() => {
                        let at = index.index(leases.len());
                        leases.swap_remove(at);
                    }
                    _ => {}
                }
                let count = |kind| leases.iter().filter(|(_, known)| *known == kind).count() as u32;
                let expected =
                    Load { open: count('o'), connecting: count('c'), requests: count('r') };
                prop_assert_eq!(gauge.load(), expected);
            }
            drop(leases);
            prop_assert_eq!(gauge.load(), Load::default());
        }
    }
}
