//! What the configuration says of one backend's size.

/// How much of the connections a backend gets, and how many it may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Relative to other backends; what the backend reports multiplies it.
    pub weight: f64,
    /// Connections at most; where the backend reports a limit too, the smaller one counts.
    pub max_connections: Option<u64>,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1.0, max_connections: None }
    }
}
