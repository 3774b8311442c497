//! Host names as they are configured.

use std::{fmt, net::IpAddr};

use hickory_resolver::proto::rr::Name;

/// A host name as written, or an IP address.
#[derive(Clone, PartialEq, Eq)]
pub struct HostName {
    written: String,
    pub(super) name: Name,
}

impl HostName {
    /// Parses a name or an IP address; IPv6 addresses can be in brackets.
    ///
    /// # Errors
    /// The text is neither; the error gives an example.
    pub fn parse(text: &str) -> Result<Self, String> {
        let written = text.trim_start_matches('[').trim_end_matches(']');
        let is_ip = written.parse::<IpAddr>().is_ok();
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let name = match is_ip {
            true => Ok(Name::root()),
            false => Name::from_ascii(written).map_err(|error| error.to_string()),
        };
        match name {
            Ok(name) if is_ip || (name.num_labels() > 0 && written.bytes().all(is_name_byte)) => {
                Ok(Self { written: written.to_owned(), name })
            }
            Ok(_) => Err("expected a DNS name such as chat-headless".to_owned()),
            Err(error) => Err(format!("expected a DNS name such as chat-headless ({error})")),
        }
    }

    /// Returns the text as written, without brackets.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Returns the IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.written.parse().ok()
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_recognized_and_others_refused() {
        let ip = |text| HostName::parse(text).unwrap().ip().map(|ip| ip.to_string());
        assert_eq!(ip("10.0.0.1"), Some("10.0.0.1".to_owned()));
        assert_eq!(ip("[::1]"), Some("::1".to_owned()));
        assert_eq!(ip("_ws._tcp.chat"), None);
        assert_eq!(ip("10.0.0.300"), None);
        let long = "a".repeat(64);
        for wrong in ["", ".", "a..b", "a b", "ä", "a/b", &long, "*.a", "a\\.b"] {
            assert!(HostName::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
