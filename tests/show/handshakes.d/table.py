"""Handshakes, good and bad: bytes in, status and fields out, beside HAProxy and nginx.

`want` holds for all three. Where a peer does otherwise, `differs` at the end says how and why.
"""

import dataclasses

from evidence.raw_sockets import ACCEPT, HOST, NONCE, Says, chunked, frame, framed, switching

SHUT = True


@dataclasses.dataclass
class Case:
    name: str
    raw: bytes
    want: int
    # Of the answer, beside those that its status calls for; None: absent.
    fields: dict = dataclasses.field(default_factory=dict)
    body: bytes | None = None
    # Words of the balancer's own refusal; None: the answer is a pod's, or the parser's.
    says: tuple | None = None
    # What the pods say, one try after the other, the last again and again; none: yes.
    pod: list = dataclasses.field(default_factory=list)
    # How many of the two pods see the handshake; None: one if a pod answers it.
    tries: int | None = None
    # The target that a pod sees.
    target: bytes = b"/case"
    # What the client finds behind the 101 without asking.
    early: bytes = b""
    # A whole answer, or one that the end of the connection shows to be cut.
    whole: bool = True
    # Where a peer does otherwise: its status (0: closed, -1: silence, -2: no HTTP) and why.
    haproxy: tuple | None = None
    nginx: tuple | None = None

    @property
    def refused(self):
        """The balancer says this itself."""
        return self.says is not None or (self.want >= 400 and not self.pod)

    @property
    def reaches(self):
        return self.tries if self.tries is not None else 0 if self.refused else 1

    def required(self):
        """The fields of the answer: a value, or None for none."""
        by_status = {
            101: {
                "upgrade": "websocket",
                "connection": "upgrade",
                "sec-websocket-accept": ACCEPT.decode(),
                "sec-websocket-protocol": None,
                "sec-websocket-extensions": None,
                "content-length": None,
                "transfer-encoding": None,
            },
            405: {"allow": "GET"},
            426: {"sec-websocket-version": "13", "upgrade": "websocket"},
        }
        return {**by_status.get(self.want, {}), **self.fields}


CASES = []


def case(name, raw, want, **columns):
    CASES.append(Case(name, raw, want, **columns))


def ask(
    *more,
    line=b"GET /case HTTP/1.1",
    host=HOST,
    upgrade=b"websocket",
    connection=b"Upgrade",
    version=b"13",
    key=NONCE,
    behind=b"",
):
    """A handshake; None leaves a field away, `more` are further lines."""
    own = {
        b"Host": host,
        b"Upgrade": upgrade,
        b"Connection": connection,
        b"Sec-WebSocket-Version": version,
        b"Sec-WebSocket-Key": key,
    }
    lines = [line, *(b"%s: %s" % field for field in own.items() if field[1] is not None), *more]
    return b"\r\n".join(lines) + b"\r\n\r\n" + behind


# --- good ones ---

