//! Close codes (RFC 6455 §7.4, IANA WebSocket Close Code Number registry).

use std::fmt;

/// A close code that may travel in a Close frame.
///
/// 1005, 1006 and 1015 stand for things that never travel (RFC 6455 §7.4.1); no value of this
/// type holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1001: an endpoint is going away.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1008: a rule was broken.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message is larger than can be taken.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1012: the service restarts; the client should come back.
    pub const SERVICE_RESTART: Self = Self(1012);

    /// The code, unless it is out of 1000 to 4999 or one that must not be sent.
    pub fn new(code: u16) -> Option<Self> {
        match code {
            1004..=1006 | 1015 => None,
            1000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The number on the wire.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_never_travel_cannot_be_made() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 5000, u16::MAX] {
            assert_eq!(CloseCode::new(code), None, "{code}");
        }
        for code in [1000, 1001, 1012, 3000, 4999] {
            assert_eq!(CloseCode::new(code).map(CloseCode::get), Some(code));
        }
    }
}
