//! Reads a count from a page in Prometheus text format, version 0.0.4:
//! `name{label="value",…} value timestamp`, one series per line.
//!
//! The exemplar that OpenMetrics adds to a line after another `#` is ignored. Only lines that start
//! with the metric's name are parsed, so errors on other lines do not matter.

use std::{borrow::Cow, fmt, str::FromStr};

use super::reader::{
    COUNT, MAX_CONNECTIONS, Reader, Report, ReportError, SettingError, check_len, printable,
};

/// The longest page that is read, in bytes. Such pages contain many metrics besides the count.
const MAX_PAGE_LEN: usize = 1024 * 1024;

/// Sums the series of one metric that have all the given labels.
#[derive(Clone, Debug)]
pub struct PrometheusReader {
    pub name: MetricName,
    /// The labels that a series must have; it may have others.
    pub labels: Vec<LabelMatch>,
}

impl Reader for PrometheusReader {
    fn read(&self, body: &[u8]) -> Result<Report, ReportError> {
        check_len(body, self.max_len())?;
        let mut sum = None;
        for line in body.split(|byte| *byte == b'\n') {
            if let Some(count) = self.count(line)? {
                sum = Some(sum.unwrap_or(0) + count);
            }
        }
        match sum {
            Some(connections) if connections <= MAX_CONNECTIONS => {
                Ok(Report { connections: Some(connections), ..Report::default() })
            }
            Some(connections) => Err(self.error(connections.to_string())),
            None => Err(self.error("missing".to_owned())),
        }
    }

    fn max_len(&self) -> usize {
        MAX_PAGE_LEN
    }
}

impl PrometheusReader {
    /// Returns the value of the series in `line`, if the series matches.
    fn count(&self, line: &[u8]) -> Result<Option<u64>, ReportError> {
        let line = line.trim_ascii();
        let name = self.name.0.as_bytes();
        let rest = line.strip_prefix(name).unwrap_or_default();
        if !rest.starts_with(b"{") && !rest.starts_with(b" ") && !rest.starts_with(b"\t") {
            return Ok(None);
        }
        let malformed = || ReportError::Malformed(format!("not a series: {}", printable(line)));
        let (labels, rest) = labels(rest).ok_or_else(malformed)?;
        if !self.labels.iter().all(|wanted| wanted.is_among(&labels)) {
            return Ok(None);
        }
        let words = rest.split(|byte| b" \t".contains(byte)).filter(|word| !word.is_empty());
        let mut words = words.take_while(|word| !word.starts_with(b"#"));
        let value = words.next().ok_or_else(malformed)?;
        let has_odd_timestamp = words.next().is_some_and(|time| number(time).is_none());
        if has_odd_timestamp || words.next().is_some() {
            return Err(malformed());
        }
        let is_count = |count: &f64| {
            let is_whole = count.fract() == 0.0 && (*count != 0.0 || is_zero(value));
            is_whole && (0.0..=MAX_CONNECTIONS as f64).contains(count)
        };
        let count = number(value).filter(is_count).ok_or_else(|| self.error(printable(value)))?;
        Ok(Some(count as u64))
    }

    fn error(&self, value: String) -> ReportError {
        ReportError::Value { field: self.to_string(), value, expected: COUNT }
    }
}

/// Formats the metric as in a query: `name{label="value"}`.
impl fmt::Display for PrometheusReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.0)?;
        for (index, LabelMatch { name, value }) in self.labels.iter().enumerate() {
            let before = if index == 0 { "{" } else { "," };
            write!(f, "{before}{name}={value:?}")?;
        }
        f.write_str(if self.labels.is_empty() { "" } else { "}" })
    }
}

/// The name of a metric: `[a-zA-Z_:][a-zA-Z0-9_:]*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricName(String);

impl FromStr for MetricName {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        // Unlike the name of a label, it may contain colons.
        if is_label_name(text.replace(':', "_").as_bytes()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SettingError("the name of a metric, such as websocket_sessions, without labels"))
        }
    }
}

/// A label that a series must have, written `name=value`. As in Prometheus, a missing label has the
/// empty value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMatch {
    name: String,
    value: String,
}

impl LabelMatch {
    fn is_among(&self, labels: &[Label<'_>]) -> bool {
        let label = labels.iter().find(|(name, _)| *name == self.name.as_bytes());
        label.map_or(&b""[..], |(_, value)| value) == self.value.as_bytes()
    }
}

impl FromStr for LabelMatch {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text.split_once('=') {
            Some((name, value)) if is_label_name(name.as_bytes()) => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(SettingError("a label and its value, such as kind=agent, without quotes")),
        }
    }
}

