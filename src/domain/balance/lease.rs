//! A session's slot on a backend, released by being dropped.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::health::Trouble;

/// Where a backend is reached. However its URL is written, it is the same one.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The service it belongs to.
    pub service: String,
    /// The URL as it was configured, verbatim.
    pub url: String,
    /// `host:port` taken from the URL, or the path of a Unix-domain socket.
    pub address: String,
    /// What connections to it are made of.
    pub transport: Transport,
}

/// What a connection is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP alone (`http:`, `ws:`).
    #[default]
    Tcp,
    /// TLS over TCP (`https:`, `wss:`).
    Tls,
    /// A Unix-domain socket (`unix:`).
    Unix,
}

impl Backend {
    fn identity(&self) -> (&str, &str, Transport) {
        (&self.service, &self.address, self.transport)
    }

    /// The name and port in `Host` fields that are not the client's.
    pub fn host(&self) -> &str {
        match self.transport {
            Transport::Unix => "localhost",
            Transport::Tcp | Transport::Tls => &self.address,
        }
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Backend {}

impl Hash for Backend {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// This replica's own load on one backend, shared between the pool and the leases.
///
/// All counts live in one word, so that a reader never sees a session in two or in none.
#[derive(Debug, Default)]
#[repr(C)] // A pick reads the counts and the troubles' first field: in one cache line.
pub struct Gauge {
    counts: AtomicU64,
    /// What went wrong, for the pool to judge.
    pub trouble: Trouble,
}

/// Bits of a count: room for two million, more than a process may have descriptors.
const BITS: u32 = 21;
const MASK: u64 = (1 << BITS) - 1;

/// One in each count.
const OPEN: u64 = 1;
const CONNECTING: u64 = 1 << BITS;
const REQUEST: u64 = 1 << (2 * BITS);

/// What a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A handshake and the session that it leads to.
    Session,
    /// A plain request. It is no connection that anybody reports or limits.
    Request,
}

/// A reading of a [`Gauge`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sessions in the tunnel.
    pub open: u32,
    /// Handshakes under way.
    pub connecting: u32,
    /// Plain requests under way.
    pub requests: u32,
}

impl Gauge {
    /// All counts at one instant.
    pub fn load(&self) -> Load {
        let word = self.counts.load(Relaxed);
        let count = |unit: u64| ((word / unit) & MASK) as u32;
        Load { open: count(OPEN), connecting: count(CONNECTING), requests: count(REQUEST) }
    }
}

/// A slot on `backend`: counted as connecting, then as open, or as a request; and not at all once
/// dropped.
///
/// Invariant: each lease stands in its gauge exactly once, whatever its session goes through.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    gauge: Arc<Gauge>,
    weight: u64,
}

impl Lease {
    /// Takes a slot for a handshake or a request that begins.
    pub fn new(backend: Arc<Backend>, gauge: Arc<Gauge>, purpose: Purpose) -> Self {
        let weight = match purpose {
            Purpose::Session => CONNECTING,
            Purpose::Request => REQUEST,
        };
        gauge.counts.fetch_add(weight, Relaxed);
        Self { backend, gauge, weight }
    }

    /// The handshake succeeded: from now on the slot counts as an open session.
    pub fn establish(&mut self) {
        let step = OPEN.wrapping_sub(self.weight);
        self.gauge.counts.fetch_add(step, Relaxed);
        self.weight = OPEN;
        self.gauge.trouble.opened();
    }

    /// The backend has answered a plain request.
    pub fn answered(&self) {
        self.gauge.trouble.succeeded();
    }

    /// The backend has not taken the connection, for this reason.
    pub fn failed(self, reason: String) {
        self.gauge.trouble.failed(reason);
    }

    /// The backend has ended the session, for a reason of its own, within
    /// [`EARLY_DEATH`](super::health::EARLY_DEATH).
    pub fn ended_early(&self) {
        self.gauge.trouble.ended_early();
    }

    /// The backend has dropped the session within [`EARLY_DEATH`](super::health::EARLY_DEATH).
    pub fn died_early(&self) {
        self.gauge.trouble.died_early();
    }

    /// The backend the slot is on.
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

    fn backend() -> Arc<Backend> {
        let [service, url, address] = ["default", "http://a:3001", "a:3001"].map(ToOwned::to_owned);
        Arc::new(Backend { service, url, address, transport: Transport::Tcp })
    }

    proptest! {
        /// Steps: 0 begins a handshake, 1 establishes one (twice does no harm), 2 drops one,
        /// 3 begins a request.
        #[test]
        fn leases_are_counted_exactly(steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 0..200)) {
            let gauge = Arc::<Gauge>::default();
            let mut leases: Vec<(Lease, char)> = Vec::new();
            let lease = |purpose| Lease::new(backend(), gauge.clone(), purpose);
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
