//! Fuzzes the readers of pods' reports (JSON, Prometheus text, HAProxy agent line), against a second
//! implementation of each.
//!
//! Input: the body of the report.

#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, value::RawValue};
use wsbalancer::domain::report::{
    AgentReader, JsonReader, MAX_REPORT_LEN, PrometheusReader, Reader, Report, ReportError,
    check_status,
};

/// Parses a count by its digits.
fn parse_count(digits: &str) -> Option<u64> {
    if digits.is_empty() || digits.len() > 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|count| *count < 1 << 31)
}

/// Returns the report in the JSON object `body`, if it is a valid one.
fn json_reference(body: &[u8]) -> Option<Report> {
    let values: Value = serde_json::from_slice(body).ok()?;
    let raw: HashMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let text = |name: &str| match &values[name] {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text.clone())),
        _ => None,
    };
    Some(Report {
        connections: Some(parse_count(raw.get("agentsConnections")?.get())?),
        max_connections: match raw.get("maxConnections").map(|max| max.get()) {
            None | Some("null") => None,
            Some(digits) => Some(parse_count(digits)?),
        },
        weight: match &values["weight"] {
            Value::Null => None,
            weight => Some(weight.as_f64().filter(|weight| *weight > 0.0 && *weight <= 1000.0)?),
        },
        draining: match &values["draining"] {
            Value::Null => None,
            Value::Bool(draining) => Some(*draining),
            _ => return None,
        },
        down: None,
        pod_name: text("podName")?,
        pod_ip: text("podIP")?,
        node_name: text("nodeName")?,
    })
}

/// Reads `body`. The text of an error must be short enough for a log line.
fn read(reader: &dyn Reader, body: &[u8]) -> Result<Report, ReportError> {
    let result = reader.read(body);
    if let Err(error) = &result {
        let message = error.to_string();
        assert!(message.len() < 300, "an error text of {} bytes", message.len());
    }
    result
}

fn check_json(body: &[u8]) {
    let expected = json_reference(body);
    let reader = JsonReader::default();
    assert_eq!(read(&reader, body).ok(), expected);
    // White space after the body is accepted up to the size limit. This is slow, so only some of the
    // bodies are checked.
    if body.len() % 64 == 1 {
        let mut padded = body.to_vec();
        padded.resize(MAX_REPORT_LEN, b' ');
        assert_eq!(read(&reader, &padded).ok(), expected);
        padded.push(b' ');
        assert_eq!(read(&reader, &padded), Err(ReportError::TooLong(MAX_REPORT_LEN)));
    }
}

/// Returns a reader of the series `sessions` with these labels.
fn sessions_reader(labels: &[&str]) -> PrometheusReader {
    let label = |label: &&str| label.parse().expect("a label");
    let labels = labels.iter().map(label).collect();
    PrometheusReader { name: "sessions".parse().expect("a name"), labels }
}

/// Parses a count in decimal or exponent notation without floating-point arithmetic.
fn parse_decimal(word: &str) -> Option<u64> {
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let exponent: i64 = exponent.parse().ok()?;
    let trimmed = digits.trim_end_matches('0');
    let zeros = exponent - fraction.len() as i64 + (digits.len() - trimmed.len()) as i64;
    let significant = trimmed.trim_start_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    if word.starts_with('-') || !(0..10).contains(&zeros) {
        return None;
    }
    parse_count(&format!("{significant}{}", "0".repeat(zeros as usize)))
}

fn is_missing(result: &Result<Report, ReportError>) -> bool {
    matches!(result, Err(ReportError::Value { value, .. }) if value == "missing")
}