/// Returns whether `name` matches `[a-zA-Z_][a-zA-Z0-9_]*`.
fn is_label_name(name: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    name.first().is_some_and(|first| !first.is_ascii_digit()) && name.iter().all(is_word)
}

/// Parses a floating-point number. The format allows all numbers of Go; Rust reads the usual ones.
fn number(word: &[u8]) -> Option<f64> {
    str::from_utf8(word).ok()?.parse().ok()
}

/// Returns whether a number that parses as zero is exactly zero, not just too small for an `f64`.
fn is_zero(number: &[u8]) -> bool {
    let mut mantissa = number.split(|byte| b"eE".contains(byte)).next().into_iter().flatten();
    !mantissa.any(|byte| (b'1'..=b'9').contains(byte))
}

/// The name and the value of a label.
type Label<'a> = (&'a [u8], Cow<'a, [u8]>);

/// Parses the labels at the start of `text`, if there are any. Returns them and the rest of the text.
fn labels(text: &[u8]) -> Option<(Vec<Label<'_>>, &[u8])> {
    let mut labels = Vec::new();
    let Some(mut rest) = text.trim_ascii_start().strip_prefix(b"{") else {
        return Some((labels, text));
    };
    loop {
        rest = rest.trim_ascii_start();
        if let Some(rest) = rest.strip_prefix(b"}") {
            return Some((labels, rest));
        }
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let name = Some(rest[..equals].trim_ascii_end()).filter(|name| is_label_name(name))?;
        let value;
        (value, rest) = unquote(rest[equals + 1..].trim_ascii_start().strip_prefix(b"\"")?)?;
        labels.push((name, value));
        rest = rest.trim_ascii_start();
        match rest.strip_prefix(b",") {
            Some(next) => rest = next,
            None if rest.starts_with(b"}") => {}
            None => return None,
        }
    }
}

