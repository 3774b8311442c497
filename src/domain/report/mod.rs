//! What a pod says of itself. Untrusted input: status, size, type and range are checked.
//!
//! One [`Reader`] per format: JSON, Prometheus' text format and the line of an agent of HAProxy's.
//! None of them does I/O; whoever polls brings the bytes.

mod agent;
mod json;
mod prometheus;
pub mod query;

use std::fmt;

use thiserror::Error;

pub use self::{
    agent::AgentReader,
    json::{JsonReader, Pointer},
    prometheus::{LabelMatch, MetricName, PrometheusReader},
};

/// Longest answer that is read unless its reader takes more, in bytes.
pub const MAX_REPORT_LEN: usize = 64 * 1024;

/// Largest believable count: no pod holds more connections than it could have descriptors.
const MAX_CONNECTIONS: u64 = i32::MAX as u64;

/// What a count has to be.
const COUNT: &str = "a whole number from 0 to 2147483647";

/// Largest weight; a greater one is more likely a mistake than a pod.
const MAX_WEIGHT: f64 = 1000.0;

/// A pod's own account of itself. What it did not say is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Connections the pod holds. Only an agent's line says nothing of them.
    pub connections: Option<u64>,
    /// Connections the pod takes at most; with 0 it takes none.
    pub max_connections: Option<u64>,
    /// The pod's share of the connections against that of others: over 0, at most 1000, usually 1.
    pub weight: Option<f64>,
    /// Whether the pod wants no new connections and to keep those it has.
    pub draining: Option<bool>,
    /// Why the pod takes no connections, if it says so: the agent's word and description.
    pub down: Option<String>,
    /// `podName`, if given.
    pub pod_name: Option<String>,
    /// `podIP`, if given.
    pub pod_ip: Option<String>,
    /// `nodeName`, if given.
    pub node_name: Option<String>,
}

/// Why there is no report of a pod.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReportError {
    /// No whole answer came: refused, timed out, cut short.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// The pod answered with another status than 200.
    #[error("status {0} instead of 200")]
    Status(u16),
    /// The body is longer than this many bytes, which [`Reader::max_len`] says.
    #[error("more than {0} bytes")]
    TooLong(usize),
    /// The body is not of the expected format.
    #[error("not a report: {0}")]
    Malformed(String),
    /// A value is missing, of another type or out of range.
    #[error("{field} is {value}, expected {expected}")]
    Value {
        /// What was looked for, as the format calls it.
        field: String,
        /// What was found, shortened, or `missing`.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
}

/// Why a reader's setting is none: what was expected.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("expected {0}")]
pub struct SettingError(&'static str);

/// Reads one format.
pub trait Reader: Send + Sync + fmt::Debug {
    /// Reads a whole answer.
    ///
    /// # Errors
    /// A [`ReportError`] that says what was wrong; the pod's count is then unknown, never 0.
    fn read(&self, body: &[u8]) -> Result<Report, ReportError>;

    /// Longest answer that is read, in bytes.
    fn max_len(&self) -> usize {
        MAX_REPORT_LEN
    }
}

/// Whether an answer over HTTP with this status may hold a report.
///
/// # Errors
/// [`ReportError::Status`] for any other than 200.
pub fn check_status(status: u16) -> Result<(), ReportError> {
    if status == 200 { Ok(()) } else { Err(ReportError::Status(status)) }
}

fn check_len(body: &[u8], max: usize) -> Result<(), ReportError> {
    if body.len() <= max { Ok(()) } else { Err(ReportError::TooLong(max)) }
}

/// A pod's own words for a log line: without control characters, and not too many.
fn shown(text: &[u8]) -> String {
    let mut shown = String::new();
    for character in String::from_utf8_lossy(text).chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shorten(&shown)
}

/// Keeps a hostile value from filling the log.
fn shorten(value: &str) -> String {
    const SHOWN: usize = 128;
    if value.len() <= SHOWN {
        return value.to_owned();
    }
    format!("{}…", &value[..value.floor_char_boundary(SHOWN)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_may_hold_a_report() {
        assert_eq!(check_status(200), Ok(()));
        for status in [0, 100, 199, 201, 204, 206, 304, 404, 503, u16::MAX] {
            assert_eq!(check_status(status), Err(ReportError::Status(status)));
        }
    }

    #[test]
    fn what_a_count_has_to_be_is_what_is_checked() {
        assert!(COUNT.ends_with(&format!(" {MAX_CONNECTIONS}")), "{COUNT}");
    }

    #[test]
    fn each_reader_reads_up_to_its_limit() {
        let prometheus = PrometheusReader { name: "sessions".parse().unwrap(), labels: Vec::new() };
        let readers: [(Box<dyn Reader>, &[u8], u8); 3] = [
            (Box::new(JsonReader::default()), br#"{"agentsConnections":1}"#, b' '),
            (Box::new(prometheus), b"sessions 1\n", b'\n'),
            (Box::new(AgentReader), b"up\n", b'\n'),
        ];
        for (reader, body, padding) in readers {
            let expected = reader.read(body).unwrap();
            let mut body = body.to_vec();
            body.resize(reader.max_len(), padding);
            assert_eq!(reader.read(&body), Ok(expected), "{reader:?}");
            body.push(padding);
            assert_eq!(reader.read(&body), Err(ReportError::TooLong(reader.max_len())));
        }
    }

    #[test]
    fn hostile_words_are_shown_short_and_without_control_characters() {
        assert_eq!(shown(b"a\x1b[31m\r\nb\xff"), "a\\u{1b}[31m\\r\\nb\u{fffd}");
        assert_eq!(shown(&[b'x'; 500]), format!("{}…", "x".repeat(128)));
        assert!(shown(&[0; 500]).len() < 140);
    }
}
