//! What a report contains, and what all readers have in common.

use std::fmt;

use thiserror::Error;

/// The longest answer that is read, in bytes, unless its reader accepts more.
pub const MAX_REPORT_LEN: usize = 64 * 1024;

/// The largest count that is accepted: no pod can have more descriptors.
pub(super) const MAX_CONNECTIONS: u64 = i32::MAX as u64;

/// What an error message says a count should be.
pub(super) const COUNT: &str = "a whole number from 0 to 2147483647";

/// The largest weight that is accepted; a larger one is probably a mistake.
pub(super) const MAX_WEIGHT: f64 = 1000.0;

/// What a pod reports of itself. Values that it does not report are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The connections on the pod. Only agent lines do not contain them.
    pub connections: Option<u64>,
    /// The most connections that the pod accepts; with 0 it accepts none.
    pub max_connections: Option<u64>,
    /// The pod's part of the connections relative to other pods: over 0, at most 1000, usually 1.
    pub weight: Option<f64>,
    /// Whether the pod asks for no new connections. It keeps those that it has.
    pub draining: Option<bool>,
    /// Why the pod is down, if it reports that: the agent's word and description.
    pub down: Option<String>,
    pub pod_name: Option<String>,
    pub pod_ip: Option<String>,
    pub node_name: Option<String>,
}

/// Why a poll gave no report.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReportError {
    /// No complete answer came: the pod refused, did not answer in time or closed the connection.
    #[error("no answer: {0}")]
    Unreachable(String),
    #[error("status {0}, expected 200")]
    Status(u16),
    /// The body is longer than [`Reader::max_len`] bytes.
    #[error("body is longer than {0} bytes")]
    TooLong(usize),
    /// The body is not of the expected format.
    #[error("cannot parse the report: {0}")]
    Malformed(String),
    /// A value is missing, of another type or out of range.
    #[error("{field} is {value}, expected {expected}")]
    Value {
        /// The field's name in the format.
        field: String,
        /// The value found, shortened, or `missing`.
        value: String,
        expected: &'static str,
    },
}

/// What a reader's setting should look like.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("expected {0}")]
pub struct SettingError(pub(super) &'static str);

/// Reads reports of one format.
pub trait Reader: Send + Sync + fmt::Debug {
    /// Reads a complete answer.
    ///
    /// # Errors
    /// Returns a [`ReportError`] if the answer is not a valid report. The pod's count is then
    /// unknown, never 0.
    fn read(&self, body: &[u8]) -> Result<Report, ReportError>;

    /// Returns the longest answer that is read, in bytes.
    fn max_len(&self) -> usize {
        MAX_REPORT_LEN
    }
}

/// Checks that an HTTP answer with this status may contain a report.
///
/// # Errors
/// Returns [`ReportError::Status`] unless the status is 200.
pub fn check_status(status: u16) -> Result<(), ReportError> {
    if status == 200 { Ok(()) } else { Err(ReportError::Status(status)) }
}

pub(super) fn check_len(body: &[u8], max: usize) -> Result<(), ReportError> {
    if body.len() <= max { Ok(()) } else { Err(ReportError::TooLong(max)) }
}

/// Returns text from a pod for a log line: shortened and with control characters escaped.
pub(super) fn printable(text: &[u8]) -> String {
    let mut printable = String::new();
    for character in String::from_utf8_lossy(text).chars() {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    shorten(&printable)
}

/// Shortens a value from a pod, so that it cannot fill the log.
pub(super) fn shorten(value: &str) -> String {
    const MAX_LEN: usize = 128;
    if value.len() <= MAX_LEN {
        return value.to_owned();
    }
    format!("{}…", &value[..value.floor_char_boundary(MAX_LEN)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_status_200_may_contain_a_report() {
        assert_eq!(check_status(200), Ok(()));
        for status in [0, 100, 199, 201, 204, 206, 304, 404, 503, u16::MAX] {
            assert_eq!(check_status(status), Err(ReportError::Status(status)));
        }
    }

    #[test]
    fn the_expected_count_in_messages_is_the_checked_limit() {
        assert!(COUNT.ends_with(&format!(" {MAX_CONNECTIONS}")), "{COUNT}");
    }

    #[test]
    fn text_from_pods_is_shortened_and_escaped() {
        assert_eq!(printable(b"a\x1b[31m\r\nb\xff"), "a\\u{1b}[31m\\r\\nb\u{fffd}");
        assert_eq!(printable(&[b'x'; 500]), format!("{}…", "x".repeat(128)));
        assert!(printable(&[0; 500]).len() < 140);
    }
}
