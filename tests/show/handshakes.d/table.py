"""The cases of `handshakes`: the bytes of a request, and the expected status and header fields.

`want` is expected of wsbalancer, HAProxy and nginx. Where HAProxy or nginx differs, a call of
`differs` at the end says how and why.
"""

import dataclasses

from evidence.raw_sockets import (
    ACCEPT,
    HOST,
    NONCE,
    ScriptedAnswer,
    chunked,
    frame,
    framed,
    switching,
)

CLOSES = True


@dataclasses.dataclass
class Case:
    name: str
    raw: bytes
    want: int
    # Expected header fields in addition to those that the status requires; None: must be absent.
    fields: dict = dataclasses.field(default_factory=dict)
    body: bytes | None = None
    # Words in the body of the balancer's own refusal; None: the answer is a pod's or the parser's.
    says: tuple | None = None
    # The pods' answers to successive attempts, the last one repeatedly; empty: they accept.
    pod: list = dataclasses.field(default_factory=list)
    # How many of the two pods receive the handshake; None: one, or none if the balancer refuses it.
    tries: int | None = None
    # The request target that a pod receives.
    target: bytes = b"/case"
    # Bytes that the client receives after the 101 before it sends anything.
    early: bytes = b""
    # Whether the body is complete, or cut by the end of the connection.
    whole: bool = True
    # The different status of another proxy (0: closed, -1: no answer, -2: not HTTP), and the
    # reason.
    haproxy: tuple | None = None
    nginx: tuple | None = None

    @property
    def refused(self):
        """Returns whether the balancer refuses the handshake itself."""
        return self.says is not None or (self.want >= 400 and not self.pod)

    @property
    def expected_pods(self):
        return self.tries if self.tries is not None else 0 if self.refused else 1

    def required(self):
        """Returns the expected header fields: a value, or None for a field that must be absent."""
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


def handshake(
    *more,
    line=b"GET /case HTTP/1.1",
    host=HOST,
    upgrade=b"websocket",
    connection=b"Upgrade",
    version=b"13",
    key=NONCE,
    after=b"",
):
    """Returns the bytes of a handshake. None omits a field; `more` are further lines."""
    own = {
        b"Host": host,
        b"Upgrade": upgrade,
        b"Connection": connection,
        b"Sec-WebSocket-Version": version,
        b"Sec-WebSocket-Key": key,
    }
    lines = [line, *(b"%s: %s" % field for field in own.items() if field[1] is not None), *more]
    return b"\r\n".join(lines) + b"\r\n\r\n" + after


# --- valid handshakes ---

