"""Makes and parses ClientHello records, and describes answers (RFC 8446 §4.1, RFC 5246 §7.4)."""

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


def uint16s(*numbers):
    return b"".join(struct.pack(">H", number) for number in numbers)


def extension(kind, content):
    return uint16s(kind) + vector(2, content)


def make(version, compression=(0,), ciphers=(*ECDHE, *OLD)):
    """Returns a ClientHello that offers at most `version`, in one record."""
    extensions = (
        b""
        if version == SSL3
        else b"".join(
            [
                extension(
                    10, vector(2, uint16s(29, 23, 24))
                ),  # supported_groups: x25519, P-256, P-384
                extension(11, vector(1, b"\0")),  # ec_point_formats: uncompressed
                extension(
                    13, vector(2, uint16s(0x0403, 0x0804, 0x0401, 0x0503, 0x0201))
                ),  # signature_algorithms
                extension(23, b""),  # extended_master_secret
                extension(0xFF01, b"\0"),  # renegotiation_info
            ]
        )
    )
    body = uint16s(version) + os.urandom(32) + vector(1, b"") + vector(2, uint16s(*ciphers))
    body += vector(1, bytes(compression)) + (vector(2, extensions) if extensions else b"")
    return bytes([22]) + uint16s(min(version, TLS10)) + vector(2, b"\1" + vector(3, body))


def openssl_hello(name="localhost"):
    """Returns a ClientHello of Python's OpenSSL."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        incoming, outgoing, server_hostname=name
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def read(record):
    """Parses a ClientHello. Returns its server name, ALPN protocols and versions."""
    assert record[:2] == b"\x16\x03" and record[5] == 1, f"not a ClientHello: {record[:16]!r}"
    position = 5 + 4 + 2 + 32
    position += 1 + record[position]  # session
    position += 2 + int.from_bytes(record[position : position + 2], "big")  # cipher suites
    position += 1 + record[position]  # compression
    end = position + 2 + int.from_bytes(record[position : position + 2], "big")
    extensions, position = {}, position + 2
    while position < end:
        kind, size = struct.unpack(">HH", record[position : position + 4])
        extensions[kind] = record[position + 4 : position + 4 + size]
        position += 4 + size
    names, remaining = [], extensions.get(16, b"\0\0")[2:]
    while remaining:
        names.append(remaining[1 : 1 + remaining[0]].decode())
        remaining = remaining[1 + remaining[0] :]
    versions = [word for (word,) in struct.iter_unpack(">H", extensions.get(43, b"\0")[1:])]
    return {
        "name": extensions.get(0, bytes(5))[5:].decode() or None,
        "alpn": names,
        "versions": [f"1.{version - 0x301}" for version in versions],
    }


def describe_answer(raw):
    """Describes the first record of a server's answer."""
    if not raw:
        return "closed"
    if raw[0] == 21 and len(raw) >= 7:
        return f"alert {ALERTS.get(raw[6], raw[6])}"
    if raw[0] == 22 and raw[5] == 2:
        version = int.from_bytes(raw[9:11], "big")
        position = 11 + 32
        position += 1 + raw[position]
        version_name = "SSLv3" if version == SSL3 else f"TLS 1.{version - TLS10}"
        return (
            f"{version_name}, cipher {raw[position]:02x}{raw[position + 1]:02x}, compression "
            f"{raw[position + 2]}"
        )
    return f"not TLS: {raw[:20]!r}"
