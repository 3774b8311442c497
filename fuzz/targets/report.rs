//! The reader of pods' metric answers against a second opinion on the JSON as it was written.
//!
//! Input: the body.

#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, value::RawValue};
use wsbalancer::domain::report::{MAX_REPORT_LEN, Report, ReportError, read};

/// The report that `body` is, if it is one: the count by its digits, not by its value.
fn reference(body: &[u8]) -> Option<Report> {
    let values: Value = serde_json::from_slice(body).ok()?;
    let written: HashMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let digits = written.get("agentsConnections")?.get();
    if digits.is_empty() || digits.len() > 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let connections = digits.parse().ok().filter(|count| *count < 1 << 31)?;
    let text = |name: &str| match &values[name] {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text.clone())),
        _ => None,
    };
    Some(Report {
        connections,
        pod_name: text("podName")?,
        pod_ip: text("podIP")?,
        node_name: text("nodeName")?,
    })
}

fuzz_target!(|body: &[u8]| {
    let expected = reference(body);
    let found = read(200, body);
    if let Err(error) = &found {
        let shown = error.to_string();
        assert!(shown.len() < 300, "a log line of {} bytes", shown.len());
    }
    assert_eq!(found.ok(), expected);
    for status in [0, 100, 199, 201, 204, 206, 304, 503, u16::MAX] {
        assert_eq!(read(status, body), Err(ReportError::Status(status)));
    }
    // White space behind the body changes nothing up to the limit; now and then, for it is slow.
    if body.len() % 64 == 1 {
        let mut padded = body.to_vec();
        padded.resize(MAX_REPORT_LEN, b' ');
        assert_eq!(read(200, &padded).ok(), expected);
        padded.push(b' ');
        assert_eq!(read(200, &padded), Err(ReportError::TooLong));
    }
});
