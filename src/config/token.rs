//! The secret that admin calls carry.

use std::fmt;

use subtle::ConstantTimeEq as _;

/// A bearer token (RFC 6750 §2.1). It shows nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// # Errors
    /// `text` has characters that no token may have.
    pub fn parse(text: &str) -> Result<Self, String> {
        let may_be = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if text.bytes().all(may_be) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected letters, digits and -._~+/= only".to_owned())
        }
    }

    /// Whether `given` is the same. How long that takes tells nothing but the length.
    pub fn is(&self, given: &str) -> bool {
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
    fn only_the_same_token_will_do() {
        let token = Token::parse("s3cret-._~+/=").unwrap();
        assert!(token.is("s3cret-._~+/="));
        for wrong in ["", "s3cret", "s3cret-._~+/=x", "S3cret-._~+/=", "xxxxxxxxxxxxx"] {
            assert!(!token.is(wrong), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "***");
        assert!(Token::parse("two words").is_err() && Token::parse("schlüssel").is_err());
    }
}
