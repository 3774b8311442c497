"""The cases of `smuggling`: malformed and ambiguous requests, each with the only acceptable result.

refused: an answer of 4xx or 5xx, the connection is closed, nothing reaches the pod.
forwarded: exactly this request reaches the pod, however the client wrote it.
cut: the head is valid and may have reached the pod, the body is not; the pod may get the valid part
of the body, and an end that cannot be mistaken for a complete body.
tunnelled: a handshake; the bytes after it belong to the tunnel.
"""

import dataclasses

from evidence.raw_sockets import HOST, NONCE, ScriptedAnswer, frame, framed, switching


@dataclasses.dataclass
class Request:
    """The request that the pod must receive: these lines in any order, names in any case."""

    line: bytes = b"GET /case HTTP/1.1"
    fields: tuple = ()
    body: bytes | None = None
    chunked: bool = False
    host: bytes = HOST
    whole: bool = True
    tunnel: bytes | None = None
    # The status that the client receives.
    answer: int = 200


@dataclasses.dataclass
class Case:
    name: str
    raw: bytes
    # The requests that reach the pod and are answered.
    requests: tuple = ()
    # The balancer's own final answer: several if RFC 9110 allows them, none if it does not refuse.
    refusals: tuple = ()
    cut: bool = False
    # Sent after the first part of the body has reached the pod.
    later: bytes = b""
    # Sent after the first answer.
    then: bytes = b""
    # The pod's answers, instead of accepting.
    pod: list = dataclasses.field(default_factory=list)


CASES = []


def refused(name, raw, *answers):
    CASES.append(Case(name, raw, refusals=answers or (400,)))


def forwarded(name, raw, *requests, pod=(), later=b""):
    CASES.append(Case(name, raw, requests or (Request(),), pod=list(pod), later=later))


def cut(name, raw, body=b"", later=b""):
    request = Request(POST, body=body, chunked=True, whole=False)
    CASES.append(Case(name, raw, (request,), (400,), cut=True, later=later))


def handshake(*fields, tunnel=b"", answer=101):
    fields = (*fields, b"sec-websocket-version: 13", b"sec-websocket-key: " + NONCE)
    return Request(fields=fields, tunnel=tunnel, answer=answer)


def tunnelled(name, raw, tunnel=b""):
    CASES.append(Case(name, raw, (handshake(tunnel=tunnel),)))


GET, POST = b"GET /case HTTP/1.1", b"POST /case HTTP/1.1"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: pods.example\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
HANDSHAKE = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: " + NONCE,
)


def request(line, *fields, host=b"Host: " + HOST, body=b""):
    return b"\r\n".join([line, *([host] if host else []), *fields]) + b"\r\n\r\n" + body


def get(*fields, **more):
    return request(GET, *fields, **more)


def post(*fields, body=b"hello", **more):
    return request(POST, *fields, body=body, **more)


def hello(*fields, chunked=False):
    return Request(POST, fields, b"hello", chunked)


# --- Content-Length ---

