//! A session's slot on a backend, released by being dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Where a backend is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// The name and port in `Host` fields that are not the client's.
    pub fn host(&self) -> &str {
        match self.transport {
            Transport::Unix => "localhost",
            Transport::Tcp | Transport::Tls => &self.address,
        }
    }
}

/// This replica's own load on one backend, shared between the pool and the leases.
///
/// Both counts live in one word, so that a reader never sees a session in both or in neither.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

/// One session in the open count (low half) and in the connecting count (high half).
const OPEN: u64 = 1;
const CONNECTING: u64 = 1 << 32;

/// A reading of a [`Gauge`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sessions in the tunnel.
    pub open: u32,
    /// Handshakes and plain requests under way.
    pub connecting: u32,
}

impl Gauge {
    /// Both counts at one instant.
    pub fn load(&self) -> Load {
        let word = self.0.load(Relaxed);
        Load { open: word as u32, connecting: (word >> 32) as u32 }
    }
}

/// A slot on `backend`: counted as connecting, then as open, and not at all once dropped.
///
/// Invariant: each lease stands in its gauge exactly once, whatever its session goes through.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    gauge: Arc<Gauge>,
    weight: u64,
}

impl Lease {
    /// Takes a slot for a handshake that begins.
    pub fn new(backend: Arc<Backend>, gauge: Arc<Gauge>) -> Self {
        gauge.0.fetch_add(CONNECTING, Relaxed);
        Self { backend, gauge, weight: CONNECTING }
    }

    /// The handshake succeeded: from now on the slot counts as an open session.
    pub fn establish(&mut self) {
        let step = OPEN.wrapping_sub(self.weight);
        self.gauge.0.fetch_add(step, Relaxed);
        self.weight = OPEN;
    }

    /// The backend the slot is on.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gauge.0.fetch_sub(self.weight, Relaxed);
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
        /// Steps: 0 begins a handshake, 1 establishes one (twice does no harm), 2 drops one.
        #[test]
        fn leases_are_counted_exactly(steps in prop::collection::vec((0u8..3, any::<prop::sample::Index>()), 0..200)) {
            let gauge = Arc::<Gauge>::default();
            let mut leases: Vec<(Lease, bool)> = Vec::new();
            for (step, index) in steps {
                match step {
                    0 => leases.push((Lease::new(backend(), gauge.clone()), false)),
                    1 if !leases.is_empty() => {
                        let at = index.index(leases.len());
                        let (lease, open) = &mut leases[at];
                        lease.establish();
                        *open = true;
                    }
                    2 if !leases.is_empty() => {
                        let at = index.index(leases.len());
                        leases.swap_remove(at);
                    }
                    _ => {}
                }
                let open = leases.iter().filter(|(_, open)| *open).count() as u32;
                let expected = Load { open, connecting: leases.len() as u32 - open };
                prop_assert_eq!(gauge.load(), expected);
            }
            drop(leases);
            prop_assert_eq!(gauge.load(), Load::default());
        }
    }
}
