//! The bearer token for calls to the admin listener.

use std::fmt;

use subtle::ConstantTimeEq as _;

/// A bearer token (RFC 6750 §2.1). It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// # Errors
    /// `text` contains characters that a token cannot have.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if text.bytes().all(is_valid) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected only letters, digits and -._~+/=".to_owned())
        }
    }

    /// Whether `given` is this token. The time that it takes depends only on the lengths.
    pub fn matches(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_token_matches() {
        let token = Token::parse("s3cret-._~+/=").unwrap();
        assert!(token.matches("s3cret-._~+/="));
        for wrong in ["", "s3cret", "s3cret-._~+/=x", "S3cret-._~+/=", "xxxxxxxxxxxxx"] {
            assert!(!token.matches(wrong), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "***");
        assert!(Token::parse("two words").is_err() && Token::parse("schlüssel").is_err());
    }
}