fn check_prometheus(body: &[u8]) {
    let (all_series, agent_series) = (sessions_reader(&[]), sessions_reader(&["kind=agent"]));
    for reader in [&all_series, &agent_series] {
        // The result of a page is the sum of its lines, or the error of the first invalid line.
        let mut sum = None;
        let lines = body.split(|byte| *byte == b'\n').map(|line| (line, read(reader, line)));
        let error = lines.into_iter().find_map(|(line, result)| match result {
            Ok(report) => {
                assert!(line.trim_ascii().starts_with(b"sessions"));
                sum = Some(sum.unwrap_or(0) + report.connections.expect("a count"));
                None
            }
            result if is_missing(&result) => None,
            error => Some(error),
        });
        let found = read(reader, body);
        match (error, sum) {
            (Some(error), _) => assert_eq!(found, error),
            (None, None) => assert!(is_missing(&found), "{found:?}"),
            (None, Some(sum)) if sum >= 1 << 31 => assert!(found.is_err() && !is_missing(&found)),
            (None, sum) => {
                assert_eq!(found, Ok(Report { connections: sum, ..Report::default() }));
            }
        }
    }
    // A line with a number has the value that its digits say.
    for line in body.split(|byte| *byte == b'\n') {
        let word = line.strip_prefix(b"sessions ").and_then(|word| str::from_utf8(word).ok());
        let is_number =
            |word: &&str| (1..=12).contains(&word.len()) && !word.starts_with(['#', '{']);
        if let Some(word) =
            word.filter(is_number).filter(|word| word.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            let found = all_series.read(line).ok().and_then(|report| report.connections);
            assert_eq!(found, parse_decimal(word), "{word}");
        }
    }
    // Selecting by label never increases the count.
    if let Ok(all) = read(&all_series, body) {
        let part = read(&agent_series, body);
        assert!(
            is_missing(&part)
                || part.expect("a part of a valid page").connections <= all.connections
        );
    }
    // Any text is valid as the value of a label, and a reader with that label finds the series.
    if let Ok(text) = str::from_utf8(body) {
        let escaped = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let page = format!("sessions{{a=\"{escaped}\",b=\"{escaped}\"}}7");
        let found = read(&sessions_reader(&[&format!("b={text}")]), page.as_bytes());
        assert_eq!(found.expect("the series").connections, Some(7));
        assert!(is_missing(&sessions_reader(&[&format!("b={text}\\")]).read(page.as_bytes())));
    }
}

/// Returns the report in an agent's line, without its description.
fn agent_reference(body: &[u8]) -> Option<Report> {
    let mut words = vec![String::new()];
    for byte in body {
        match byte {
            b'\r' | b'\n' | b'#' => break,
            b' ' | b'\t' | b',' => words.push(String::new()),
            byte if byte.is_ascii() => words.last_mut()?.push(byte.to_ascii_lowercase() as char),
            _ => return None,
        }
    }
    words.retain(|word| !word.is_empty());
    let percentage = |word: &str| {
        let digits = word.strip_suffix('%')?.trim_start_matches('0');
        let is_short = digits.len() <= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let percentage = if digits.is_empty() { Some(0) } else { digits.parse().ok() };
        percentage.filter(|percentage: &u32| is_short && word.len() > 1 && *percentage <= 100_000)
    };
    let max = |word: &str| {
        let digits = word.strip_prefix("maxconn:")?;
        let zeros = digits.len() - digits.trim_start_matches('0').len();
        parse_count(if zeros > 0 && zeros == digits.len() { "0" } else { &digits[zeros..] })
    };
    let is_admin = |word: &&String| ["ready", "drain", "maint"].contains(&word.as_str());
    let is_health =
        |word: &&String| ["up", "down", "fail", "failed", "stopped"].contains(&word.as_str());
    let is_known = |word: &String| {
        is_admin(&word) || is_health(&word) || percentage(word).is_some() || max(word).is_some()
    };
    if words.is_empty() || !words.iter().all(is_known) {
        return None;
    }
    let percentage = words.iter().rev().find_map(|word| percentage(word));
    let admin = words.iter().rfind(is_admin).map(String::as_str);
    let health = words.iter().rfind(is_health).filter(|word| *word != "up");
    Some(Report {
        max_connections: words.iter().rev().find_map(|word| max(word)).filter(|max| *max > 0),
        weight: percentage.filter(|whole| *whole > 0).map(|whole| f64::from(whole) / 100.0),
        draining: match admin {
            _ if percentage == Some(0) => Some(true),
            Some("drain") => Some(true),
            Some("ready") => Some(false),
            _ => None,
        },
        down: health
            .map(String::as_str)
            .or(admin.filter(|word| *word == "maint"))
            .map(str::to_owned),
        ..Report::default()
    })
}

fn check_agent(body: &[u8]) {
    let mut found = read(&AgentReader, body).ok();
    if let Some(down) = found.as_mut().and_then(|report| report.down.as_mut()) {
        assert!(down.len() < 150 && !down.contains(char::is_control), "{down:?}");
        down.truncate(down.find(" (").unwrap_or(down.len()));
    }
    assert_eq!(found, agent_reference(body));
}

fuzz_target!(|body: &[u8]| {
    check_json(body);
    check_prometheus(body);
    check_agent(body);
    for status in [0, 100, 199, 201, 204, 206, 304, 503, u16::MAX] {
        assert_eq!(check_status(status), Err(ReportError::Status(status)));
    }
});
