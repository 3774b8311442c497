//! Reads reports that are JSON objects, in the format of the Traefik plugin that preceded this
//! project.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::reader::{
    COUNT, MAX_CONNECTIONS, MAX_REPORT_LEN, MAX_WEIGHT, Reader, Report, ReportError, SettingError,
    check_len, shorten,
};

/// Reads a JSON object. The settings say where each value is.
#[derive(Clone, Debug)]
pub struct JsonReader {
    /// [`Report::connections`], which is required.
    pub count: Pointer,
    /// [`Report::max_connections`]; `None` ignores it.
    pub max: Option<Pointer>,
    /// [`Report::weight`]; `None` ignores it.
    pub weight: Option<Pointer>,
    /// [`Report::draining`]; `None` ignores it.
    pub draining: Option<Pointer>,
}

impl Default for JsonReader {
    fn default() -> Self {
        let pointer = |text: &str| Pointer(text.to_owned());
        Self {
            count: pointer("/agentsConnections"),
            max: Some(pointer("/maxConnections")),
            weight: Some(pointer("/weight")),
            draining: Some(pointer("/draining")),
        }
    }
}

impl Reader for JsonReader {
    fn read(&self, body: &[u8]) -> Result<Report, ReportError> {
        check_len(body, MAX_REPORT_LEN)?;
        // serde's message quotes the unexpected value.
        let malformed =
            |error: serde_json::Error| ReportError::Malformed(shorten(&error.to_string()));
        // Parsed as a map first, because serde would accept an array of the fields.
        let object: Map<String, Value> = serde_json::from_slice(body).map_err(malformed)?;
        let object = Value::Object(object);
        let pod = Pod::deserialize(&object).map_err(malformed)?;

        let count = |value: &Value| value.as_u64().filter(|count| *count <= MAX_CONNECTIONS);
        let weight =
            |value: &Value| value.as_f64().filter(|weight| *weight > 0.0 && *weight <= MAX_WEIGHT);
        let connections = find(&object, Some(&self.count), COUNT, count)?;
        Ok(Report {
            connections: Some(
                connections.ok_or_else(|| self.count.error("missing".to_owned(), COUNT))?,
            ),
            max_connections: find(&object, self.max.as_ref(), COUNT, count)?,
            weight: find(&object, self.weight.as_ref(), WEIGHT, weight)?,
            draining: find(&object, self.draining.as_ref(), "true or false", Value::as_bool)?,
            down: None,
            pod_name: pod.name,
            pod_ip: pod.ip,
            node_name: pod.node,
        })
    }
}

const WEIGHT: &str = "a number over 0, at most 1000";

#[derive(Deserialize)]
struct Pod {
    #[serde(default, rename = "podName")]
    name: Option<String>,
    #[serde(default, rename = "podIP")]
    ip: Option<String>,
    #[serde(default, rename = "nodeName")]
    node: Option<String>,
}

