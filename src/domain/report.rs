//! What a pod says on its metric path. Untrusted input: status, size, type and range are checked.

use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// Longest metric answer that is read, in bytes.
pub const MAX_REPORT_LEN: usize = 64 * 1024;

/// Largest believable count: no pod holds more connections than it could have descriptors.
const MAX_CONNECTIONS: u64 = i32::MAX as u64;

/// A pod's own account of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Connections the pod holds (`agentsConnections`).
    pub connections: Option<u64>,
    /// Connections it may hold.
    pub max_connections: Option<u64>,
    /// Its share relative to others.
    pub weight: Option<f64>,
    /// It takes no new ones.
    pub draining: Option<bool>,
    /// It says that it is down.
    pub down: Option<String>,
    /// `podName`, if given.
    pub pod_name: Option<String>,
    /// `podIP`, if given.
    pub pod_ip: Option<String>,
    /// `nodeName`, if given.
    pub node_name: Option<String>,
}

/// Why a pod's count is not known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReportError {
    /// No whole answer came: refused, timed out, cut short.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// The pod answered with another status than 200.
    #[error("status {0} instead of 200")]
    Status(u16),
    /// The body is longer than [`MAX_REPORT_LEN`].
    #[error("more than {MAX_REPORT_LEN} bytes")]
    TooLong,
    /// The body is not a JSON object of the expected fields.
    #[error("not a report: {0}")]
    Malformed(String),
    /// `agentsConnections` is missing or not a whole number from 0 to 2147483647.
    #[error("agentsConnections is {0}, expected a whole number from 0 to {MAX_CONNECTIONS}")]
    Count(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    agents_connections: Option<Value>,
    #[serde(default)]
    pod_name: Option<String>,
    #[serde(default, rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(default)]
    node_name: Option<String>,
}

/// Reads a metric answer.
///
/// # Errors
/// A [`ReportError`] that says what was wrong; the pod's count is then unknown, never 0.
pub fn read(status: u16, body: &[u8]) -> Result<Report, ReportError> {
    if status != 200 {
        return Err(ReportError::Status(status));
    }
    if body.len() > MAX_REPORT_LEN {
        return Err(ReportError::TooLong);
    }
    // serde quotes what it did not expect.
    let malformed = |error: serde_json::Error| ReportError::Malformed(shorten(&error.to_string()));
    // By way of a map, because serde would take an array for the fields in order.
    let object: Map<String, Value> = serde_json::from_slice(body).map_err(malformed)?;
    let wire = Wire::deserialize(Value::Object(object)).map_err(malformed)?;
    let count = wire.agents_connections.ok_or_else(|| ReportError::Count("missing".into()))?;
    let connections = count
        .as_u64()
        .filter(|count| *count <= MAX_CONNECTIONS)
        .ok_or_else(|| ReportError::Count(shorten(&count.to_string())))?;
    Ok(Report {
        connections: Some(connections),
        max_connections: None,
        weight: None,
        draining: None,
        down: None,
        pod_name: wire.pod_name,
        pod_ip: wire.pod_ip,
        node_name: wire.node_name,
    })
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_count_alone_is_a_report() {
        let report = read(200, br#"{"agentsConnections": 7}"#).unwrap();
        assert_eq!(report, Report { connections: Some(7), ..Report::default() });
    }

    #[test]
    fn all_fields_and_unknown_ones() {
        let body = br#"{"agentsConnections":3,"podName":"p","podIP":"10.0.0.1","nodeName":"n","more":[1]}"#;
        let report = read(200, body).unwrap();
        assert_eq!(report.connections, Some(3));
        assert_eq!(report.pod_name.as_deref(), Some("p"));
        assert_eq!(report.pod_ip.as_deref(), Some("10.0.0.1"));
        assert_eq!(report.node_name.as_deref(), Some("n"));
    }

    #[test]
    fn whatever_is_no_report_is_an_error_and_never_zero() {
        let long = vec![b' '; MAX_REPORT_LEN + 1];
        let bodies: [(u16, &[u8]); 14] = [
            (503, br#"{"agentsConnections": 0}"#),
            (204, b""),
            (200, b""),
            (200, b"{}"),
            (200, b"null"),
            (200, b"[7]"),
            (200, b"12"),
            (200, b"<html></html>"),
            (200, br#"{"error": "no such route"}"#),
            (200, br#"{"agentsConnections": null}"#),
            (200, br#"{"agentsConnections": -1}"#),
            (200, br#"{"agentsConnections": 1.5}"#),
            (200, br#"{"agentsConnections": "3"}"#),
            (200, br#"{"agentsConnections": 4294967296}"#),
        ];
        for (status, body) in bodies.into_iter().chain([(200, &long[..])]) {
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert!(read(status, body).is_err(), "{status} {shown}");
        }
    }

    #[test]
    fn the_error_names_the_value() {
        let error = read(200, br#"{"agentsConnections": -1}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "agentsConnections is -1, expected a whole number from 0 to 2147483647"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(200, &body);
        }
    }
}
