//! The PROXY protocol, versions 1 and 2 (HAProxy, `doc/proxy-protocol.txt`): the client's address
//! behind a TCP proxy.

use std::{io, net::IpAddr};

use bytes::{Buf as _, BytesMut};
use ppp::{v1, v2};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest header of version 1, line end included.
const MAX_V1: usize = 107;

/// Longest accepted header of version 2, type-length-values included. The protocol allows 64 KiB,
/// but proxies send a few hundred bytes.
const MAX_V2: usize = 4096;

/// Length of the fixed part of a version 2 header.
const V2_FIXED: usize = 16;

/// Why there is no usable header.
#[derive(Debug, Error)]
pub enum ProxyHeaderError {
    /// The connection ended before its first byte, as connections of TCP health checks do.
    #[error("the connection ended without a byte")]
    Empty,
    #[error("the connection ended within the PROXY protocol header")]
    Truncated,
    #[error("the PROXY protocol header was not received in time")]
    TimedOut,
    #[error("not a valid PROXY protocol header: {0}")]
    Malformed(String),
}

/// Reads the header at the start of `io`. Returns the client's address, if the header has one, and
/// the bytes after the header that have been read.
///
/// # Errors
/// [`ProxyHeaderError`]; the connection must then be closed, because the protocol forbids guessing.
pub async fn read(
    io: &mut (impl AsyncRead + Unpin),
) -> Result<(Option<IpAddr>, BytesMut), ProxyHeaderError> {
    let mut read = BytesMut::with_capacity(256);
    loop {
        match io.read_buf(&mut read).await {
            Ok(0) if read.is_empty() => return Err(ProxyHeaderError::Empty),
            Ok(0) => return Err(ProxyHeaderError::Truncated),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(ProxyHeaderError::Truncated),
        }
        if let Some((address, length)) = parse(&read)? {
            read.advance(length);
            return Ok((address, read));
        }
    }
}

/// Returns the address in a header and the length of the header; `None` if it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, ProxyHeaderError> {
    let signature = v2::PROTOCOL_PREFIX;
    let compared = bytes.len().min(signature.len());
    if bytes[..compared] == signature[..compared] {
        return parse_v2(bytes);
    }
    parse_v1(bytes)
}

/// Parses a header of version 1, one line of text. It is parsed only when it is complete, because
/// ppp takes a part of an address for an invalid one.
fn parse_v1(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, ProxyHeaderError> {
    let prefix = v1::PROTOCOL_PREFIX.as_bytes();
    let compared = bytes.len().min(prefix.len());
    if bytes[..compared] != prefix[..compared] {
        return Err(ProxyHeaderError::Malformed("neither version's signature".to_owned()));
    }
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        if bytes.len() >= MAX_V1 {
            return Err(ProxyHeaderError::Malformed(format!("no line end within {MAX_V1} bytes")));
        }
        return Ok(None);
    };
    let length = end + 1;
    let header = v1::Header::try_from(&bytes[..length])
        .map_err(|error| ProxyHeaderError::Malformed(error.to_string()))?;
    let address = match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    };
    Ok(Some((address, length)))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, ProxyHeaderError> {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else { return Ok(None) };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MAX_V2 {
        let message = format!("{length} bytes, at most {MAX_V2} are accepted");
        return Err(ProxyHeaderError::Malformed(message));
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let header = v2::Header::try_from(header)
        .map_err(|error| ProxyHeaderError::Malformed(error.to_string()))?;
    let address = match (header.command, &header.addresses) {
        // A connection of the proxy itself, such as a health check.
        (v2::Command::Local, _) => None,
        (_, v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
        (_, v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
        (_, v2::Addresses::Unix(_) | v2::Addresses::Unspecified) => None,
    };
    Ok(Some((address, length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[0x20 | command, family], &length, rest].concat()
    }

    fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let v4 = [10, 1, 2, 3, 127, 0, 0, 1, 0x10, 0, 0, 80];
        let mut v6 = [0; 36];
        v6[15] = 7;
        let with_tlv = [&v4[..], &[0x04, 0, 2, 0, 0]].concat();
        vec![
            (b"PROXY TCP4 10.1.2.3 127.0.0.1 4096 80\r\n".to_vec(), Some("10.1.2.3")),
            (b"PROXY TCP6 ::7 ::1 4096 80\r\n".to_vec(), Some("::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ff:: ff:: 1 2\r\n".to_vec(), None),
            (v2(1, 0x11, &v4), Some("10.1.2.3")),
            (v2(1, 0x11, &with_tlv), Some("10.1.2.3")),
            (v2(1, 0x21, &v6), Some("::7")),
            (v2(1, 0x31, &[0; 216]), None),
            (v2(1, 0x00, &[]), None),
            (v2(0, 0x00, &[]), None),
            (v2(0, 0x11, &v4), None),
        ]
    }

    #[test]
    fn headers_of_both_versions_are_read_in_any_pieces() {
        for (header, address) in headers() {
            let shown = String::from_utf8_lossy(&header).into_owned();
            for cut in 1..header.len() {
                assert!(matches!(parse(&header[..cut]), Ok(None)), "{shown:?} at {cut}");
            }
            let with_more = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let (found, length) = parse(&with_more).unwrap().expect("a whole header");
            assert_eq!(found, address.map(|address| address.parse::<IpAddr>().unwrap()), "{shown}");
            assert_eq!(length, header.len());
        }
    }

    #[test]
    fn invalid_headers_are_refused() {
        for wrong in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY\r\n",
            b"PROXY TCP4 1.2.3 127.0.0.1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 127.0.0.1 1 99999\r\n",
            b"PROXY TCP4 1.2.3.4 127.0.0.1 1 2\n",
            b"proxy TCP4 1.2.3.4 127.0.0.1 1 2\r\n",
            &[&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat(),
            &v2(2, 0x11, &[0; 12]),
            &v2(1, 0x11, &[0; 11]),
            &v2(1, 0x11, &[0; 5000]),
        ] {
            let shown = String::from_utf8_lossy(wrong);
            assert!(parse(wrong).is_err(), "{shown:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            start in prop::sample::select(vec![&b""[..], b"PROXY TCP4 ", v2::PROTOCOL_PREFIX]),
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = parse(&[start, &rest].concat());
        }
    }
}