refused("cl-twice-equal", post(b"Content-Length: 5", b"Content-Length: 5"))
refused("cl-twice", post(b"Content-Length: 5", b"Content-Length: 6"))
refused(
    "cl-twice-0-first",
    post(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
)
refused("cl-list-equal", post(b"Content-Length: 5, 5"))
refused("cl-list", post(b"Content-Length: 5, 6"))
refused("cl-plus", post(b"Content-Length: +5"))
refused("cl-minus", post(b"Content-Length: -5"))
refused("cl-minus-0", post(b"Content-Length: -0"))
refused("cl-inner-space", post(b"Content-Length: 5 5"))
refused("cl-hex", post(b"Content-Length: 0x5"))
refused("cl-hex-digit", post(b"Content-Length: a"))
refused("cl-decimal", post(b"Content-Length: 5.0"))
refused("cl-empty", post(b"Content-Length:"))
refused("cl-quoted", post(b'Content-Length: "5"'))
refused("cl-overflow", post(b"Content-Length: 18446744073709551621"))
refused("cl-vertical-tab", post(b"Content-Length: \x0b5"))
forwarded("cl-padded", post(b"Content-Length: \t 5\t "), hello())
forwarded("cl-leading-zeros", post(b"Content-Length: 005"), hello())
forwarded(
    "cl-0-and-another",
    request(POST, b"Content-Length: 0", body=SMUGGLED),
    Request(POST, body=b""),
    Request(b"GET /smuggled HTTP/1.1"),
)
forwarded(
    "cl-request-in-the-body",
    request(POST, b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    Request(POST, body=SMUGGLED),
)
forwarded(
    "cl-on-GET", get(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED), Request(body=SMUGGLED)
)
forwarded(
    "cl-on-DELETE",
    request(b"DELETE /case HTTP/1.1", b"Content-Length: 5", body=b"hello"),
    Request(b"DELETE /case HTTP/1.1", body=b"hello"),
)
forwarded(
    "cl-on-HEAD",
    request(b"HEAD /case HTTP/1.1", b"Content-Length: 5", body=b"hello"),
    Request(b"HEAD /case HTTP/1.1", body=b"hello"),
)

# --- Content-Length and Transfer-Encoding ---

refused("cl-te", post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED))
refused("te-cl", post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED))
refused("te-cl-0", post(CHUNKED, b"Content-Length: 0", body=HELLO))
refused("cl-te-identity", post(b"Content-Length: 5", b"Transfer-Encoding: identity"), 400, 501)
refused("cl-te-padded", post(b"Content-Length: 5", b"Transfer-Encoding: \t chunked \t", body=HELLO))
refused("cl-te-unknown", post(b"Content-Length: 5", b"Transfer-Encoding: xchunked"), 400, 501)

# --- Transfer-Encoding ---

