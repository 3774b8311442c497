"""PROXY headers, valid and invalid, and the client address that the valid ones give.

The format is specified in HAProxy's `doc/proxy-protocol.txt`; §2.1 is version 1, §2.2 version 2.
"""

import random
import socket
import struct

CLIENT = "203.0.113.9"
CLIENT6 = "2001:db8::9"
PEER = "127.0.0.1"  # the sender of the header
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v1(text):
    return f"PROXY {text}\r\n".encode()


def v2(family, block=b"", command=0x21, length=None):
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2, "big") + block


def addresses(source, destination, family=socket.AF_INET):
    return b"".join(socket.inet_pton(family, one) for one in (source, destination)) + struct.pack(
        "!HH", 56324, 443
    )


def tlv(kind, value):
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def with_checksum(block):
    """Returns a v2 header whose last TLV is its CRC-32C."""
    whole = v2(0x11, block + tlv(3, bytes(4)))
    return whole[:-4] + crc32c(whole).to_bytes(4, "big")


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


IP4 = addresses(CLIENT, "198.51.100.1")
IP6 = addresses(CLIENT6, "2001:db8::1", socket.AF_INET6)
UNIX = b"/run/client.sock".ljust(108, b"\0") + b"/run/server.sock".ljust(108, b"\0")
TLVS = (
    tlv(1, b"h2")
    + tlv(2, b"chat.example.org")
    + tlv(4, bytes(7))
    + tlv(5, b"unique")
    + tlv(0xEA, b"\1vpce-0f1")
)
V1, V2 = v1(f"TCP4 {CLIENT} 198.51.100.1 56324 443"), v2(0x11, IP4)
LONGEST = "UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535".replace(
    "f...f", ":".join(["ffff"] * 6)
)
GOOD = [
    ("v1, TCP4", V1, CLIENT),
    ("v1, TCP6", v1(f"TCP6 {CLIENT6} 2001:db8::1 56324 443"), CLIENT6),
    (
        "v1, TCP6, the longest",
        v1("TCP6 " + LONGEST.removeprefix("UNKNOWN ")),
        ":".join(["ffff"] * 8),
    ),
    ("v1, UNKNOWN", v1("UNKNOWN"), PEER),
    ("v1, UNKNOWN with addresses, the longest, 107 bytes", v1(LONGEST), PEER),
    ("v2, TCP over IPv4", V2, CLIENT),
    ("v2, TCP over IPv6", v2(0x21, IP6), CLIENT6),
    ("v2, LOCAL", v2(0, command=0x20), PEER),
    ("v2, LOCAL with addresses", v2(0x11, IP4, command=0x20), PEER),
    ("v2, LOCAL with arbitrary bytes", v2(0, b"arbitrary bytes", command=0x20), PEER),
    ("v2, UNSPEC", v2(0), PEER),
    ("v2, UNSPEC with TLVs", v2(0, TLVS), PEER),
    ("v2, AF_UNIX", v2(0x31, UNIX), PEER),
    ("v2, AF_UNIX with TLVs", v2(0x31, UNIX + TLVS), PEER),
    ("v2, IPv4 with TLVs", v2(0x11, IP4 + TLVS), CLIENT),
    ("v2, IPv6 with TLVs", v2(0x21, IP6 + TLVS), CLIENT6),
    ("v2, IPv4 with its checksum", with_checksum(IP4 + TLVS), CLIENT),
    ("v2, IPv4 with 500 bytes of TLVs", v2(0x11, IP4 + tlv(4, b"x" * 500)), CLIENT),
]
SPLIT = [
    "v1, TCP4",
    "v1, UNKNOWN",
    "v2, TCP over IPv4",
    "v2, TCP over IPv6",
    "v2, LOCAL",
    "v2, IPv4 with TLVs",
]
GARBAGE = random.Random(2).randbytes(64)
BAD = [
    ("no header", b""),
    ("garbage", b"\xfe" + GARBAGE),
    ("garbage, one byte more before a header", b"\n" + V1),
    ("a TLS ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + GARBAGE),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("v1, small letters", V1.lower()),
    ("v1, empty", b"PROXY\r\n"),
    ("v1, no addresses", v1("TCP4")),
    ("v1, one address", v1(f"TCP4 {CLIENT}")),
    ("v1, no ports", v1(f"TCP4 {CLIENT} 198.51.100.1")),
    ("v1, names for addresses", v1("TCP4 localhost localhost 1 2")),
    ("v1, an octet too large", v1("TCP4 203.0.113.256 198.51.100.1 1 2")),
    ("v1, an octet with leading zeros", v1("TCP4 203.0.113.009 198.51.100.1 1 2")),
    ("v1, TCP4 with IPv6 addresses", v1(f"TCP4 {CLIENT6} 2001:db8::1 1 2")),
    ("v1, TCP6 with IPv4 addresses", v1(f"TCP6 {CLIENT} 198.51.100.1 1 2")),
    ("v1, port 65536", v1(f"TCP4 {CLIENT} 198.51.100.1 65536 2")),
    ("v1, a port that is not a number", v1(f"TCP4 {CLIENT} 198.51.100.1 1 x")),
    ("v1, two spaces", v1(f"TCP4  {CLIENT} 198.51.100.1 1 2")),
    ("v1, one field too many", v1(f"TCP4 {CLIENT} 198.51.100.1 1 2 3")),
    ("v1, UDP4", v1(f"UDP4 {CLIENT} 198.51.100.1 1 2")),
    ("v1, LF alone", V1.replace(b"\r\n", b"\n")),
    ("v1, too long", b"PROXY UNKNOWN " + b"x" * 500),
    ("v1, too long, with an end", v1("UNKNOWN " + "x" * 500)),
    ("v2, a wrong signature", V2.replace(b"QUIT", b"QUIX")),
    ("v2, version 1", v2(0x11, IP4, command=0x11)),
    ("v2, version 3", v2(0x11, IP4, command=0x31)),
    ("v2, an unknown command", v2(0x11, IP4, command=0x22)),
    ("v2, an unknown family", v2(0x41, IP4)),
    ("v2, an unknown transport", v2(0x13, IP4)),
    ("v2, IPv4 without addresses", v2(0x11)),
    ("v2, IPv4 in 11 bytes", v2(0x11, IP4[:11])),
    ("v2, IPv6 in 12 bytes", v2(0x21, IP4)),
    ("v2, AF_UNIX in 100 bytes", v2(0x31, UNIX[:100])),
]

# The specification allows both to accept and to refuse these.
OPTIONAL = [
    ("v2, 65,535 bytes", v2(0x11, IP4 + tlv(4, b"x" * 65_520))),
    ("v2, the last TLV cut", v2(0x11, IP4 + TLVS[:-3])),
    ("v2, a wrong checksum", v2(0x11, IP4 + tlv(3, b"1234"))),
    ("v2, UDP over IPv4", v2(0x12, IP4)),
]

# Incomplete headers: no more bytes follow.
INCOMPLETE = [
    ("one byte", V1[:1]),
    ("half of v1", V1[:20]),
    ("all of v1 but the last byte", V1[:-1]),
    ("half a signature", V2[:6]),
    ("v2 without its length", V2[:14]),
    ("all of v2 but the last byte", V2[:-1]),
    ("v2 that promises 400 bytes more", v2(0x11, IP4, length=len(IP4) + 400)),
]
