//! The two sides of a session.

use std::fmt;

/// One of the two sides of a session. Its number indexes arrays that hold one item per side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    Client,
    Pod,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Pod];

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Pod,
            Self::Pod => Self::Client,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Pod => "pod",
        })
    }
}