case(
    "as-in-rfc-6455",
    ask(b"Origin: http://pods.example", b"Sec-WebSocket-Protocol: chat, superchat"),
    101,
)
case("as-firefox", ask(b"Accept: */*", b"Pragma: no-cache", connection=b"keep-alive, Upgrade"), 101)
case("upgrade-WebSocket", ask(upgrade=b"WebSocket"), 101)
case("upgrade-WEBSOCKET", ask(upgrade=b"WEBSOCKET"), 101)
case("upgrade-list-last", ask(upgrade=b"foo, websocket"), 101)
case("upgrade-list-first", ask(upgrade=b"websocket, foo"), 101)
case("upgrade-list-dense", ask(upgrade=b"foo,websocket"), 101)
case("upgrade-list-hollow", ask(upgrade=b", websocket ,"), 101)
case("upgrade-twice", ask(b"Upgrade: websocket", upgrade=b"foo"), 101)
case("upgrade-padded", ask(upgrade=b" \twebsocket \t"), 101)
case("connection-lower-case", ask(connection=b"upgrade"), 101)
case("connection-UPGRADE", ask(connection=b"UPGRADE"), 101)
case("connection-list", ask(connection=b"keep-alive , upgrade"), 101)
case("connection-twice", ask(b"Connection: Upgrade", connection=b"keep-alive"), 101)
case("connection-hollow", ask(connection=b",,Upgrade,"), 101)
case(
    "names-in-capitals",
    ask().replace(b"Upgrade:", b"UPGRADE:").replace(b"Sec-WebSocket-Key", b"SEC-WEBSOCKET-KEY"),
    101,
)
case(
    "names-in-lower-case",
    ask().replace(b"Upgrade:", b"upgrade:").replace(b"Sec-WebSocket-Key", b"sec-websocket-key"),
    101,
)
case("no-blank-behind-colon", ask().replace(b": ", b":"), 101)
case("blanks-behind-value", ask(version=b"13  ", key=NONCE + b" \t"), 101)
case("origin", ask(b"Origin: null"), 101)
case(
    "subprotocol-taken",
    ask(b"Sec-WebSocket-Protocol: chat, superchat"),
    101,
    pod=[Says(switching(b"Sec-WebSocket-Protocol: superchat"))],
    fields={"sec-websocket-protocol": "superchat"},
)
case(
    "subprotocol-offered-on-two-lines",
    ask(b"Sec-WebSocket-Protocol: chat", b"Sec-WebSocket-Protocol: superchat"),
    101,
    pod=[Says(switching(b"Sec-WebSocket-Protocol: superchat"))],
    fields={"sec-websocket-protocol": "superchat"},
)
case(
    "extension-taken",
    ask(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
    101,
    pod=[
        Says(switching(b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10"))
    ],
    fields={"sec-websocket-extensions": "permessage-deflate; server_max_window_bits=10"},
)
case(
    "extensions-taken-two",
    ask(b'Sec-WebSocket-Extensions: foo, permessage-deflate, bar; a="x, y"'),
    101,
    pod=[Says(switching(b"Sec-WebSocket-Extensions: permessage-deflate, bar"))],
    fields={"sec-websocket-extensions": "permessage-deflate, bar"},
)
case(
    "cookies-and-authorization",
    ask(b"Cookie: a=1", b"Cookie: b=2", b"Authorization: Bearer x"),
    101,
)
case(
    "target-query",
    ask(line=b"GET /case?token=a%2Fb&x=1 HTTP/1.1"),
    101,
    target=b"/case?token=a%2Fb&x=1",
)
case(
    "target-percent-encoded",
    ask(line=b"GET /case/%2e%2E/%c3%a9%00%0d%0a HTTP/1.1"),
    101,
    target=b"/case/%2e%2E/%c3%a9%00%0d%0a",
)
case("target-dots", ask(line=b"GET /case/../x/./y//z HTTP/1.1"), 101, target=b"/case/../x/./y//z")
case("target-two-slashes", ask(line=b"GET //case HTTP/1.1"), 101, target=b"//case")
case("target-absolute", ask(line=b"GET http://pods.example/case HTTP/1.1"), 101, target=b"/case")
case("target-absolute-other-host", ask(line=b"GET http://other.example/case HTTP/1.1"), 101)
case("host-with-port", ask(host=b"pods.example:8080"), 101)
case("host-ipv6", ask(host=b"[::1]:8080"), 101)
case("empty-line-before", b"\r\n" + ask(), 101)
case("frame-behind-it", ask(behind=frame(1, b"early", masked=True)), 101, early=frame(1, b"early"))
case("90-fields", ask(*(b"X-%d: %d" % (n, n) for n in range(85))), 101)
case("60-kB-field", ask(b"X-Large: " + b"x" * 60_000), 101)

# --- what the client got wrong ---

case(
    "upgrade-missing",
    ask(upgrade=None),
    426,
    pod=[
        Says(
            framed(
                b"use it\n",
                b"426 Upgrade Required",
                b"Upgrade: websocket",
                b"Sec-WebSocket-Version: 13",
            )
        )
    ],
    body=b"use it\n",
)
case(
    "upgrade-empty",
    ask(upgrade=b""),
    200,
    body=b"GET /case HTTP/1.1",
    pod=[Says(framed(b"GET /case HTTP/1.1"))],
)
case("upgrade-h2c", ask(upgrade=b"h2c"), 200, pod=[Says(framed(b"plain"))], body=b"plain")
case(
    "upgrade-websockets",
    ask(upgrade=b"websockets"),
    200,
    pod=[Says(framed(b"plain"))],
    body=b"plain",
)
case("connection-missing", ask(connection=None), 400, says=("Connection",))
case("connection-close", ask(connection=b"close"), 400, says=("Connection", "close"))
case("connection-keep-alive", ask(connection=b"keep-alive"), 400, says=("Connection", "keep-alive"))
case("connection-upgraded", ask(connection=b"upgraded"), 400, says=("Connection", "upgraded"))
case("key-missing", ask(key=None), 400, says=("Sec-WebSocket-Key",))
case("key-empty", ask(key=b""), 400, says=("Sec-WebSocket-Key",))
case(
    "key-twice-equal",
    ask(b"Sec-WebSocket-Key: " + NONCE),
    400,
    says=("Sec-WebSocket-Key", NONCE.decode()),
)
case(
    "key-twice",
    ask(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
)
case(
    "key-15-bytes",
    ask(key=b"AAAAAAAAAAAAAAAAAAAA"),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA"),
)
case(
    "key-17-bytes",
    ask(key=b"AAAAAAAAAAAAAAAAAAAAAAA="),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA="),
)
case(
    "key-unpadded",
    ask(key=b"AAAAAAAAAAAAAAAAAAAAAA"),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA"),
)
case(
    "key-url-alphabet",
    ask(key=b"-_AAAAAAAAAAAAAAAAAAAA=="),
    400,
    says=("Sec-WebSocket-Key", "-_AAAAAAAAAAAAAAAAAAAA=="),
)
case(
    "key-no-base64",
    ask(key=b"!!!!!!!!!!!!!!!!!!!!!!=="),
    400,
    says=("Sec-WebSocket-Key", "!!!!!!!!!!!!!!!!!!!!!!=="),
)
case(
    "key-inner-blank",
    ask(key=b"AAAAAAAAAA AAAAAAAAAAA=="),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAA AAAAAAAAAAA=="),
)
case("version-missing", ask(version=None), 426, says=("Sec-WebSocket-Version",))
case("version-empty", ask(version=b""), 426, says=("Sec-WebSocket-Version",))
case("version-8", ask(version=b"8"), 426, says=("Sec-WebSocket-Version", "8"))
case("version-14", ask(version=b"14"), 426, says=("Sec-WebSocket-Version", "14"))
case("version-013", ask(version=b"013"), 426, says=("Sec-WebSocket-Version", "013"))
case("version-list", ask(version=b"13, 8"), 426, says=("Sec-WebSocket-Version", "13, 8"))
case(
    "version-twice-equal",
    ask(b"Sec-WebSocket-Version: 13"),
    426,
    says=("Sec-WebSocket-Version", "13, 13"),
)
case(
    "version-twice", ask(b"Sec-WebSocket-Version: 8"), 426, says=("Sec-WebSocket-Version", "13, 8")
)
case("method-POST", ask(line=b"POST /case HTTP/1.1"), 405, says=("POST",))
case("method-HEAD", ask(line=b"HEAD /case HTTP/1.1"), 405)
case("method-OPTIONS", ask(line=b"OPTIONS /case HTTP/1.1"), 405, says=("OPTIONS",))
case("method-lower-case", ask(line=b"get /case HTTP/1.1"), 405, says=("get",))
case("method-unknown", ask(line=b"BREW /case HTTP/1.1"), 405, says=("BREW",))
case("method-CONNECT", ask(line=b"CONNECT pods.example:80 HTTP/1.1"), 405, says=("CONNECT",))
case("http-1.0", ask(line=b"GET /case HTTP/1.0"), 400, says=("HTTP/1.0",))
case("http-1.0-no-host", ask(line=b"GET /case HTTP/1.0", host=None), 400)
case("http-2.0", ask(line=b"GET /case HTTP/2.0"), 400)
case("http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", 400)
case("host-missing", ask(host=None), 400)
case("host-twice-equal", ask(b"Host: " + HOST), 400)
case("host-twice", ask(b"Host: other.example"), 400)
case("host-empty", ask(host=b""), 400)
case("target-asterisk", ask(line=b"GET * HTTP/1.1"), 400)
case("target-authority", ask(line=b"GET pods.example:80 HTTP/1.1"), 400)
case(
    "target-utf-8", ask(line=b"GET /case/\xc3\xa9?q=\xe2\x82\xac HTTP/1.1"), 400
)  # RFC 3986 has ASCII only
case("target-relative", ask(line=b"GET case HTTP/1.1"), 400)
case("target-missing", ask(line=b"GET HTTP/1.1"), 400)
case("target-blank", ask(line=b"GET /case /x HTTP/1.1"), 400)
case("body-length", ask(b"Content-Length: 5", behind=b"hello"), 400, says=("Content-Length", "5"))
case("body-length-0", ask(b"Content-Length: 0"), 400, says=("Content-Length", "0"))
case(
    "body-chunked",
    ask(b"Transfer-Encoding: chunked", behind=b"5\r\nhello\r\n0\r\n\r\n"),
    400,
    says=("Transfer-Encoding", "chunked"),
)
case(
    "body-both", ask(b"Content-Length: 5", b"Transfer-Encoding: chunked", behind=b"0\r\n\r\n"), 400
)
case("120-fields", ask(*(b"X-%d: %d" % (n, n) for n in range(115))), 431)
case("70-kB-field", ask(b"X-Large: " + b"x" * 70_000), 431)
case("70-kB-of-fields", ask(*(b"X-%d: %s" % (n, b"x" * 1_000) for n in range(70))), 431)
case("70-kB-target", ask(line=b"GET /case?%s HTTP/1.1" % (b"x" * 70_000)), 431)
case("field-without-colon", ask(b"nonsense"), 400)
case("field-blank-before-colon", ask(b"X-Blank : 1"), 400)
case("field-folded", ask(b"X-Folded: a", b" b"), 400)
case("field-nul", ask(b"X-Nul: a\0b"), 400)

# --- what a pod got wrong: it counts as failed, the next is tried, and its word never passes ---

for name, says in {
    "accept-wrong": switching(accept=b"AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    "accept-missing": switching(accept=None),
    "accept-of-key-with-blank": switching(accept=ACCEPT.lower()),
    "accept-twice": switching(b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    "upgrade-missing": switching(upgrade=None),
    "upgrade-h2c": switching(upgrade=b"h2c"),
    "connection-missing": switching(connection=None),
    "connection-close": switching(connection=b"close"),
    "subprotocol-not-offered": switching(b"Sec-WebSocket-Protocol: chat"),
    "extension-not-offered": switching(b"Sec-WebSocket-Extensions: permessage-deflate"),
}.items():
    case(f"pod-101-{name}", ask(), 502, says=(), pod=[Says(says)], tries=2)
    case(f"pod-101-{name}-then-right", ask(), 101, pod=[Says(says), Says(switching())], tries=2)
case(
    "pod-101-subprotocol-other",
    ask(b"Sec-WebSocket-Protocol: chat"),
    502,
    says=(),
    tries=2,
    pod=[Says(switching(b"Sec-WebSocket-Protocol: superchat"))],
)
case(
    "pod-101-subprotocol-other-case",
    ask(b"Sec-WebSocket-Protocol: chat"),
    502,
    says=(),
    tries=2,
    pod=[Says(switching(b"Sec-WebSocket-Protocol: Chat"))],
)
case(
    "pod-101-subprotocol-two",
    ask(b"Sec-WebSocket-Protocol: chat, superchat"),
    502,
    says=(),
    tries=2,
    pod=[Says(switching(b"Sec-WebSocket-Protocol: chat, superchat"))],
)
case(
    "pod-101-extension-other",
    ask(b"Sec-WebSocket-Extensions: foo"),
    502,
    says=(),
    tries=2,
    pod=[Says(switching(b"Sec-WebSocket-Extensions: foo, permessage-deflate"))],
)
case("pod-hangs-up", ask(), 502, says=(), tries=2, pod=[Says(b"", SHUT)])
case("pod-hangs-up-then-right", ask(), 101, tries=2, pod=[Says(b"", SHUT), Says(switching())])
case("pod-hangs-up-in-its-head", ask(), 502, says=(), tries=2, pod=[Says(switching()[:40], SHUT)])
case(
    "pod-talks-nonsense",
    ask(),
    502,
    says=(),
    tries=2,
    pod=[Says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", SHUT)],
)
case(
    "pod-two-lengths",
    ask(),
    502,
    says=(),
    tries=2,
    pod=[
        Says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello", SHUT)
    ],
)

# --- what a pod may do ---

case(
    "pod-101-fields-in-lower-case",
    ask(),
    101,
    pod=[Says(switching(upgrade=b"WebSocket", connection=b"keep-alive, upgrade"))],
)
case(
    "pod-101-own-fields",
    ask(),
    101,
    pod=[Says(switching(b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Own: 1"))],
    fields={"set-cookie": "a=1, b=2", "x-own": "1"},
)
case("pod-101-length-0", ask(), 101, pod=[Says(switching(b"Content-Length: 0"))])
case(
    "pod-101-other-reason",
    ask(),
    101,
    pod=[Says(switching().replace(b"Switching Protocols", b"Web Socket Protocol Handshake"))],
)
case("pod-101-of-http-1.0", ask(), 101, pod=[Says(switching().replace(b"HTTP/1.1", b"HTTP/1.0"))])
case(
    "pod-101-and-a-frame",
    ask(),
    101,
    pod=[Says(switching() + frame(1, b"early"))],
    early=frame(1, b"early"),
)
case(
    "pod-103-before-101",
    ask(),
    101,
    pod=[Says(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + switching())],
)
case("pod-100-before-101", ask(), 101, pod=[Says(b"HTTP/1.1 100 Continue\r\n\r\n" + switching())])
case(
    "pod-103-before-404",
    ask(),
    404,
    pod=[Says(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + framed(b"no", b"404 Not Found"))],
    body=b"no",
)
case("pod-200", ask(), 200, pod=[Says(framed(b"plain"))], body=b"plain")
case(
    "pod-200-chunked",
    ask(),
    200,
    body=b"hello world",
    fields={"content-type": "text/plain"},
    pod=[
        Says(
            chunked(
                b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n",
                b"200 OK",
                b"Content-Type: text/plain",
            )
        )
    ],
)
case(
    "pod-200-to-its-end",
    ask(),
    200,
    body=b"to the end",
    pod=[Says(b"HTTP/1.1 200 OK\r\n\r\nto the end", SHUT)],
)
case(
    "pod-200-of-http-1.0", ask(), 200, body=b"old", pod=[Says(b"HTTP/1.0 200 OK\r\n\r\nold", SHUT)]
)
case(
    "pod-200-cut",
    ask(),
    200,
    body=b"hel",
    whole=False,
    pod=[Says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", SHUT)],
)
case(
    "pod-200-chunked-cut",
    ask(),
    200,
    body=b"hello",
    whole=False,
    pod=[Says(chunked(b"5\r\nhello\r\n"), SHUT)],
)
case("pod-200-100-kB", ask(), 200, body=b"x" * 100_000, pod=[Says(framed(b"x" * 100_000))])
case(
    "pod-204",
    ask(),
    204,
    body=b"",
    pod=[Says(b"HTTP/1.1 204 No Content\r\nX-Own: 1\r\n\r\n")],
    fields={"x-own": "1"},
)
case(
    "pod-301",
    ask(),
    301,
    body=b"",
    pod=[Says(framed(b"", b"301 Moved Permanently", b"Location: wss://b.example/case?x=1"))],
    fields={"location": "wss://b.example/case?x=1"},
)
case(
    "pod-304",
    ask(),
    304,
    body=b"",
    pod=[Says(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n')],
    fields={"etag": '"a"'},
)
case(
    "pod-401",
    ask(),
    401,
    body=b"who?",
    fields={"www-authenticate": 'Basic realm="pods", Bearer'},
    pod=[
        Says(
            framed(
                b"who?",
                b"401 Unauthorized",
                b'WWW-Authenticate: Basic realm="pods"',
                b"WWW-Authenticate: Bearer",
            )
        )
    ],
)
case("pod-403", ask(), 403, body=b"", pod=[Says(framed(b"", b"403 Forbidden"))])
case(
    "pod-404",
    ask(),
    404,
    body=b"not here",
    pod=[Says(framed(b"not here", b"404 Not Found", b"Content-Type: text/html"))],
    fields={"content-type": "text/html"},
)
case(
    "pod-426",
    ask(),
    426,
    body=b"",
    fields={"sec-websocket-version": "25"},
    pod=[
        Says(
            framed(
                b"", b"426 Upgrade Required", b"Upgrade: websocket", b"Sec-WebSocket-Version: 25"
            )
        )
    ],
)
case(
    "pod-429",
    ask(),
    429,
    body=b"later",
    fields={"retry-after": "7"},
    pod=[Says(framed(b"later", b"429 Too Many Requests", b"Retry-After: 7"))],
)
case("pod-500", ask(), 500, body=b"oh", pod=[Says(framed(b"oh", b"500 Internal Server Error"))])
case("pod-599", ask(), 599, body=b"own", pod=[Says(framed(b"own", b"599 Own"))])
for status in (b"502 Bad Gateway", b"503 Service Unavailable", b"504 Gateway Timeout"):
    number = int(status[:3])
    case(
        f"pod-{number}-all",
        ask(),
        number,
        tries=2,
        body=b"second",
        fields={"x-own": "2"},
        pod=[
            Says(framed(b"first", status, b"X-Own: 1")),
            Says(framed(b"second", status, b"X-Own: 2")),
        ],
    )
    case(
        f"pod-{number}-then-right",
        ask(),
        101,
        tries=2,
        pod=[Says(framed(b"first", status)), Says(switching())],
    )
case(
    "pod-503-chunked-all",
    ask(),
    503,
    tries=2,
    body=b"later",
    fields={"retry-after": "7"},
    pod=[Says(chunked(b"5\r\nlater\r\n0\r\n\r\n", b"503 Service Unavailable", b"Retry-After: 7"))],
)
case(
    "pod-503-then-404",
    ask(),
    404,
    tries=2,
    body=b"no",
    pod=[Says(framed(b"", b"503 Service Unavailable")), Says(framed(b"no", b"404 Not Found"))],
)
case(
    "pod-503-then-hangs-up",
    ask(),
    503,
    tries=2,
    body=b"later",
    pod=[Says(framed(b"later", b"503 Service Unavailable")), Says(b"", SHUT)],
)

# --- where the peers differ, and why ---


def differs(peer, status, why, *names):
    for name in names:
        [found] = [one for one in CASES if one.name == name]
        if getattr(found, peer):
            raise ValueError(f"{name}: {peer} is explained twice")
        setattr(found, peer, (status, why))


VERSIONS = [one.name for one in CASES if one.name.startswith("version-")]
METHODS = [one.name for one in CASES if one.name.startswith("method-")]
CONNECTIONS = [one.name for one in CASES if one.name.startswith("connection-") and one.want == 400]
KEYS = [one.name for one in CASES if one.name.startswith("key-")]

differs("haproxy", 101, "leaves the version to the pod", *VERSIONS)
differs("haproxy", 101, "leaves the method to the pod", *METHODS)
differs(
    "haproxy",
    101,
    "looks at the length of the key, not at what it is made of",
    "key-17-bytes",
    "key-url-alphabet",
    "key-no-base64",
    "key-inner-blank",
)
differs("haproxy", 101, "looks at one of two keys only", "key-twice", "key-twice-equal")
differs(
    "haproxy",
    502,
    "passes Upgrade on without Connection, and takes the pod's 101 for an error",
    *CONNECTIONS,
)
differs("haproxy", 101, "takes two equal Host fields for one", "host-twice-equal")
differs("haproxy", 101, "takes an empty Host", "host-empty")
differs("haproxy", 101, "leaves the target to the pod", "target-asterisk")
differs(
    "haproxy",
    400,
    "refuses a Host that is not the target's, which RFC 9112 wants overridden",
    "target-absolute-other-host",
)
differs("haproxy", 101, "takes HTTP/2.0 on a request line for HTTP/1.1", "http-2.0")
differs("haproxy", 0, "answers HTTP/2 in HTTP/2, also where none was agreed on", "http-2-preface")
differs("haproxy", 101, "joins folded lines, the other way that RFC 9112 allows", "field-folded")
differs("haproxy", 101, "takes a length of 0 for no body", "body-length-0")
differs(
    "haproxy",
    200,
    "forwards a handshake with a body as an ordinary request",
    "body-length",
    "body-chunked",
    "body-both",
)
differs("haproxy", 400, "has one buffer of 16 KiB for a head", "60-kB-field")
differs(
    "haproxy",
    400,
    "says 400 to all that is too large or too many",
    "120-fields",
    "70-kB-field",
    "70-kB-of-fields",
    "70-kB-target",
)

differs("nginx", 101, "leaves the key to the pod", *KEYS)
differs("nginx", 101, "leaves the version to the pod", *VERSIONS)
differs(
    "nginx",
    101,
    "leaves the method to the pod",
    "method-POST",
    "method-HEAD",
    "method-OPTIONS",
    "method-unknown",
)
differs("nginx", 400, "knows methods in capitals only", "method-lower-case")
differs("nginx", 400, "says 400 to CONNECT, not 405", "method-CONNECT")
differs(
    "nginx", 101, "makes up Connection from Upgrade, as its manual has it configured", *CONNECTIONS
)
differs("nginx", 101, "speaks HTTP/1.1 to the pod, whatever the client does", "http-1.0")
differs("nginx", 505, "has the other status that RFC 9110 allows", "http-2.0")
differs("nginx", 101, "passes bytes on that are no ASCII", "target-utf-8")
differs("nginx", 400, "refuses %00", "target-percent-encoded")
differs(
    "nginx", 101, "sends the body, then the tunnel", "body-length", "body-length-0", "body-chunked"
)
differs("nginx", 101, "drops lines that are no field, and goes on", "field-without-colon")
differs("nginx", 101, "does not count fields", "120-fields")
differs(
    "nginx",
    400,
    "has 8 KiB for a field, 32 KiB for all",
    "60-kB-field",
    "70-kB-field",
    "70-kB-of-fields",
)
differs("nginx", 414, "has the status for targets that RFC 9110 has", "70-kB-target")

# Neither reads what a pod says with its 101, beside the little that its own parser needs.
BLIND = "relays a pod's 101 without a look at this field"
for name in (
    "accept-wrong",
    "accept-of-key-with-blank",
    "accept-twice",
    "upgrade-missing",
    "upgrade-h2c",
    "subprotocol-not-offered",
    "extension-not-offered",
):
    for peer in ("haproxy", "nginx"):
        differs(peer, 101, BLIND, f"pod-101-{name}", f"pod-101-{name}-then-right")
for name in ("subprotocol-other", "subprotocol-other-case", "subprotocol-two", "extension-other"):
    for peer in ("haproxy", "nginx"):
        differs(peer, 101, BLIND, f"pod-101-{name}")
for name in ("accept-missing", "connection-missing", "connection-close"):
    differs("haproxy", 502, "refuses it too, but tries no other pod", f"pod-101-{name}-then-right")
differs("nginx", 101, BLIND, "pod-101-accept-missing", "pod-101-accept-missing-then-right")
differs(
    "nginx",
    101,
    "makes up its own Connection",
    "pod-101-connection-missing",
    "pod-101-connection-close",
)
differs("nginx", 101, "relays a length that a 101 must not have", "pod-101-length-0")
differs("nginx", -2, "takes what is no HTTP for an answer of HTTP/0.9", "pod-talks-nonsense")
differs("nginx", 403, "believes the second of two lengths", "pod-two-lengths")
differs("haproxy", 502, "tries another pod only when it cannot connect", "pod-hangs-up-then-right")
differs(
    "haproxy",
    502,
    "takes a 101 behind an interim answer for an error",
    "pod-103-before-101",
    "pod-100-before-101",
)
differs(
    "nginx",
    -1,
    "takes an interim answer for the final one, and the client hears nothing",
    "pod-103-before-101",
    "pod-100-before-101",
    "pod-103-before-404",
)
for number in (502, 503, 504):
    for peer in ("haproxy", "nginx"):
        differs(
            peer,
            number,
            "relays the first answer and tries no other pod, unless told to",
            f"pod-{number}-all",
            f"pod-{number}-then-right",
        )
for peer in ("haproxy", "nginx"):
    differs(
        peer,
        503,
        "relays the first answer and tries no other pod, unless told to",
        "pod-503-then-404",
    )
