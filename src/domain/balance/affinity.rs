//! Affinity: a client returns to the backend of its last session, by cookie or by hash.
//!
//! A cookie contains a *tag*, which stands for a backend and means nothing without the key, and a
//! seal, which shows that the tag was made with the key. A hash needs neither key nor cookie: the
//! client prefers the backend with the highest score for its value (rendezvous hashing: Thaler and
//! Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998). If a backend leaves, only
//! its own clients get another preference.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    hmac::{self, HMAC_SHA256},
    rand::SystemRandom,
};
use subtle::ConstantTimeEq as _;

/// The bytes of a tag and of a seal: half an HMAC-SHA256 each (RFC 2104 §5).
const LEN: usize = 16;

/// Stands for a backend of a service; made with a [`Key`].
pub type Tag = [u8; LEN];

/// The backend that a client should get if it is usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// No preference.
    #[default]
    None,
    /// The backend with this tag.
    Tag(Tag),
    /// The backend with the highest [`score`] for this hash.
    Hash(u64),
}

/// Makes and reads affinity cookies. Replicas with the same secret can read each other's cookies.
#[derive(Clone, Debug)]
pub struct Key(hmac::Key);

impl Key {
    /// Derives the key from `secret`.
    pub fn new(secret: &str) -> Self {
        Self(hmac::Key::new(HMAC_SHA256, secret.as_bytes()))
    }

    /// Creates a random key.
    pub fn random() -> Self {
        let random = SystemRandom::new();
        Self(hmac::Key::generate(HMAC_SHA256, &random).expect("the system has random bytes"))
    }

    /// Returns the tag of the backend at `address` in `service`.
    pub fn tag(&self, service: &str, address: &str) -> Tag {
        self.half_mac(b"pod", service, address.as_bytes())
    }

    /// Returns a cookie value for the backend with `tag`: 43 characters that mean nothing without the
    /// key.
    pub fn seal(&self, service: &str, tag: Tag) -> String {
        let seal = self.half_mac(b"cookie", service, &tag);
        BASE64_URL_SAFE_NO_PAD.encode([tag, seal].concat())
    }

    /// Returns the tag in a cookie value, if this key has sealed it for `service`.
    pub fn open(&self, service: &str, value: &str) -> Option<Tag> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(value).ok()?;
        let (tag, seal) = bytes.split_first_chunk::<LEN>()?;
        let seal: &Tag = seal.try_into().ok()?;
        let expected = self.half_mac(b"cookie", service, tag);
        // In constant time: the duration must not show where the bytes differ.
        bool::from(seal[..].ct_eq(&expected[..])).then_some(*tag)
    }

    fn half_mac(&self, purpose: &[u8], service: &str, text: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [purpose, service.as_bytes()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.update(text);
        let mac = context.sign();
        *mac.as_ref().first_chunk().expect("an HMAC-SHA256 is longer than its half")
    }
}

/// Hashes `bytes` in the same way in every replica and release (FNV-1a, 64 bit).
pub fn hash(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Returns how strongly a client with the hash `client` prefers the backend with the hash `backend`.
pub fn score(client: u64, backend: u64) -> u64 {
    mix(client ^ mix(backend))
}

/// Lets each bit of `word` change all bits of the result (the finalizer of SplitMix64: Steele, Lea and Flood, "Fast
/// Splittable Pseudorandom Number Generators", 2014).
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn only_the_right_key_and_service_open_a_cookie() {
        let key = Key::new("a secret that is long enough");
        let tag = key.tag("chat", "10.0.0.1:3001");
        let value = key.seal("chat", tag);
        assert_eq!(value.len(), 43);
        assert_eq!(Key::new("a secret that is long enough").open("chat", &value), Some(tag));
        assert_eq!(key.open("feed", &value), None);
        assert_eq!(Key::new("an older secret that is long").open("chat", &value), None);
        assert_eq!(Key::random().open("chat", &value), None);
    }

    #[test]
    fn a_cookie_with_a_changed_bit_or_a_missing_character_is_rejected() {
        let key = Key::random();
        let value = key.seal("chat", key.tag("chat", "10.0.0.1:3001"));
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&value).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open("chat", &BASE64_URL_SAFE_NO_PAD.encode(forged)), None, "{bit}");
        }
        for length in 0..value.len() {
            assert_eq!(key.open("chat", &value[..length]), None, "{length}");
        }
        assert_eq!(key.open("chat", &format!("{value}A")), None);
        assert_eq!(key.open("chat", "ünlesbar"), None);
    }

    #[test]
    fn tags_differ_by_service_and_address() {
        let key = Key::random();
        let tags =
            [key.tag("a", "b:1"), key.tag("a", "b:2"), key.tag("ab", ":1"), key.tag("", "ab:1")];
        for (index, tag) in tags.iter().enumerate() {
            assert!(!tags[..index].contains(tag));
        }
    }

    #[test]
    fn rendezvous_hashing_is_even_and_moves_only_the_clients_of_a_removed_backend() {
        let backends: Vec<u64> =
            (0..5).map(|n| hash(format!("10.0.0.{n}:80").as_bytes())).collect();
        let choose = |client: u64, backends: &[u64]| {
            *backends.iter().max_by_key(|backend| score(client, **backend)).unwrap()
        };
        let mut counts = HashMap::<u64, u32>::new();
        for client in 0..10_000 {
            let client = hash(format!("user-{client}").as_bytes());
            let chosen = choose(client, &backends);
            *counts.entry(chosen).or_default() += 1;
            if chosen != backends[2] {
                let fewer = [&backends[..2], &backends[3..]].concat();
                assert_eq!(choose(client, &fewer), chosen);
            }
        }
        // Five standard deviations around 2,000.
        assert!(counts.values().all(|count| (1_800..2_200).contains(count)), "{counts:?}");
    }

    #[test]
    fn hashes_match_the_published_test_vectors() {
        assert_eq!(hash(b"foobar"), 0x85944171f73967e8);
        assert_eq!(mix(0), 0xe220a8397b1dcdaf);
    }
}
