//! Explains why a request head cannot be read, for the client that has to change it.
//!
//! The codec only says which part is wrong. This looks for the first line that breaks the syntax, or
//! for the fields that contradict each other.

use actix_http::error::ParseError;

use crate::traffic::refusal::Refusal;

/// Longest part of a client's line that is repeated in an answer.
const MAX_SHOWN: usize = 100;

/// Returns the refusal of `head`, which the codec could not decode because of `error`.
pub fn explain(head: &[u8], error: &ParseError) -> Refusal {
    let mut lines = head.split(|byte| *byte == b'\n').map(without_cr);
    let request_line = lines.next().unwrap_or_default();
    let lines: Vec<&[u8]> = lines.take_while(|line| !line.is_empty()).collect();
    let in_request_line = |rule: &str| {
        Refusal::Malformed(format!("{rule}, received request line {}", shown(request_line)))
    };
    match error {
        ParseError::Version => return in_request_line("HTTP version must be HTTP/1.1 or HTTP/1.0"),
        ParseError::Method => return in_request_line("method must be a token such as GET"),
        ParseError::Uri(_) => {
            let target = request_line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
            return Refusal::Target(String::from_utf8_lossy(target).into_owned());
        }
        _ => {}
    }
    if !is_request_line(request_line) {
        return in_request_line("request line must be \"METHOD target HTTP/1.1\"");
    }
    lines
        .iter()
        .find_map(|line| broken_line(line))
        .or_else(|| contradiction(request_line, &lines))
        .unwrap_or_else(|| Refusal::Malformed(error.to_string()))
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn is_request_line(line: &[u8]) -> bool {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    matches!(words[..], [method, target, version]
        if is_token(method)
            && !target.is_empty()
            && !target.iter().any(u8::is_ascii_control)
            && version.starts_with(b"HTTP/1."))
}

fn is_token(name: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_token)
}

/// Returns whether `line` is a header or trailer field (RFC 9112 §5).
pub fn is_field(line: &[u8]) -> bool {
    broken_rule(line).is_none()
}

fn broken_line(line: &[u8]) -> Option<Refusal> {
    let rule = broken_rule(line)?;
    Some(Refusal::Malformed(format!("{rule}, received {}", shown(line))))
}

fn broken_rule(line: &[u8]) -> Option<&'static str> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Some("a header must be on one line without leading spaces");
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Some("a header must be \"Name: value\"");
    };
    let (name, value) = line.split_at(colon);
    if !is_token(name) {
        return Some("a header name must be a token directly before its colon");
    }
    let is_control = |byte: &u8| *byte != b'\t' && byte.is_ascii_control();
    value.iter().any(is_control).then_some("a header value must not contain control characters")
}

/// Fields that say in two ways how long the request is or for which host it is.
fn contradiction(request_line: &[u8], lines: &[&[u8]]) -> Option<Refusal> {
    let values = |name: &str| -> Vec<String> {
        let value = |line: &&[u8]| {
            let (field, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
            let value = String::from_utf8_lossy(value[1..].trim_ascii()).into_owned();
            field.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
        };
        lines.iter().filter_map(value).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let (length, coding) = (lengths.join(", "), codings.join(", "));
    let is_old = request_line.ends_with(b"HTTP/1.0");
    if !lengths.is_empty() && !codings.is_empty() {
        let text = format!(
            "header Content-Length ({length:?}) must not stand beside header Transfer-Encoding ({coding:?})"
        );
        return Some(Refusal::Malformed(text));
    }
    if is_old && !codings.is_empty() {
        let text =
            format!("header Transfer-Encoding needs HTTP/1.1, received {coding:?} with HTTP/1.0");
        return Some(Refusal::Malformed(text));
    }
    let is_chunked = codings.len() == 1 && coding.eq_ignore_ascii_case("chunked");
    if !codings.is_empty() && !is_chunked {
        let text =
            format!("header Transfer-Encoding must be \"chunked\" once, received {coding:?}");
        return Some(Refusal::Malformed(text));
    }
    let is_number = |text: &String| text.parse::<u64>().is_ok() && !text.starts_with('+');
    let is_one_length = lengths.len() == 1 && lengths.iter().all(is_number);
    if !lengths.is_empty() && !is_one_length {
        return Some(Refusal::ContentLength(length));
    }
    let hosts = values("host");
    if hosts.len() > 1 || hosts.is_empty() && !is_old {
        return Some(Refusal::Host(hosts.join(", ")));
    }
    if is_old && request_line.starts_with(b"POST ") && lengths.is_empty() {
        let text = "header Content-Length is required for POST with HTTP/1.0".to_owned();
        return Some(Refusal::Malformed(text));
    }
    None
}

/// The beginning of a client's line, quoted.
fn shown(line: &[u8]) -> String {
    let end = line.len().min(MAX_SHOWN);
    let more = if end < line.len() { "…" } else { "" };
    format!("\"{}{more}\"", line[..end].escape_ascii())
}

#[cfg(test)]
mod tests {
    use actix_codec::Decoder as _;
    use actix_http::h1::Codec;
    use bytes::BytesMut;

    use super::*;

    #[actix_rt::test]
    async fn each_text_names_the_mistake() {
        for (head, named) in [
            ("GET / HTTP/2.0\r\nHost: a\r\n", "HTTP version must be"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n", "request line \"GET  / HTTP/1.1\""),
            ("G(T / HTTP/1.1\r\nHost: a\r\n", "request line \"G(T / HTTP/1.1\""),
            ("GET /\x7f HTTP/1.1\r\nHost: a\r\n", "/\\x7f"),
            ("GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n 2\r\n", "on one line"),
            ("GET / HTTP/1.1\r\nHost : a\r\n", "\"Host : a\""),
            ("GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n", "\"nonsense\""),
            ("GET / HTTP/1.1\r\nHost: a\r\nX-A: \x01\r\n", "control characters"),
            ("GET / HTTP/1.1\r\nHost: a\r\nX-A: a\rb: c\r\n", "control characters"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "\"a, b\""),
            ("GET / HTTP/1.1\r\nAccept: b\r\n", "header Host must be"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n", "Content-Length must be"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
                "\"5, 5\"",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "must not stand beside",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n",
                "\"chunked\" once",
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", "needs HTTP/1.1"),
            ("POST / HTTP/1.0\r\nHost: a\r\n", "is required for POST with HTTP/1.0"),
        ] {
            let head = format!("{head}\r\n");
            let error = Codec::default().decode(&mut BytesMut::from(head.as_bytes())).unwrap_err();
            let text = explain(head.as_bytes(), &error).to_string();
            assert!(text.contains(named), "{text} for {head:?}");
        }
    }
}
