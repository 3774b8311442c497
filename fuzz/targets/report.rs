//! The readers of pods' reports against second opinions: on JSON as it was written, on a metrics page
//! line by line, on an agent's line byte by byte.
//!
//! Input: the body.

#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, value::RawValue};
use wsbalancer::domain::report::{
    AgentReader, JsonReader, MAX_REPORT_LEN, PrometheusReader, Reader, Report, ReportError,
    check_status,
};

/// By its digits, not by its value.
fn count(digits: &str) -> Option<u64> {
    if digits.is_empty() || digits.len() > 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|count| *count < 1 << 31)
}

/// The report that the JSON object `body` is, if it is one.
fn reference(body: &[u8]) -> Option<Report> {
    let values: Value = serde_json::from_slice(body).ok()?;
    let written: HashMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let text = |name: &str| match &values[name] {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text.clone())),
        _ => None,
    };
    Some(Report {
        connections: Some(count(written.get("agentsConnections")?.get())?),
        max_connections: match written.get("maxConnections").map(|max| max.get()) {
            None | Some("null") => None,
            Some(digits) => Some(count(digits)?),
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

fn read(reader: &dyn Reader, body: &[u8]) -> Result<Report, ReportError> {
    let found = reader.read(body);
    if let Err(error) = &found {
        let shown = error.to_string();
        assert!(shown.len() < 300, "a log line of {} bytes", shown.len());
    }
    found
}

fn json(body: &[u8]) {
    let expected = reference(body);
    let reader = JsonReader::default();
    assert_eq!(read(&reader, body).ok(), expected);
    // White space behind the body changes nothing up to the limit; now and then, for it is slow.
    if body.len() % 64 == 1 {
        let mut padded = body.to_vec();
        padded.resize(MAX_REPORT_LEN, b' ');
        assert_eq!(read(&reader, &padded).ok(), expected);
        padded.push(b' ');
        assert_eq!(read(&reader, &padded), Err(ReportError::TooLong(MAX_REPORT_LEN)));
    }
}

fn sessions(labels: &[&str]) -> PrometheusReader {
    let label = |label: &&str| label.parse().expect("a label");
    let labels = labels.iter().map(label).collect();
    PrometheusReader { name: "sessions".parse().expect("a name"), labels }
}

/// The count that a decimal number is, without floating-point arithmetic.
fn decimal(word: &str) -> Option<u64> {
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
    count(&format!("{significant}{}", "0".repeat(zeros as usize)))
}

fn is_missing(result: &Result<Report, ReportError>) -> bool {
    matches!(result, Err(ReportError::Value { value, .. }) if value == "missing")
}

fn prometheus(body: &[u8]) {
    let (every, some) = (sessions(&[]), sessions(&["kind=agent"]));
    for reader in [&every, &some] {
        // A page is the sum of its lines, or what is wrong with the first bad one.
        let mut sum = None;
        let lines = body.split(|byte| *byte == b'\n').map(|line| (line, read(reader, line)));
        let wrong = lines.into_iter().find_map(|(line, result)| match result {
            Ok(report) => {
                assert!(line.trim_ascii().starts_with(b"sessions"));
                sum = Some(sum.unwrap_or(0) + report.connections.expect("a count"));
                None
            }
            result if is_missing(&result) => None,
            wrong => Some(wrong),
        });
        let found = read(reader, body);
        match (wrong, sum) {
            (Some(wrong), _) => assert_eq!(found, wrong),
            (None, None) => assert!(is_missing(&found), "{found:?}"),
            (None, Some(sum)) if sum >= 1 << 31 => assert!(found.is_err() && !is_missing(&found)),
            (None, sum) => {
                assert_eq!(found, Ok(Report { connections: sum, ..Report::default() }));
            }
        }
    }
    // A number by its digits.
    for line in body.split(|byte| *byte == b'\n') {
        let word = line.strip_prefix(b"sessions ").and_then(|word| str::from_utf8(word).ok());
        let is_number =
            |word: &&str| (1..=12).contains(&word.len()) && !word.starts_with(['#', '{']);
        if let Some(word) =
            word.filter(is_number).filter(|word| word.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            let found = every.read(line).ok().and_then(|report| report.connections);
            assert_eq!(found, decimal(word), "{word}");
        }
    }
    // Labels only take away.
    if let Ok(all) = read(&every, body) {
        let part = read(&some, body);
        assert!(is_missing(&part) || part.expect("some of all").connections <= all.connections);
    }
    // Any text is a label's value that is found again.
    if let Ok(text) = str::from_utf8(body) {
        let escaped = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let page = format!("sessions{{a=\"{escaped}\",b=\"{escaped}\"}}7");
        let found = read(&sessions(&[&format!("b={text}")]), page.as_bytes());
        assert_eq!(found.expect("the series").connections, Some(7));
        assert!(is_missing(&sessions(&[&format!("b={text}\\")]).read(page.as_bytes())));
    }
}

/// What the agent's line says, without its description.
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
        count(if zeros > 0 && zeros == digits.len() { "0" } else { &digits[zeros..] })
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

fn agent(body: &[u8]) {
    let mut found = read(&AgentReader, body).ok();
    if let Some(down) = found.as_mut().and_then(|report| report.down.as_mut()) {
        assert!(down.len() < 150 && !down.contains(char::is_control), "{down:?}");
        down.truncate(down.find(" (").unwrap_or(down.len()));
    }
    assert_eq!(found, agent_reference(body));
}

fuzz_target!(|body: &[u8]| {
    json(body);
    prometheus(body);
    agent(body);
    for status in [0, 100, 199, 201, 204, 206, 304, 503, u16::MAX] {
        assert_eq!(check_status(status), Err(ReportError::Status(status)));
    }
});
