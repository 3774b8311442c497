//! Patterns for the `Origin` field: which web pages may open WebSockets (RFC 6455 §10.2).

use super::route::HostPattern;

/// A pattern of allowed origins: scheme, host, which may have a wildcard, and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern {
    scheme: String,
    host: HostPattern,
    /// `None` is the scheme's default port, which browsers omit (RFC 6454 §6.2).
    port: Option<String>,
}

impl OriginPattern {
    /// Parses a pattern such as `https://chat.example.org`, `https://*.example.org` or
    /// `http://localhost:3000`.
    ///
    /// # Errors
    /// Returns the reason, or the expected form of a pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected an origin such as https://chat.example.org or \
                        https://*.example.org, with a port unless it is the scheme's default";
        let (scheme, host, port) = split(text).ok_or(expected)?;
        let default_port = match scheme {
            "https" => "443",
            "http" => "80",
            "ws" | "wss" => {
                let error = "browsers send the origin of the page, so its scheme is http or https";
                return Err(error.to_owned());
            }
            _ => "",
        };
        if port == Some(default_port) {
            return Err(format!(
                "browsers omit the default port of {scheme}: remove :{default_port}"
            ));
        }
        let host = HostPattern::parse(host).map_err(|_| expected)?;
        let scheme = scheme.to_ascii_lowercase();
        Ok(Self { scheme, host, port: port.map(ToOwned::to_owned) })
    }

    /// Returns whether `origin`, as a browser sends it, matches the pattern.
    pub fn matches(&self, origin: &str) -> bool {
        split(origin).is_some_and(|(scheme, host, port)| {
            scheme.eq_ignore_ascii_case(&self.scheme)
                && port == self.port.as_deref()
                && self.host.matches(&host.to_ascii_lowercase())
        })
    }
}

/// Splits an origin into scheme, host and port. Returns `None` if it has other parts.
fn split(origin: &str) -> Option<(&str, &str, Option<&str>)> {
    let (scheme, authority) = origin.split_once("://")?;
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if scheme.is_empty() || !scheme.bytes().all(is_scheme) || authority.contains(['/', '@']) {
        return None;
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            digits.then_some((scheme, host, Some(port)))
        }
        _ => Some((scheme, authority, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_match_only_as_a_whole() {
        for (pattern, allowed, others) in [
            (
                "https://chat.example.org",
                &["https://chat.example.org", "HTTPS://Chat.Example.ORG"][..],
                &[
                    "http://chat.example.org",
                    "https://chat.example.org:8443",
                    "https://chat.example.org.evil.example",
                    "https://evil.example/https://chat.example.org",
                    "https://user@chat.example.org",
                    "https://xchat.example.org",
                    "null",
                    "",
                ][..],
            ),
            (
                "https://*.example.org:8443",
                &["https://a.example.org:8443", "https://a.b.example.org:8443"],
                &[
                    "https://example.org:8443",
                    "https://evilexample.org:8443",
                    "https://.example.org:8443",
                    "https://a.example.org",
                ],
            ),
            ("http://[::1]:3000", &["http://[::1]:3000"], &["http://[::1]"]),
        ] {
            let pattern = OriginPattern::parse(pattern).unwrap();
            for origin in allowed {
                assert!(pattern.matches(origin), "{origin}");
            }
            for origin in others {
                assert!(!pattern.matches(origin), "{origin}");
            }
        }
    }

    #[test]
    fn invalid_patterns_are_rejected() {
        for wrong in [
            "chat.example.org",
            "wss://chat.example.org",
            "https://",
            "https://a/b",
            "https://a:443",
            "https://*",
            "*",
            "https://a*b",
        ] {
            assert!(OriginPattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
