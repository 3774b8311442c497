//! Close codes (RFC 6455 §7.4 and the IANA WebSocket Close Code Number registry).

use std::fmt;

/// A close code that may be sent in a Close frame.
///
/// 1005, 1006 and 1015 are reserved for local use and must not be sent (RFC 6455 §7.4.1), so no value
/// of this type holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1001: an endpoint is going away.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1008: the sender broke a rule.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message is too big to process.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1012: the service restarts; the client should reconnect.
    pub const SERVICE_RESTART: Self = Self(1012);

    /// Returns `None` for a code that is outside 1000 to 4999 or must not be sent.
    pub fn new(code: u16) -> Option<Self> {
        match code {
            1004..=1006 | 1015 => None,
            1000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// Returns the number as it is sent.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The close codes that operators configure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCodes {
    /// `close_code_drain`: what a client gets when the balancer ends its session on purpose.
    pub drain: CloseCode,
    /// `close_code_pod_lost`: what a client gets when its pod fails.
    pub pod_lost: CloseCode,
}

impl Default for CloseCodes {
    fn default() -> Self {
        Self { drain: CloseCode::SERVICE_RESTART, pod_lost: CloseCode::SERVICE_RESTART }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_must_not_be_sent_cannot_be_created() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 5000, u16::MAX] {
            assert_eq!(CloseCode::new(code), None, "{code}");
        }
        for code in [1000, 1001, 1012, 3000, 4999] {
            assert_eq!(CloseCode::new(code).map(CloseCode::get), Some(code));
        }
    }
}