forwarded("te-mixed-case", post(b"tRANSFER-eNCODING: cHuNKeD", body=HELLO), hello(chunked=True))
forwarded("te-padded", post(b"Transfer-Encoding:\t  chunked\t ", body=HELLO), hello(chunked=True))
refused(
    "te-list-identity-last", post(b"Transfer-Encoding: chunked, identity", body=HELLO), 400, 501
)
refused(
    "te-list-identity-first", post(b"Transfer-Encoding: identity, chunked", body=HELLO), 400, 501
)
refused("te-list-chunked-twice", post(b"Transfer-Encoding: chunked, chunked", body=HELLO), 400, 501)
refused("te-list-gzip", post(b"Transfer-Encoding: gzip, chunked", body=HELLO), 400, 501)
refused("te-list-empty-item", post(b"Transfer-Encoding: , chunked", body=HELLO), 400, 501)
refused("te-xchunked", post(b"Transfer-Encoding: xchunked", body=HELLO), 400, 501)
refused("te-chunkedx", post(b"Transfer-Encoding: chunkedx", body=HELLO), 400, 501)
refused("te-identity", post(b"Transfer-Encoding: identity", body=HELLO), 400, 501)
refused("te-empty", post(b"Transfer-Encoding:", body=HELLO), 400, 501)
refused("te-quoted", post(b'Transfer-Encoding: "chunked"', body=HELLO), 400, 501)
refused("te-parameter", post(b"Transfer-Encoding: chunked;q=1", body=HELLO), 400, 501)
refused("te-vertical-tab", post(b"Transfer-Encoding: \x0bchunked", body=HELLO), 400, 501)
refused("te-nbsp", post(b"Transfer-Encoding: \xa0chunked", body=HELLO), 400, 501)
refused("te-twice", post(CHUNKED, CHUNKED, body=HELLO))
refused("te-twice-identity", post(CHUNKED, b"Transfer-Encoding: identity", body=HELLO), 400, 501)
refused(
    "te-twice-identity-first", post(b"Transfer-Encoding: identity", CHUNKED, body=HELLO), 400, 501
)
refused("te-twice-unknown", post(CHUNKED, b"Transfer-Encoding: cow", body=HELLO), 400, 501)
refused("te-http-1.0", request(b"POST /case HTTP/1.0", CHUNKED, body=HELLO))
refused(
    "te-http-1.0-and-cl", request(b"POST /case HTTP/1.0", CHUNKED, b"Content-Length: 5", body=HELLO)
)
refused("te-space-before-colon", post(b"Transfer-Encoding : chunked", b"Content-Length: 5"))
refused("te-folded", post(b"Transfer-Encoding:", b" chunked", body=HELLO))
refused("te-after-a-bare-cr", post(b"X-Any: 1\rTransfer-Encoding: chunked", b"Content-Length: 5"))
refused("te-after-a-bare-lf", post(b"X-Any: 1\nTransfer-Encoding: chunked", b"Content-Length: 5"))
forwarded(
    "te-underscore",
    post(b"Transfer_Encoding: chunked", b"Content-Length: 5"),
    hello(b"transfer_encoding: chunked"),
)
forwarded("te-on-GET", get(CHUNKED, body=HELLO), Request(body=b"hello", chunked=True))
forwarded(
    "te-request-in-the-body",
    post(CHUNKED, body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    Request(POST, body=SMUGGLED, chunked=True),
)
forwarded(
    "te-and-another",
    post(CHUNKED, body=HELLO + SMUGGLED),
    hello(chunked=True),
    Request(b"GET /smuggled HTTP/1.1"),
)

# --- chunks ---

for name, body, good in (
    ("size-overflow", b"f0000000000000003\r\nabc\r\n0\r\n\r\n", b""),
    ("size-overflow-to-0", b"10000000000000000\r\n\r\n" + SMUGGLED, b""),
    ("size-minus", b"-5\r\nhello\r\n0\r\n\r\n", b""),
    ("size-plus", b"+5\r\nhello\r\n0\r\n\r\n", b""),
    ("size-0x", b"0x5\r\nhello\r\n0\r\n\r\n", b""),
    ("size-leading-space", b" 5\r\nhello\r\n0\r\n\r\n", b""),
    ("size-underscore", b"5_0\r\nhello\r\n0\r\n\r\n", b""),
    ("size-empty", b"\r\nhello\r\n0\r\n\r\n", b""),
    ("size-not-hex", b"5g\r\nhello\r\n0\r\n\r\n", b""),
    ("size-lf-only", b"5\nhello\n0\n\n", b""),
    ("size-cr-only", b"5\rhello\r0\r\r", b""),
    ("extension-lf", b"5;a\nb\r\nhello\r\n0\r\n\r\n", b""),
    ("end-missing", b"5\r\nhello0\r\n\r\n", b"hello"),
    ("end-lf-only", b"5\r\nhello\n0\r\n\r\n", b"hello"),
    ("data-too-long", b"5\r\nhello!\r\n0\r\n\r\n", b"hello"),
    ("second-size-wrong", b"5\r\nhello\r\nz\r\n\r\n", b"hello"),
    ("last-size-lf-only", b"5\r\nhello\r\n0\n\r\n", b"hello"),
):
    cut(f"chunk-{name}", post(CHUNKED, body=body), good)
    cut(f"chunk-{name}-later", post(CHUNKED, body=b"3\r\nabc\r\n"), b"abc" + good, later=body)
forwarded(
    "chunk-in-pieces",
    post(CHUNKED, body=b"5\r\nhe"),
    hello(chunked=True),
    later=b"llo\r\n0\r\n\r\n",
)
forwarded(
    "chunk-extension",
    post(CHUNKED, body=b'5;a=b;c="d e"\r\nhello\r\n0;x\r\n\r\n'),
    hello(chunked=True),
)
cut("chunk-extension-nul", post(CHUNKED, body=b"5;a\0b\r\nhello\r\n0\r\n\r\n"))
forwarded(
    "chunk-leading-zeros", post(CHUNKED, body=b"0005\r\nhello\r\n000\r\n\r\n"), hello(chunked=True)
)
forwarded(
    "chunk-capital",
    post(CHUNKED, body=b"A\r\nhellohello\r\n0\r\n\r\n"),
    Request(POST, body=b"hellohello", chunked=True),
)
forwarded(
    "trailers",
    post(CHUNKED, b"Trailer: X-Sum", body=b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
    hello(chunked=True),
)
forwarded(
    "trailers-that-frame",
    post(
        CHUNKED,
        body=b"5\r\nhello\r\n0\r\nContent-Length: 9\r\nHost: b\r\nTransfer-Encoding: x\r\n\r\n",
    ),
    hello(chunked=True),
)
cut("trailers-like-a-request", post(CHUNKED, body=b"5\r\nhello\r\n0\r\n" + SMUGGLED), b"hello")

# --- header lines ---

refused("folded", get(b"X-Folded: a", b" b"))
refused("folded-tab", get(b"X-Folded: a", b"\tb"))
refused("folded-host", get(b" Content-Length: 5"))
refused("space-before-first-field", request(GET, host=b" Host: pods.example"))
refused(
    "space-before-first-field-then-host", request(GET, b"Host: pods.example", host=b" X-Any: 1")
)
refused("cr-in-value", get(b"X-Any: a\rb"))
refused("cr-as-line-end", get().replace(b"\r\n", b"\r") + b"\r\n\r\n")
refused("cr-cr-lf", get(b"X-Any: a\r"))
refused("nul-in-name", get(b"X-\0Any: 1"))
refused("nul-in-value", get(b"X-Any: a\0b"))
refused("control-in-value", get(b"X-Any: a\x01b"))
refused("delete-in-value", get(b"X-Any: a\x7fb"))
refused("space-before-colon", get(b"X-Any : 1"))
refused("tab-before-colon", get(b"X-Any\t: 1"))
refused("space-in-name", get(b"X Any: 1"))
refused("name-empty", get(b": 1"))
refused("name-missing", get(b"nonsense"))
refused("name-not-ascii", get(b"X-\xc3\xa9: 1"))
refused("name-brackets", get(b"X(Any): 1"))
forwarded(
    "lf-as-line-end", get(b"X-Any: 1").replace(b"\r\n", b"\n"), Request(fields=(b"x-any: 1",))
)
forwarded("lf-in-value", get(b"X-Any: a\nX-Other: b"), Request(fields=(b"x-any: a", b"x-other: b")))
forwarded("value-not-ascii", get(b"X-Any: \xc3\xa9\xff"), Request(fields=(b"x-any: \xc3\xa9\xff",)))
forwarded("value-empty", get(b"X-Any:"), Request(fields=(b"x-any: ",)))
forwarded("value-tab", get(b"X-Any: a\tb"), Request(fields=(b"x-any: a\tb",)))
forwarded("value-colons", get(b"X-Any:: a: b"), Request(fields=(b"x-any: : a: b",)))
forwarded(
    "underscores",
    get(b"X_Any: 1", b"Content_Length: 5"),
    Request(fields=(b"x_any: 1", b"content_length: 5")),
)

# --- request lines ---

refused("http-0.9", b"GET /case\r\n", 400, 408)  # or a head that does not end
refused("http-0.9-and-a-head", b"GET /case\r\nHost: pods.example\r\n\r\n")
refused("http-1.2", request(b"GET /case HTTP/1.2"), 400, 505)
refused("http-1.10", request(b"GET /case HTTP/1.10"), 400, 505)
refused("http-2.0", request(b"GET /case HTTP/2.0"), 400, 505)
refused("http-0.1", request(b"GET /case HTTP/0.1"), 400, 505)
refused("http-lower-case", request(b"GET /case http/1.1"), 400, 505)
refused("http-other", request(b"GET /case ICAP/1.1"), 400, 505)
refused("space-at-line-end", request(b"GET /case HTTP/1.1 "))
refused("two-spaces", request(b"GET  /case HTTP/1.1"))
refused("two-spaces-before-version", request(b"GET /case  HTTP/1.1"))
refused("tab", request(b"GET\t/case\tHTTP/1.1"))
refused("space-first", request(b" GET /case HTTP/1.1"))
refused("space-in-target", request(b"GET /case /x HTTP/1.1"))
refused("method-brackets", request(b"GE(T) /case HTTP/1.1"), 400, 501)
refused("method-nul", request(b"GET\0 /case HTTP/1.1"), 400, 501)
forwarded("http-1.0", request(b"GET /case HTTP/1.0"))
forwarded("http-1.0-no-host", request(b"GET /case HTTP/1.0", host=None), Request(host=b""))
forwarded("method-lower-case", request(b"get /case HTTP/1.1"), Request(b"get /case HTTP/1.1"))
forwarded("method-unknown", request(b"BREW /case HTTP/1.1"), Request(b"BREW /case HTTP/1.1"))
forwarded("empty-line-before", b"\r\n" + get())
refused("target-70-kB", request(b"GET /case?" + b"x" * 70_000 + b" HTTP/1.1"), 400, 414, 431)
refused("target-nul", request(b"GET /case\0 HTTP/1.1"))
refused("target-cr", request(b"GET /case\rx HTTP/1.1"))
refused("target-utf-8", request(b"GET /case/\xc3\xa9 HTTP/1.1"))
refused("target-relative", request(b"GET case HTTP/1.1"))
refused("target-authority", request(b"GET pods.example:80 HTTP/1.1"))
refused("target-asterisk-GET", request(b"GET * HTTP/1.1"))
refused("target-question-mark", request(b"GET ?x=1 HTTP/1.1"))
# The host of the target is used, not the Host field (RFC 9112 §3.2.2).
forwarded(
    "target-other-host",
    request(b"GET http://other.example/case HTTP/1.1"),
    Request(host=b"other.example"),
)
refused("target-user", request(b"GET http://user@pods.example/case HTTP/1.1"))
refused("target-scheme-file", request(b"GET file:///case HTTP/1.1"))
refused("connect", request(b"CONNECT pods.example:80 HTTP/1.1", body=SMUGGLED), 405)
refused("connect-path", request(b"CONNECT /case HTTP/1.1", body=SMUGGLED), 405, 400)
forwarded("target-fragment", request(b"GET /case#part HTTP/1.1"))
forwarded(
    "target-absolute-no-path",
    request(b"GET http://pods.example HTTP/1.1"),
    Request(b"GET / HTTP/1.1"),
)
forwarded(
    "target-absolute-query",
    request(b"GET http://pods.example?x=1 HTTP/1.1"),
    Request(b"GET /?x=1 HTTP/1.1"),
)
forwarded("target-absolute", request(b"GET http://pods.example/case HTTP/1.1"))
forwarded(
    "target-percent-crlf",
    request(b"GET /case%0d%0aX:%201%20HTTP/1.1%00 HTTP/1.1"),
    Request(b"GET /case%0d%0aX:%201%20HTTP/1.1%00 HTTP/1.1"),
)
forwarded(
    "target-two-slashes",
    request(b"GET //other.example/case HTTP/1.1"),
    Request(b"GET //other.example/case HTTP/1.1"),
)
forwarded(
    "target-dots",
    request(b"GET /case/..;/%2e%2e/./x HTTP/1.1"),
    Request(b"GET /case/..;/%2e%2e/./x HTTP/1.1"),
)
forwarded("options-asterisk", request(b"OPTIONS * HTTP/1.1"), Request(b"OPTIONS * HTTP/1.1"))

# --- Host ---

refused("host-missing", get(host=None))
refused("host-twice-equal", get(b"Host: pods.example"))
refused("host-twice", get(b"Host: other.example"))
refused("host-list", get(host=b"Host: pods.example, other.example"))
refused("host-space", get(host=b"Host: pods.example other.example"))
refused("host-path", get(host=b"Host: pods.example/other"))
refused("host-user", get(host=b"Host: user@pods.example"))
refused("host-quote", get(host=b'Host: pods.example";for="6.6.6.6'))
refused("host-semicolon", get(host=b"Host: pods.example;proto=https"))
refused("host-port-not-a-number", get(host=b"Host: pods.example:80a"))
refused("host-not-ascii", get(host=b"Host: p\xc3\xb6ds.example"))

# --- fields named in Connection, and fields that it must not remove ---

forwarded(
    "connection-content-length", post(b"Connection: Content-Length", b"Content-Length: 5"), hello()
)
forwarded(
    "connection-transfer-encoding",
    post(b"Connection: Transfer-Encoding", CHUNKED, body=HELLO),
    hello(chunked=True),
)
forwarded("connection-host", get(b"Connection: Host"))
forwarded(
    "connection-forwarding",
    get(b"Connection: X-Forwarded-For, X-Forwarded-Host, X-Real-Ip, Forwarded, X-Request-Id"),
)
forwarded(
    "connection-private",
    get(b"Connection: X-Private, close", b"X-Private: 1", b"X-Public: 1"),
    Request(fields=(b"x-public: 1",)),
)
forwarded(
    "hop-by-hop",
    get(
        b"Keep-Alive: timeout=9",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Trailer: X-Sum",
    ),
)
forwarded(
    "upgrade-h2c",
    get(
        b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAAP__"
    ),
)

# --- forwarding fields, which pods trust ---

SPOOFED = (
    b"X-Forwarded-For: 6.6.6.6",
    b"X-Forwarded-Proto: https",
    b"X-Forwarded-Host: other.example",
    b"X-Forwarded-Port: 443",
    b"X-Real-Ip: 6.6.6.6",
    b"Forwarded: for=6.6.6.6;proto=https",
)
forwarded("forwarding-spoofed", get(*SPOOFED))
forwarded("forwarding-spoofed-twice", get(*SPOOFED, *SPOOFED))
forwarded("forwarding-spoofed-case", get(*(line.upper() for line in SPOOFED)))
forwarded(
    "forwarding-host-port", get(host=b"Host: pods.example:8443"), Request(host=b"pods.example:8443")
)
forwarded("forwarding-host-ipv6", get(host=b"Host: [::1]:8443"), Request(host=b"[::1]:8443"))
forwarded(
    "request-id-kept",
    get(b"X-Request-Id: of-the-client"),
    Request(fields=(b"x-request-id: of-the-client",)),
)
forwarded(
    "forwarding-underscores",
    get(b"X_Forwarded_For: 6.6.6.6"),
    Request(fields=(b"x_forwarded_for: 6.6.6.6",)),
)

# --- upgrades ---

refused(
    "upgrade-with-length", get(*HANDSHAKE, b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED)
)
refused("upgrade-with-length-0", get(*HANDSHAKE, b"Content-Length: 0", body=SMUGGLED))
refused("upgrade-with-chunks", get(*HANDSHAKE, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED))
refused("upgrade-on-POST", post(*HANDSHAKE, b"Content-Length: 5"), 405, 400)
refused("upgrade-on-POST-empty", post(*HANDSHAKE, body=SMUGGLED), 405)
refused("upgrade-refused-and-another", get(*HANDSHAKE[:3], body=SMUGGLED))
refused(
    "upgrade-version-and-another",
    get(*HANDSHAKE[:2], b"Sec-WebSocket-Version: 1337", HANDSHAKE[3], body=SMUGGLED),
    426,
)
refused(
    "upgrade-list-refused-and-another",
    get(b"Upgrade: foo, websocket", *HANDSHAKE[1:3], body=SMUGGLED),
)
refused("upgrade-without-connection-and-another", get(HANDSHAKE[0], *HANDSHAKE[2:], body=SMUGGLED))
refused("upgrade-http-1.0-and-another", request(b"GET /case HTTP/1.0", *HANDSHAKE, body=SMUGGLED))
forwarded(
    "upgrade-refused-by-the-pod-and-another",
    get(*HANDSHAKE, body=SMUGGLED),
    handshake(answer=403),
    pod=[ScriptedAnswer(framed(b"no", b"403 Forbidden"))],
)
tunnelled(
    "upgrade-names-its-key",
    get(HANDSHAKE[0], b"Connection: Upgrade, Sec-WebSocket-Key", *HANDSHAKE[2:]),
)
tunnelled(
    "upgrade-and-a-frame",
    get(*HANDSHAKE, body=frame(1, b"early", masked=True)),
    frame(1, b"early", masked=True),
)
tunnelled("upgrade-and-another", get(*HANDSHAKE, body=SMUGGLED), SMUGGLED)
tunnelled(
    "upgrade-hop-by-hop",
    get(
        HANDSHAKE[0],
        b"Connection: keep-alive, Upgrade, X-Private",
        *HANDSHAKE[2:],
        b"X-Private: 1",
        b"Keep-Alive: 9",
    ),
)

# --- two requests on one connection ---

forwarded("pipelined", get() + get(b"X-Second: 1"), Request(), Request(fields=(b"x-second: 1",)))
forwarded("handshake-second", get() + get(*HANDSHAKE), Request(), handshake())
forwarded(
    "handshake-and-a-frame-second",
    get() + get(*HANDSHAKE, body=frame(1, b"early", masked=True)),
    Request(),
    handshake(tunnel=frame(1, b"early", masked=True)),
)
forwarded(
    "handshake-list-second",
    get() + get(b"Upgrade: foo, websocket", *HANDSHAKE[1:]),
    Request(),
    handshake(),
)
for name, raw in (
    ("garbage", b"\0\1\2garbage\r\n\r\n"),
    ("two-lengths", post(b"Content-Length: 5", b"Content-Length: 6")),
    ("bad-handshake", get(*HANDSHAKE[:3], body=SMUGGLED)),
):
    CASES.append(Case(f"{name}-second", get() + raw, (Request(),), (400,)))
    CASES.append(Case(f"{name}-after-a-body", post(b"Content-Length: 5") + raw, (hello(),), (400,)))
    CASES.append(Case(f"{name}-after-an-answer", get(), (Request(),), (400,), then=raw))

# --- malformed answers of pods ---

forwarded(
    "pod-sends-more-than-its-length", get(), pod=[ScriptedAnswer(framed(GET) + framed(b"stray"))]
)
forwarded(
    "pod-sends-a-body-to-HEAD",
    request(b"HEAD /case HTTP/1.1"),
    Request(b"HEAD /case HTTP/1.1"),
    pod=[ScriptedAnswer(framed(b"stray"))],
)
forwarded(
    "pod-sends-a-body-with-204",
    get(),
    Request(answer=204),
    pod=[ScriptedAnswer(b"HTTP/1.1 204 No\r\n\r\n" + framed(b"stray"))],
)
forwarded(
    "pod-sends-101-unrequested", get(), Request(answer=502), pod=[ScriptedAnswer(switching())]
)
# POST, because a GET may be retried.
for name, lines in (
    ("two-lengths", b"Content-Length: 3\r\nContent-Length: 5"),
    ("a-list-of-lengths", b"Content-Length: 3, 5"),
    ("a-negative-length", b"Content-Length: -5"),
):
    forwarded(
        f"pod-sends-{name}",
        post(b"Content-Length: 5"),
        dataclasses.replace(hello(), answer=502),
        pod=[ScriptedAnswer(b"HTTP/1.1 200 OK\r\n%s\r\n\r\nstray" % lines)],
    )