case(
    "example-of-rfc-6455",
    handshake(b"Origin: http://pods.example", b"Sec-WebSocket-Protocol: chat, superchat"),
    101,
)
case(
    "firefox",
    handshake(b"Accept: */*", b"Pragma: no-cache", connection=b"keep-alive, Upgrade"),
    101,
)
case("upgrade-WebSocket", handshake(upgrade=b"WebSocket"), 101)
case("upgrade-WEBSOCKET", handshake(upgrade=b"WEBSOCKET"), 101)
case("upgrade-list-last", handshake(upgrade=b"foo, websocket"), 101)
case("upgrade-list-first", handshake(upgrade=b"websocket, foo"), 101)
case("upgrade-list-dense", handshake(upgrade=b"foo,websocket"), 101)
case("upgrade-list-empty-items", handshake(upgrade=b", websocket ,"), 101)
case("upgrade-twice", handshake(b"Upgrade: websocket", upgrade=b"foo"), 101)
case("upgrade-padded", handshake(upgrade=b" \twebsocket \t"), 101)
case("connection-lower-case", handshake(connection=b"upgrade"), 101)
case("connection-UPGRADE", handshake(connection=b"UPGRADE"), 101)
case("connection-list", handshake(connection=b"keep-alive , upgrade"), 101)
case("connection-twice", handshake(b"Connection: Upgrade", connection=b"keep-alive"), 101)
case("connection-empty-items", handshake(connection=b",,Upgrade,"), 101)
case(
    "names-in-capitals",
    handshake()
    .replace(b"Upgrade:", b"UPGRADE:")
    .replace(b"Sec-WebSocket-Key", b"SEC-WEBSOCKET-KEY"),
    101,
)
case(
    "names-in-lower-case",
    handshake()
    .replace(b"Upgrade:", b"upgrade:")
    .replace(b"Sec-WebSocket-Key", b"sec-websocket-key"),
    101,
)
case("no-space-after-colon", handshake().replace(b": ", b":"), 101)
case("spaces-after-value", handshake(version=b"13  ", key=NONCE + b" \t"), 101)
case("origin", handshake(b"Origin: null"), 101)
case(
    "subprotocol-selected",
    handshake(b"Sec-WebSocket-Protocol: chat, superchat"),
    101,
    pod=[ScriptedAnswer(switching(b"Sec-WebSocket-Protocol: superchat"))],
    fields={"sec-websocket-protocol": "superchat"},
)
case(
    "subprotocol-offered-on-two-lines",
    handshake(b"Sec-WebSocket-Protocol: chat", b"Sec-WebSocket-Protocol: superchat"),
    101,
    pod=[ScriptedAnswer(switching(b"Sec-WebSocket-Protocol: superchat"))],
    fields={"sec-websocket-protocol": "superchat"},
)
case(
    "extension-accepted",
    handshake(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
    101,
    pod=[
        ScriptedAnswer(
            switching(b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10")
        )
    ],
    fields={"sec-websocket-extensions": "permessage-deflate; server_max_window_bits=10"},
)
case(
    "extensions-accepted-two",
    handshake(b'Sec-WebSocket-Extensions: foo, permessage-deflate, bar; a="x, y"'),
    101,
    pod=[ScriptedAnswer(switching(b"Sec-WebSocket-Extensions: permessage-deflate, bar"))],
    fields={"sec-websocket-extensions": "permessage-deflate, bar"},
)
case(
    "cookies-and-authorization",
    handshake(b"Cookie: a=1", b"Cookie: b=2", b"Authorization: Bearer x"),
    101,
)
case(
    "target-query",
    handshake(line=b"GET /case?token=a%2Fb&x=1 HTTP/1.1"),
    101,
    target=b"/case?token=a%2Fb&x=1",
)
case(
    "target-percent-encoded",
    handshake(line=b"GET /case/%2e%2E/%c3%a9%00%0d%0a HTTP/1.1"),
    101,
    target=b"/case/%2e%2E/%c3%a9%00%0d%0a",
)
case(
    "target-dots",
    handshake(line=b"GET /case/../x/./y//z HTTP/1.1"),
    101,
    target=b"/case/../x/./y//z",
)
case("target-two-slashes", handshake(line=b"GET //case HTTP/1.1"), 101, target=b"//case")
case(
    "target-absolute",
    handshake(line=b"GET http://pods.example/case HTTP/1.1"),
    101,
    target=b"/case",
)
case("target-absolute-other-host", handshake(line=b"GET http://other.example/case HTTP/1.1"), 101)
case("host-with-port", handshake(host=b"pods.example:8080"), 101)
case("host-ipv6", handshake(host=b"[::1]:8080"), 101)
case("empty-line-before", b"\r\n" + handshake(), 101)
case(
    "frame-after-handshake",
    handshake(after=frame(1, b"early", masked=True)),
    101,
    early=frame(1, b"early"),
)
case("90-fields", handshake(*(b"X-%d: %d" % (n, n) for n in range(85))), 101)
case("60-kB-field", handshake(b"X-Large: " + b"x" * 60_000), 101)

# --- errors of the client ---

case(
    "upgrade-missing",
    handshake(upgrade=None),
    426,
    pod=[
        ScriptedAnswer(
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
    handshake(upgrade=b""),
    200,
    body=b"GET /case HTTP/1.1",
    pod=[ScriptedAnswer(framed(b"GET /case HTTP/1.1"))],
)
case(
    "upgrade-h2c",
    handshake(upgrade=b"h2c"),
    200,
    pod=[ScriptedAnswer(framed(b"plain"))],
    body=b"plain",
)
case(
    "upgrade-websockets",
    handshake(upgrade=b"websockets"),
    200,
    pod=[ScriptedAnswer(framed(b"plain"))],
    body=b"plain",
)
case("connection-missing", handshake(connection=None), 400, says=("Connection",))
case("connection-close", handshake(connection=b"close"), 400, says=("Connection", "close"))
case(
    "connection-keep-alive",
    handshake(connection=b"keep-alive"),
    400,
    says=("Connection", "keep-alive"),
)
case("connection-upgraded", handshake(connection=b"upgraded"), 400, says=("Connection", "upgraded"))
case("key-missing", handshake(key=None), 400, says=("Sec-WebSocket-Key",))
case("key-empty", handshake(key=b""), 400, says=("Sec-WebSocket-Key",))
case(
    "key-twice-equal",
    handshake(b"Sec-WebSocket-Key: " + NONCE),
    400,
    says=("Sec-WebSocket-Key", NONCE.decode()),
)
case(
    "key-twice",
    handshake(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
)
case(
    "key-15-bytes",
    handshake(key=b"AAAAAAAAAAAAAAAAAAAA"),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA"),
)
case(
    "key-17-bytes",
    handshake(key=b"AAAAAAAAAAAAAAAAAAAAAAA="),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA="),
)
case(
    "key-unpadded",
    handshake(key=b"AAAAAAAAAAAAAAAAAAAAAA"),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA"),
)
case(
    "key-url-alphabet",
    handshake(key=b"-_AAAAAAAAAAAAAAAAAAAA=="),
    400,
    says=("Sec-WebSocket-Key", "-_AAAAAAAAAAAAAAAAAAAA=="),
)
case(
    "key-not-base64",
    handshake(key=b"!!!!!!!!!!!!!!!!!!!!!!=="),
    400,
    says=("Sec-WebSocket-Key", "!!!!!!!!!!!!!!!!!!!!!!=="),
)
case(
    "key-inner-space",
    handshake(key=b"AAAAAAAAAA AAAAAAAAAAA=="),
    400,
    says=("Sec-WebSocket-Key", "AAAAAAAAAA AAAAAAAAAAA=="),
)
case("version-missing", handshake(version=None), 426, says=("Sec-WebSocket-Version",))
case("version-empty", handshake(version=b""), 426, says=("Sec-WebSocket-Version",))
case("version-8", handshake(version=b"8"), 426, says=("Sec-WebSocket-Version", "8"))
case("version-14", handshake(version=b"14"), 426, says=("Sec-WebSocket-Version", "14"))
case("version-013", handshake(version=b"013"), 426, says=("Sec-WebSocket-Version", "013"))
case("version-list", handshake(version=b"13, 8"), 426, says=("Sec-WebSocket-Version", "13, 8"))
case(
    "version-twice-equal",
    handshake(b"Sec-WebSocket-Version: 13"),
    426,
    says=("Sec-WebSocket-Version", "13, 13"),
)
case(
    "version-twice",
    handshake(b"Sec-WebSocket-Version: 8"),
    426,
    says=("Sec-WebSocket-Version", "13, 8"),
)
case("method-POST", handshake(line=b"POST /case HTTP/1.1"), 405, says=("POST",))
case("method-HEAD", handshake(line=b"HEAD /case HTTP/1.1"), 405)
case("method-OPTIONS", handshake(line=b"OPTIONS /case HTTP/1.1"), 405, says=("OPTIONS",))
case("method-lower-case", handshake(line=b"get /case HTTP/1.1"), 405, says=("get",))
case("method-unknown", handshake(line=b"BREW /case HTTP/1.1"), 405, says=("BREW",))
case("method-CONNECT", handshake(line=b"CONNECT pods.example:80 HTTP/1.1"), 405, says=("CONNECT",))
case("http-1.0", handshake(line=b"GET /case HTTP/1.0"), 400, says=("HTTP/1.0",))
case("http-1.0-no-host", handshake(line=b"GET /case HTTP/1.0", host=None), 400)
case("http-2.0", handshake(line=b"GET /case HTTP/2.0"), 400)
case("http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", 400)
case("host-missing", handshake(host=None), 400)
case("host-twice-equal", handshake(b"Host: " + HOST), 400)
case("host-twice", handshake(b"Host: other.example"), 400)
case("host-empty", handshake(host=b""), 400)
case("target-asterisk", handshake(line=b"GET * HTTP/1.1"), 400)
case("target-authority", handshake(line=b"GET pods.example:80 HTTP/1.1"), 400)
case(
    "target-utf-8", handshake(line=b"GET /case/\xc3\xa9?q=\xe2\x82\xac HTTP/1.1"), 400
)  # RFC 3986 allows ASCII only
case("target-relative", handshake(line=b"GET case HTTP/1.1"), 400)
case("target-missing", handshake(line=b"GET HTTP/1.1"), 400)
case("target-space", handshake(line=b"GET /case /x HTTP/1.1"), 400)
case(
    "body-length",
    handshake(b"Content-Length: 5", after=b"hello"),
    400,
    says=("Content-Length", "5"),
)
case("body-length-0", handshake(b"Content-Length: 0"), 400, says=("Content-Length", "0"))
case(
    "body-chunked",
    handshake(b"Transfer-Encoding: chunked", after=b"5\r\nhello\r\n0\r\n\r\n"),
    400,
    says=("Transfer-Encoding", "chunked"),
)
case(
    "body-both",
    handshake(b"Content-Length: 5", b"Transfer-Encoding: chunked", after=b"0\r\n\r\n"),
    400,
)
case("120-fields", handshake(*(b"X-%d: %d" % (n, n) for n in range(115))), 431)
case("70-kB-field", handshake(b"X-Large: " + b"x" * 70_000), 431)
case("70-kB-of-fields", handshake(*(b"X-%d: %s" % (n, b"x" * 1_000) for n in range(70))), 431)
case("70-kB-target", handshake(line=b"GET /case?%s HTTP/1.1" % (b"x" * 70_000)), 431)
case("field-without-colon", handshake(b"nonsense"), 400)
case("field-space-before-colon", handshake(b"X-Blank : 1"), 400)
case("field-folded", handshake(b"X-Folded: a", b" b"), 400)
case("field-nul", handshake(b"X-Nul: a\0b"), 400)

# --- errors of a pod: its answer is not forwarded, the next pod is tried ---

for name, says in {
    "accept-wrong": switching(accept=b"AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    "accept-missing": switching(accept=None),
    "accept-in-lower-case": switching(accept=ACCEPT.lower()),
    "accept-twice": switching(b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    "upgrade-missing": switching(upgrade=None),
    "upgrade-h2c": switching(upgrade=b"h2c"),
    "connection-missing": switching(connection=None),
    "connection-close": switching(connection=b"close"),
    "subprotocol-not-offered": switching(b"Sec-WebSocket-Protocol: chat"),
    "extension-not-offered": switching(b"Sec-WebSocket-Extensions: permessage-deflate"),
}.items():
    case(f"pod-101-{name}", handshake(), 502, says=(), pod=[ScriptedAnswer(says)], tries=2)
    case(
        f"pod-101-{name}-then-accepts",
        handshake(),
        101,
        pod=[ScriptedAnswer(says), ScriptedAnswer(switching())],
        tries=2,
    )
case(
    "pod-101-subprotocol-other",
    handshake(b"Sec-WebSocket-Protocol: chat"),
    502,
    says=(),
    tries=2,
    pod=[ScriptedAnswer(switching(b"Sec-WebSocket-Protocol: superchat"))],
)
case(
    "pod-101-subprotocol-other-case",
    handshake(b"Sec-WebSocket-Protocol: chat"),
    502,
    says=(),
    tries=2,
    pod=[ScriptedAnswer(switching(b"Sec-WebSocket-Protocol: Chat"))],
)
case(
    "pod-101-subprotocol-two",
    handshake(b"Sec-WebSocket-Protocol: chat, superchat"),
    502,
    says=(),
    tries=2,
    pod=[ScriptedAnswer(switching(b"Sec-WebSocket-Protocol: chat, superchat"))],
)
case(
    "pod-101-extension-other",
    handshake(b"Sec-WebSocket-Extensions: foo"),
    502,
    says=(),
    tries=2,
    pod=[ScriptedAnswer(switching(b"Sec-WebSocket-Extensions: foo, permessage-deflate"))],
)
case("pod-closes", handshake(), 502, says=(), tries=2, pod=[ScriptedAnswer(b"", CLOSES)])
case(
    "pod-closes-then-accepts",
    handshake(),
    101,
    tries=2,
    pod=[ScriptedAnswer(b"", CLOSES), ScriptedAnswer(switching())],
)
case(
    "pod-closes-in-its-head",
    handshake(),
    502,
    says=(),
    tries=2,
    pod=[ScriptedAnswer(switching()[:40], CLOSES)],
)
case(
    "pod-sends-no-http",
    handshake(),
    502,
    says=(),
    tries=2,
    pod=[ScriptedAnswer(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", CLOSES)],
)
case(
    "pod-two-lengths",
    handshake(),
    502,
    says=(),
    tries=2,
    pod=[
        ScriptedAnswer(
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello", CLOSES
        )
    ],
)

# --- valid answers of pods ---

case(
    "pod-101-fields-in-lower-case",
    handshake(),
    101,
    pod=[ScriptedAnswer(switching(upgrade=b"WebSocket", connection=b"keep-alive, upgrade"))],
)
case(
    "pod-101-own-fields",
    handshake(),
    101,
    pod=[ScriptedAnswer(switching(b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Own: 1"))],
    fields={"set-cookie": "a=1, b=2", "x-own": "1"},
)
case("pod-101-length-0", handshake(), 101, pod=[ScriptedAnswer(switching(b"Content-Length: 0"))])
case(
    "pod-101-other-reason",
    handshake(),
    101,
    pod=[
        ScriptedAnswer(
            switching().replace(b"Switching Protocols", b"Web Socket Protocol Handshake")
        )
    ],
)
case(
    "pod-101-of-http-1.0",
    handshake(),
    101,
    pod=[ScriptedAnswer(switching().replace(b"HTTP/1.1", b"HTTP/1.0"))],
)
case(
    "pod-101-and-a-frame",
    handshake(),
    101,
    pod=[ScriptedAnswer(switching() + frame(1, b"early"))],
    early=frame(1, b"early"),
)
case(
    "pod-103-before-101",
    handshake(),
    101,
    pod=[ScriptedAnswer(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + switching())],
)
case(
    "pod-100-before-101",
    handshake(),
    101,
    pod=[ScriptedAnswer(b"HTTP/1.1 100 Continue\r\n\r\n" + switching())],
)
case(
    "pod-103-before-404",
    handshake(),
    404,
    pod=[
        ScriptedAnswer(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + framed(b"no", b"404 Not Found")
        )
    ],
    body=b"no",
)
case("pod-200", handshake(), 200, pod=[ScriptedAnswer(framed(b"plain"))], body=b"plain")
case(
    "pod-200-chunked",
    handshake(),
    200,
    body=b"hello world",
    fields={"content-type": "text/plain"},
    pod=[
        ScriptedAnswer(
            chunked(
                b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n",
                b"200 OK",
                b"Content-Type: text/plain",
            )
        )
    ],
)
case(
    "pod-200-until-close",
    handshake(),
    200,
    body=b"to the end",
    pod=[ScriptedAnswer(b"HTTP/1.1 200 OK\r\n\r\nto the end", CLOSES)],
)
case(
    "pod-200-of-http-1.0",
    handshake(),
    200,
    body=b"old",
    pod=[ScriptedAnswer(b"HTTP/1.0 200 OK\r\n\r\nold", CLOSES)],
)
case(
    "pod-200-cut",
    handshake(),
    200,
    body=b"hel",
    whole=False,
    pod=[ScriptedAnswer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", CLOSES)],
)
case(
    "pod-200-chunked-cut",
    handshake(),
    200,
    body=b"hello",
    whole=False,
    pod=[ScriptedAnswer(chunked(b"5\r\nhello\r\n"), CLOSES)],
)
case(
    "pod-200-100-kB",
    handshake(),
    200,
    body=b"x" * 100_000,
    pod=[ScriptedAnswer(framed(b"x" * 100_000))],
)
case(
    "pod-204",
    handshake(),
    204,
    body=b"",
    pod=[ScriptedAnswer(b"HTTP/1.1 204 No Content\r\nX-Own: 1\r\n\r\n")],
    fields={"x-own": "1"},
)
case(
    "pod-301",
    handshake(),
    301,
    body=b"",
    pod=[
        ScriptedAnswer(framed(b"", b"301 Moved Permanently", b"Location: wss://b.example/case?x=1"))
    ],
    fields={"location": "wss://b.example/case?x=1"},
)
case(
    "pod-304",
    handshake(),
    304,
    body=b"",
    pod=[ScriptedAnswer(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n')],
    fields={"etag": '"a"'},
)
case(
    "pod-401",
    handshake(),
    401,
    body=b"log in",
    fields={"www-authenticate": 'Basic realm="pods", Bearer'},
    pod=[
        ScriptedAnswer(
            framed(
                b"log in",
                b"401 Unauthorized",
                b'WWW-Authenticate: Basic realm="pods"',
                b"WWW-Authenticate: Bearer",
            )
        )
    ],
)
case("pod-403", handshake(), 403, body=b"", pod=[ScriptedAnswer(framed(b"", b"403 Forbidden"))])
case(
    "pod-404",
    handshake(),
    404,
    body=b"not here",
    pod=[ScriptedAnswer(framed(b"not here", b"404 Not Found", b"Content-Type: text/html"))],
    fields={"content-type": "text/html"},
)
case(
    "pod-426",
    handshake(),
    426,
    body=b"",
    fields={"sec-websocket-version": "25"},
    pod=[
        ScriptedAnswer(
            framed(
                b"", b"426 Upgrade Required", b"Upgrade: websocket", b"Sec-WebSocket-Version: 25"
            )
        )
    ],
)
case(
    "pod-429",
    handshake(),
    429,
    body=b"later",
    fields={"retry-after": "7"},
    pod=[ScriptedAnswer(framed(b"later", b"429 Too Many Requests", b"Retry-After: 7"))],
)
case(
    "pod-500",
    handshake(),
    500,
    body=b"oh",
    pod=[ScriptedAnswer(framed(b"oh", b"500 Internal Server Error"))],
)
case("pod-599", handshake(), 599, body=b"own", pod=[ScriptedAnswer(framed(b"own", b"599 Own"))])
for status in (b"502 Bad Gateway", b"503 Service Unavailable", b"504 Gateway Timeout"):
    number = int(status[:3])
    case(
        f"pod-{number}-all",
        handshake(),
        number,
        tries=2,
        body=b"second",
        fields={"x-own": "2"},
        pod=[
            ScriptedAnswer(framed(b"first", status, b"X-Own: 1")),
            ScriptedAnswer(framed(b"second", status, b"X-Own: 2")),
        ],
    )
    case(
        f"pod-{number}-then-accepts",
        handshake(),
        101,
        tries=2,
        pod=[ScriptedAnswer(framed(b"first", status)), ScriptedAnswer(switching())],
    )
case(
    "pod-503-chunked-all",
    handshake(),
    503,
    tries=2,
    body=b"later",
    fields={"retry-after": "7"},
    pod=[
        ScriptedAnswer(
            chunked(b"5\r\nlater\r\n0\r\n\r\n", b"503 Service Unavailable", b"Retry-After: 7")
        )
    ],
)
case(
    "pod-503-then-404",
    handshake(),
    404,
    tries=2,
    body=b"no",
    pod=[
        ScriptedAnswer(framed(b"", b"503 Service Unavailable")),
        ScriptedAnswer(framed(b"no", b"404 Not Found")),
    ],
)
case(
    "pod-503-then-closes",
    handshake(),
    503,
    tries=2,
    body=b"later",
    pod=[ScriptedAnswer(framed(b"later", b"503 Service Unavailable")), ScriptedAnswer(b"", CLOSES)],
)

# --- differences of HAProxy and nginx, with reasons ---


def differs(peer, status, why, *names):
    for name in names:
        [found] = [one for one in CASES if one.name == name]
        if getattr(found, peer):
            raise ValueError(f"{name}: two explanations for {peer}")
        setattr(found, peer, (status, why))


VERSIONS = [one.name for one in CASES if one.name.startswith("version-")]
METHODS = [one.name for one in CASES if one.name.startswith("method-")]
CONNECTIONS = [one.name for one in CASES if one.name.startswith("connection-") and one.want == 400]
KEYS = [one.name for one in CASES if one.name.startswith("key-")]

differs("haproxy", 101, "leaves the check of the version to the pod", *VERSIONS)
differs("haproxy", 101, "leaves the check of the method to the pod", *METHODS)
differs(
    "haproxy",
    101,
    "checks the length of the key, but not its characters",
    "key-17-bytes",
    "key-url-alphabet",
    "key-not-base64",
    "key-inner-space",
)
differs("haproxy", 101, "checks only one of two keys", "key-twice", "key-twice-equal")
differs(
    "haproxy",
    502,
    "forwards Upgrade without Connection, and treats the pod's 101 as an error",
    *CONNECTIONS,
)
differs("haproxy", 101, "accepts two equal Host fields", "host-twice-equal")
differs("haproxy", 101, "accepts an empty Host", "host-empty")
differs("haproxy", 101, "leaves the check of the target to the pod", "target-asterisk")
differs(
    "haproxy",
    400,
    "refuses a Host that differs from the target's, which RFC 9112 says to ignore",
    "target-absolute-other-host",
)
differs("haproxy", 101, "treats HTTP/2.0 on a request line as HTTP/1.1", "http-2.0")
differs("haproxy", 0, "answers HTTP/2 in HTTP/2, even without negotiation", "http-2-preface")
differs("haproxy", 101, "joins folded lines, which RFC 9112 also allows", "field-folded")
differs("haproxy", 101, "treats a length of 0 as no body", "body-length-0")
differs(
    "haproxy",
    200,
    "forwards a handshake with a body as an ordinary request",
    "body-length",
    "body-chunked",
    "body-both",
)
differs("haproxy", 400, "has a buffer of 16 KiB for the whole head", "60-kB-field")
differs(
    "haproxy",
    400,
    "answers 400 to everything that is too large or too many",
    "120-fields",
    "70-kB-field",
    "70-kB-of-fields",
    "70-kB-target",
)

differs("nginx", 101, "leaves the check of the key to the pod", *KEYS)
differs("nginx", 101, "leaves the check of the version to the pod", *VERSIONS)
differs(
    "nginx",
    101,
    "leaves the check of the method to the pod",
    "method-POST",
    "method-HEAD",
    "method-OPTIONS",
    "method-unknown",
)
differs("nginx", 400, "accepts only methods in capitals", "method-lower-case")
differs("nginx", 400, "answers 400 to CONNECT, not 405", "method-CONNECT")
differs("nginx", 101, "derives Connection from Upgrade, as its manual recommends", *CONNECTIONS)
differs("nginx", 101, "uses HTTP/1.1 to the pod for any version of the client", "http-1.0")
differs("nginx", 505, "uses the other status that RFC 9110 allows", "http-2.0")
differs("nginx", 101, "forwards bytes that are not ASCII", "target-utf-8")
differs("nginx", 400, "refuses %00", "target-percent-encoded")
differs(
    "nginx",
    101,
    "forwards the body, then the tunnel",
    "body-length",
    "body-length-0",
    "body-chunked",
)
differs("nginx", 101, "ignores lines that are not a header field", "field-without-colon")
differs("nginx", 101, "has no limit on the number of fields", "120-fields")
differs(
    "nginx",
    400,
    "allows 8 KiB per field and 32 KiB for all",
    "60-kB-field",
    "70-kB-field",
    "70-kB-of-fields",
)
differs("nginx", 414, "uses RFC 9110's status for targets that are too long", "70-kB-target")

# HAProxy and nginx check almost nothing in a pod's 101.
UNCHECKED = "forwards a pod's 101 without checking this field"
for name in (
    "accept-wrong",
    "accept-in-lower-case",
    "accept-twice",
    "upgrade-missing",
    "upgrade-h2c",
    "subprotocol-not-offered",
    "extension-not-offered",
):
    for peer in ("haproxy", "nginx"):
        differs(peer, 101, UNCHECKED, f"pod-101-{name}", f"pod-101-{name}-then-accepts")
for name in ("subprotocol-other", "subprotocol-other-case", "subprotocol-two", "extension-other"):
    for peer in ("haproxy", "nginx"):
        differs(peer, 101, UNCHECKED, f"pod-101-{name}")
for name in ("accept-missing", "connection-missing", "connection-close"):
    differs(
        "haproxy",
        502,
        "refuses it too, but does not try another pod",
        f"pod-101-{name}-then-accepts",
    )
differs("nginx", 101, UNCHECKED, "pod-101-accept-missing", "pod-101-accept-missing-then-accepts")
differs(
    "nginx",
    101,
    "writes its own Connection",
    "pod-101-connection-missing",
    "pod-101-connection-close",
)
differs("nginx", 101, "forwards a length, which a 101 must not have", "pod-101-length-0")
differs("nginx", -2, "treats an answer that is not HTTP as HTTP/0.9", "pod-sends-no-http")
differs("nginx", 403, "uses the second of two lengths", "pod-two-lengths")
differs("haproxy", 502, "tries another pod only if it cannot connect", "pod-closes-then-accepts")
differs(
    "haproxy",
    502,
    "treats a 101 after an interim answer as an error",
    "pod-103-before-101",
    "pod-100-before-101",
)
differs(
    "nginx",
    -1,
    "treats an interim answer as the final one, and the client gets no answer",
    "pod-103-before-101",
    "pod-100-before-101",
    "pod-103-before-404",
)
for number in (502, 503, 504):
    for peer in ("haproxy", "nginx"):
        differs(
            peer,
            number,
            "forwards the first answer and tries no other pod, unless configured to",
            f"pod-{number}-all",
            f"pod-{number}-then-accepts",
        )
for peer in ("haproxy", "nginx"):
    differs(
        peer,
        503,
        "forwards the first answer and tries no other pod, unless configured to",
        "pod-503-then-404",
    )