/// Returns the value at `pointer`, if there is one. `null` counts as missing, because serialisers write
/// it for unset values.
fn find<T>(
    object: &Value,
    pointer: Option<&Pointer>,
    expected: &'static str,
    typed: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, ReportError> {
    let Some(pointer) = pointer else { return Ok(None) };
    let value = object.pointer(&pointer.0).filter(|value| !value.is_null());
    let error = |value: &Value| pointer.error(shorten(&value.to_string()), expected);
    value.map(|value| typed(value).ok_or_else(|| error(value))).transpose()
}

/// The position of a value in an object: a JSON pointer (RFC 6901) such as `/pod/sessions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(String);

impl Pointer {
    /// Names a field at the top level by its name, others by the whole pointer.
    fn error(&self, value: String, expected: &'static str) -> ReportError {
        let name = self.0.strip_prefix('/').filter(|name| !name.contains(['/', '~']));
        ReportError::Value { field: name.unwrap_or(&self.0).to_owned(), value, expected }
    }
}

impl FromStr for Pointer {
    type Err = SettingError;

    /// Rejects the empty pointer: it means the whole object, which is not a valid value.
    fn from_str(text: &str) -> Result<Self, SettingError> {
        // RFC 6901 §3: ~0 is ~, ~1 is /, and no other escapes exist.
        let is_escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if text.starts_with('/') && is_escaped {
            Ok(Self(text.to_owned()))
        } else {
            Err(SettingError("a JSON pointer such as /name, with ~0 for ~ and ~1 for / in a name"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(body: &[u8]) -> Result<Report, ReportError> {
        JsonReader::default().read(body)
    }

    #[test]
    fn a_count_alone_is_a_valid_report() {
        let report = read(br#"{"agentsConnections": 7}"#).unwrap();
        assert_eq!(report, Report { connections: Some(7), ..Report::default() });
    }

    #[test]
    fn all_known_fields_are_read_and_unknown_ones_ignored() {
        let body = br#"{"agentsConnections":3,"podName":"p","podIP":"10.0.0.1","nodeName":"n",
            "maxConnections":0,"weight":2.5,"draining":true,"more":[1]}"#;
        let expected = Report {
            connections: Some(3),
            max_connections: Some(0),
            weight: Some(2.5),
            draining: Some(true),
            down: None,
            pod_name: Some("p".into()),
            pod_ip: Some("10.0.0.1".into()),
            node_name: Some("n".into()),
        };
        assert_eq!(read(body), Ok(expected));
    }

    #[test]
    fn null_counts_as_missing() {
        let body = br#"{"agentsConnections":1,"podName":null,"maxConnections":null,"weight":null,
            "draining":null}"#;
        assert_eq!(read(body), Ok(Report { connections: Some(1), ..Report::default() }));
    }

    #[test]
    fn an_invalid_report_is_an_error_and_never_zero() {
        let bodies: [&[u8]; 13] = [
            b"",
            b"{}",
            b"null",
            b"[7]",
            b"12",
            b"<html></html>",
            br#"{"error": "no such route"}"#,
            br#"{"agentsConnections": null}"#,
            br#"{"agentsConnections": -1}"#,
            br#"{"agentsConnections": 1.5}"#,
            br#"{"agentsConnections": "3"}"#,
            br#"{"agentsConnections": 4294967296}"#,
            br#"{"agentsConnections": 1, "podName": 5}"#,
        ];
        for body in bodies {
            assert!(read(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn the_error_names_the_value() {
        let error = read(br#"{"agentsConnections": -1}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "agentsConnections is -1, expected a whole number from 0 to 2147483647"
        );
        let error = read(br#"{"agentsConnections": null}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "agentsConnections is missing, expected a whole number from 0 to 2147483647"
        );
    }

    #[test]
    fn an_invalid_optional_field_is_an_error() {
        let (max, weight, draining) = ("maxConnections", "weight", "draining");
        for (field, value, expected) in [
            (max, "-1", COUNT),
            (max, "2147483648", COUNT),
            (max, "1.0", COUNT),
            (max, "\"12\"", COUNT),
            (weight, "0", WEIGHT),
            (weight, "-0.5", WEIGHT),
            (weight, "1000.5", WEIGHT),
            (weight, "\"1\"", WEIGHT),
            (draining, "0", "true or false"),
            (draining, "\"true\"", "true or false"),
            (draining, "{}", "true or false"),
        ] {
            let body = format!(r#"{{"agentsConnections":1,"{field}":{value}}}"#);
            let expected = format!("{field} is {value}, expected {expected}");
            assert_eq!(read(body.as_bytes()).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_largest_values_are_accepted() {
        let body = br#"{"agentsConnections":2147483647,"maxConnections":2147483647,"weight":1000}"#;
        let report = read(body).unwrap();
        assert_eq!(
            (report.connections, report.max_connections),
            (Some(2147483647), Some(2147483647))
        );
        assert_eq!(report.weight, Some(1000.0));
    }

    #[test]
    fn fields_are_read_at_the_configured_pointers() {
        let pointer = |text: &str| text.parse::<Pointer>().unwrap();
        let mut reader = JsonReader {
            count: pointer("/pods/1/ws~1open"),
            max: Some(pointer("/limits/~0max")),
            weight: None,
            draining: Some(pointer("/")),
        };
        let body = json!({
            "pods": [{}, {"ws/open": 4}],
            "limits": {"~max": 9},
            "weight": "heavy",
            "": true,
        });
        let body = body.to_string();
        let expected = Report {
            connections: Some(4),
            max_connections: Some(9),
            draining: Some(true),
            ..Report::default()
        };
        assert_eq!(reader.read(body.as_bytes()), Ok(expected));
        reader.max = Some(pointer("/pods/1"));
        assert_eq!(
            reader.read(body.as_bytes()).unwrap_err().to_string(),
            r#"/pods/1 is {"ws/open":4}, expected a whole number from 0 to 2147483647"#
        );
    }

    #[test]
    fn invalid_pointers_are_rejected() {
        for text in ["", "agentsConnections", "a/b", "/a~", "/a~2b", "~0", "/~~0"] {
            assert!(text.parse::<Pointer>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }

        /// Any value in an optional field is either read unchanged or an error.
        #[test]
        fn an_optional_field_is_read_unchanged_or_is_an_error(
            field in prop::sample::select(vec!["maxConnections", "weight", "draining"]),
            value in prop_oneof![
                any::<bool>().prop_map(Value::from),
                any::<i64>().prop_map(Value::from),
                // Eighths, because serde_json does not read all other fractions exactly.
                (-16000..16000).prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
                (0u64..1200).prop_map(Value::from),
                ".{0,300}".prop_map(Value::from),
            ],
        ) {
            let body = json!({"agentsConnections": 1, field: &value}).to_string();
            match read(body.as_bytes()) {
                Ok(report) => {
                    let found = match field {
                        "maxConnections" => report.max_connections.map(Value::from),
                        "weight" => report.weight.map(Value::from),
                        _ => report.draining.map(Value::from),
                    };
                    let found = found.expect("a value");
                    prop_assert_eq!((found.as_bool(), found.as_f64()), (value.as_bool(), value.as_f64()));
                }
                Err(error) => {
                    let text = error.to_string();
                    prop_assert!(text.starts_with(&format!("{field} is ")), "{}", text);
                    prop_assert!(text.len() < 250, "{}", text);
                }
            }
        }

        /// Values under any names at any depth are found by their pointers.
        #[test]
        fn a_pointer_finds_any_value(names in prop::collection::vec("[a-z~/\" 0-9é]{0,4}", 1..5)) {
            let mut text = String::new();
            for name in &names {
                text.push('/');
                text.push_str(&name.replace('~', "~0").replace('/', "~1"));
            }
            let mut body = json!(5);
            for name in names.iter().rev() {
                body = json!({name: body});
            }
            let reader = JsonReader { count: text.parse().unwrap(), ..JsonReader::default() };
            prop_assert_eq!(reader.read(body.to_string().as_bytes()).unwrap().connections, Some(5));
        }
    }
}