/// Parses the value of a label up to its closing quote. Returns it and the rest of the text. As in
/// Prometheus, a backslash before any other character than `\`, `"` and `n` is a plain backslash.
fn unquote(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        let special = rest.iter().position(|byte| b"\"\\".contains(byte))?;
        value.extend_from_slice(&rest[..special]);
        let is_quote = rest[special] == b'"';
        rest = &rest[special + 1..];
        if is_quote {
            return Some((value.into(), rest));
        }
        match *rest.first()? {
            b'n' => value.push(b'\n'),
            escaped @ (b'"' | b'\\') => value.push(escaped),
            other => value.extend([b'\\', other]),
        }
        rest = &rest[1..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reader(name: &str, labels: &[&str]) -> PrometheusReader {
        PrometheusReader {
            name: name.parse().unwrap(),
            labels: labels.iter().map(|label| label.parse().unwrap()).collect(),
        }
    }

    fn count(labels: &[&str], body: &str) -> Result<u64, String> {
        let report = reader("sessions", labels).read(body.as_bytes());
        let report = report.map_err(|error| error.to_string())?;
        let connections = report.connections.expect("a count");
        assert_eq!(report, Report { connections: Some(connections), ..Report::default() });
        Ok(connections)
    }

    const PAGE: &str = r#"# HELP sessions Open sessions, by kind.
# TYPE sessions gauge
sessions{kind="agent",zone="a"} 12
sessions{kind="agent",zone="b",} 30 1395066363000
  sessions { zone = "b" , kind="guest" }	5
sessions_created{kind="agent"} 99

# sessions 1000
process_cpu_seconds_total NaN
broken{ 1
sessions{kind="odd"} NaN
"#;

    #[test]
    fn matching_series_are_summed() {
        assert_eq!(count(&["kind=agent"], PAGE), Ok(42));
        assert_eq!(count(&["kind=agent", "zone=b"], PAGE), Ok(30));
        assert_eq!(count(&["zone=b"], PAGE), Ok(35));
        assert_eq!(count(&["kind=guest", "lane="], PAGE), Ok(5), "a missing label");
    }

    #[test]
    fn a_missing_series_is_named_in_the_error() {
        assert_eq!(
            count(&["kind=agent", "zone=c\n"], PAGE).unwrap_err(),
            r#"sessions{kind="agent",zone="c\n"} is missing, expected a whole number from 0 to 2147483647"#
        );
        let page = "<html>sessions 5</html>\nsession 5\nsessions_total 4\n{\"sessions\"} 3\n";
        assert_eq!(
            count(&[], page).unwrap_err(),
            "sessions is missing, expected a whole number from 0 to 2147483647"
        );
        assert!(count(&[], "").is_err());
    }

    #[test]
    fn whole_numbers_are_read_in_any_notation() {
        for value in ["12", "12.0", "1.2e1", "1.2E+01", "+12", "012", "120e-1"] {
            assert_eq!(count(&[], &format!("sessions {value}\n")), Ok(12), "{value}");
        }
        assert_eq!(count(&[], "sessions 0"), Ok(0));
        assert_eq!(count(&[], "sessions{} 2147483647"), Ok(2147483647));
    }

    #[test]
    fn other_values_are_rejected() {
        for value in [
            "NaN",
            "+Inf",
            "-Inf",
            "-1",
            "1.5",
            "2147483648",
            "1e300",
            "0x1p4",
            "1_0",
            "x",
            "1e-1000",
            "-63e-1000",
        ] {
            let expected =
                format!("sessions is {value}, expected a whole number from 0 to 2147483647");
            assert_eq!(count(&[], &format!("sessions {value}\n")).unwrap_err(), expected);
        }
        assert_eq!(count(&[], "sessions -0.0e-1000\n"), Ok(0));
        assert_eq!(
            count(&[], "sessions{a=\"1\"} 2147483647\nsessions{a=\"2\"} 1\n").unwrap_err(),
            "sessions is 2147483648, expected a whole number from 0 to 2147483647"
        );
    }

    #[test]
    fn openmetrics_pages_are_read() {
        let page = "# TYPE sessions gauge\n# UNIT sessions sessions\n\
            sessions{a=\"b\"} 3.0 1520879607.789 # {trace=\"# x\"} 0.5 1520879607\r\n\
            sessions{a=\"c\"} 4 # {} 1\n# EOF\n";
        assert_eq!(count(&[], page), Ok(7));
    }

    #[test]
    fn a_malformed_series_is_an_error() {
        for line in [
            "sessions{a=\"b} 1",
            "sessions{a=\"b\\",
            "sessions{a=\"b\" c=\"d\"} 1",
            "sessions{a=b} 1",
            "sessions{=\"b\"} 1",
            "sessions{1a=\"b\"} 1",
            "sessions{,} 1",
            "sessions{a=\"b\"",
            "sessions{}",
            "sessions # 1",
            "sessions 1 soon",
            "sessions 1 2 3",
        ] {
            let expected = format!("cannot parse the report: not a series: {line}");
            assert_eq!(count(&[], &format!("sessions 1\n{line}\n")).unwrap_err(), expected);
        }
    }

    #[test]
    fn escapes_in_labels_are_decoded() {
        let page = r#"sessions{path="C:\\dir\"\n\d}{,#"} 6"#;
        assert_eq!(count(&["path=C:\\dir\"\n\\d}{,#"], page), Ok(6));
        assert!(count(&["path=C:\\\\dir"], page).is_err());
    }

    #[test]
    fn invalid_names_and_labels_are_rejected() {
        for name in ["", "1a", "a b", "a{b=\"c\"}", "a-b", "é"] {
            assert!(name.parse::<MetricName>().is_err(), "{name}");
        }
        assert!("a:b_1".parse::<MetricName>().is_ok() && ":a".parse::<MetricName>().is_ok());
        for label in ["", "a", "=b", "1=b", "a:b=c", "a =b"] {
            assert!(label.parse::<LabelMatch>().is_err(), "{label}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            before in prop::collection::vec(any::<u8>(), 0..50),
            inside in prop::collection::vec(any::<u8>(), 0..50),
            after in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let body = [&before[..], b"\nsessions{a=\"", &inside, b"\"", &after].concat();
            let _ = reader("sessions", &["a=b"]).read(&body);
            let _ = reader("sessions", &[]).read(&before);
        }

        /// A series is found by the value of its label, whatever characters that contains.
        #[test]
        fn series_are_selected_by_label_values(
            values in prop::collection::btree_map("[\\\\\"\n,}{=# a-cé]{1,6}", 0u64..1000, 1..6),
            others in 0u64..1000,
        ) {
            let mut page = format!("sessions{{other=\"x\"}} {others}\n");
            for (value, count) in &values {
                let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
                page.push_str(&format!("sessions{{key=\"{escaped}\",other=\"x\"}} {count}\n"));
            }
            for (value, expected) in &values {
                prop_assert_eq!(count(&[&format!("key={value}")], &page), Ok(*expected));
            }
            prop_assert_eq!(count(&["key="], &page), Ok(others));
            prop_assert_eq!(count(&["other=x"], &page), Ok(others + values.values().sum::<u64>()));
            prop_assert!(count(&["key=z"], &page).is_err());
        }
    }
}
