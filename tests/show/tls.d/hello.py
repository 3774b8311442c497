"""ClientHello by hand: one made byte for byte, one read; and what answers it (RFC 8446 §4.1, RFC
5246 §7.4).
"""

import contextlib
import os
import ssl
import struct

ALERTS = {
    20: "bad_record_mac",
    40: "handshake_failure",
    47: "illegal_parameter",
    50: "decode_error",
    70: "protocol_version",
    80: "internal_error",
    109: "missing_extension",
}
ECDHE = [0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8]
OLD = [0xC013, 0xC009, 0x002F, 0x0035, 0x000A, 0x0005]
SSL3, TLS10, TLS11, TLS12 = 0x0300, 0x0301, 0x0302, 0x0303


def vector(width, content):
    return len(content).to_bytes(width, "big") + content


def words(*numbers):
    return b"".join(struct.pack(">H", number) for number in numbers)


def extension(kind, content):
    return words(kind) + vector(2, content)


def make(version, compression=(0,), ciphers=(*ECDHE, *OLD)):
    """A ClientHello that offers `version` at most, in one record."""
    extensions = (
        b""
        if version == SSL3
        else b"".join(
            [
                extension(
                    10, vector(2, words(29, 23, 24))
                ),  # supported_groups: x25519, P-256, P-384
                extension(11, vector(1, b"\0")),  # ec_point_formats: uncompressed
                extension(
                    13, vector(2, words(0x0403, 0x0804, 0x0401, 0x0503, 0x0201))
                ),  # signature_algorithms
                extension(23, b""),  # extended_master_secret
                extension(0xFF01, b"\0"),  # renegotiation_info
            ]
        )
    )
    body = words(version) + os.urandom(32) + vector(1, b"") + vector(2, words(*ciphers))
    body += vector(1, bytes(compression)) + (vector(2, extensions) if extensions else b"")
    return bytes([22]) + words(min(version, TLS10)) + vector(2, b"\1" + vector(3, body))


def genuine(name="localhost"):
    """The ClientHello of OpenSSL, as Python has it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        incoming, outgoing, server_hostname=name
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def read(record):
    """What a ClientHello asks for: name (SNI), ALPN, versions."""
    assert record[:2] == b"\x16\x03" and record[5] == 1, f"no ClientHello: {record[:16]!r}"
    at = 5 + 4 + 2 + 32
    at += 1 + record[at]  # session
    at += 2 + int.from_bytes(record[at : at + 2], "big")  # cipher suites
    at += 1 + record[at]  # compression
    end = at + 2 + int.from_bytes(record[at : at + 2], "big")
    found, at = {}, at + 2
    while at < end:
        kind, size = struct.unpack(">HH", record[at : at + 4])
        found[kind] = record[at + 4 : at + 4 + size]
        at += 4 + size
    names, left = [], found.get(16, b"\0\0")[2:]
    while left:
        names.append(left[1 : 1 + left[0]].decode())
        left = left[1 + left[0] :]
    versions = [word for (word,) in struct.iter_unpack(">H", found.get(43, b"\0")[1:])]
    return {
        "name": found.get(0, bytes(5))[5:].decode() or None,
        "alpn": names,
        "versions": [f"1.{version - 0x301}" for version in versions],
    }


def answered(raw):
    """The first record of a server's answer, in words."""
    if not raw:
        return "closed"
    if raw[0] == 21 and len(raw) >= 7:
        return f"alert {ALERTS.get(raw[6], raw[6])}"
    if raw[0] == 22 and raw[5] == 2:
        version = int.from_bytes(raw[9:11], "big")
        at = 11 + 32
        at += 1 + raw[at]
        told = "SSLv3" if version == SSL3 else f"TLS 1.{version - TLS10}"
        return f"{told}, cipher {raw[at]:02x}{raw[at + 1]:02x}, compression {raw[at + 2]}"
    return f"no TLS: {raw[:20]!r}"
