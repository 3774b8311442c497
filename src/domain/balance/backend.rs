//! Where a backend is reached: its service, URL, address and transport.

use std::hash::{Hash, Hasher};

/// Where a backend is reached. Two backends are equal if they have the same service, address and
/// transport; the spelling of the URL does not matter.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The name of its service.
    pub service: String,
    /// The URL as configured, verbatim.
    pub url: String,
    /// `host:port` taken from the URL, or the path of a Unix-domain socket.
    pub address: String,
    pub transport: Transport,
}

/// How bytes get to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Plain TCP (`http:`, `ws:`).
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

    /// Returns the host and port for a `Host` field that the balancer writes itself.
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
