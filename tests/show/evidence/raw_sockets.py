"""Raw HTTP/1.1 on blocking sockets: a pod that records every byte, and a client that sends any
bytes.

Cases run one after the other, so all bytes that reach the pod between two cases belong to the first
one. Each case ends with a barrier, an ordinary request on a new connection: by then everything that
the balancer sends has arrived. If a case left a pod connection in a bad state, the barrier fails,
too.
"""

import base64
import dataclasses
import hashlib
import importlib.util
import re
import socket
import threading
import time
from pathlib import Path

HOST = b"pods.example"
NONCE = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
DEADLINE = 5.0

TCHAR = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
REQUEST_LINE = re.compile(TCHAR + rb"+ [\x21-\x7e\x80-\xff]+ HTTP/1\.1")
STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) (\d{3})(?: [^\r\n]*)?")
FIELD = re.compile(
    rb"(" + TCHAR + rb"+):[ \t]*((?:[\x21-\x7e\x80-\xff]|[ \t]+(?=[\x21-\x7e\x80-\xff]))*)[ \t]*"
)

MASKED_FRAME = re.compile(rb"[\x81\x88](?=[\x80-\xfd]\0\0\0\0)")  # as `frame` makes them


def table(script):
    """Imports the module `SCRIPT.d/table.py`."""
    file = Path(__file__).parents[1] / f"{script}.d" / "table.py"
    spec = importlib.util.spec_from_file_location(f"{script}_table", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accept_for(key):
    """Returns Sec-WebSocket-Accept for a key (RFC 6455 §4.2.2)."""
    magic = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1(key + magic).digest())


ACCEPT = accept_for(NONCE)


def frame(opcode, payload, masked=False):
    """Returns one frame of up to 125 bytes. The mask is all zeros, so that the payload stays
    readable.
    """
    head = bytes([0x80 | opcode, (0x80 if masked else 0) | len(payload)])
    return head + (bytes(4) if masked else b"") + payload


def is_close(frame, code, reason):
    """Returns whether `frame` is exactly one Close frame of a client with this code and reason."""
    if len(frame) != 8 + len(reason) or frame[:2] != bytes([0x88, 0x80 | 2 + len(reason)]):
        return False
    key, payload = frame[2:6], frame[6:]
    return bytes(byte ^ key[at % 4] for at, byte in enumerate(payload)) == code.to_bytes(2) + reason


def fields_of(head):
    """Returns the fields of a head as (lower-case name, value), and None for an invalid line."""
    found = [FIELD.fullmatch(line) for line in head.split(b"\r\n")[1:] if line]
    return [(one[1].lower(), one[2]) if one else None for one in found]


def values(fields, name):
    return [value for found, value in fields if found == name]


class Broken(Exception):
    """The bytes violate RFC 9112."""


class Stream:
    """A socket with a buffer. Reads return None when the peer has closed or the time is up."""

    def __init__(self, sock, timeout):
        self.sock = sock
        self.deadline = time.monotonic() + timeout
        self.buffer = b""
        self.ended = False

    def more(self):
        try:
            self.sock.settimeout(max(0.001, self.deadline - time.monotonic()))
            got = self.sock.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            got = b""
        self.ended = self.ended or not got
        self.buffer += got
        return bool(got)

    def take(self, size):
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def until(self, mark):
        while mark not in self.buffer:
            if not self.more():
                return None
        return self.take(self.buffer.index(mark) + len(mark))

    def exactly(self, size):
        while len(self.buffer) < size:
            if not self.more():
                return None
        return self.take(size)

    def body(self, framing, grown):
        """Reads a body and passes each part to `grown`. Returns whether the body was complete."""
        if framing == "chunked":
            while (size := self.until(b"\r\n")) is not None:
                if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}\r\n", size):
                    raise Broken(f"chunk size {size!r}")
                left = int(size, 16)
                if not left:
                    while (line := self.until(b"\r\n")) not in (None, b"\r\n"):
                        pass  # trailers
                    return line is not None
                if not self._grow(left, grown):
                    return False
                if (end := self.exactly(2)) != b"\r\n":
                    if end is None:
                        return False
                    raise Broken(f"{end!r} behind a chunk")
            return False
        if framing == "close":
            while self.buffer or self.more():
                grown(self.take(len(self.buffer)))
            return self.ended
        return self._grow(framing, grown)

    def _grow(self, left, grown):
        while left:
            if not self.buffer and not self.more():
                return False
            part = self.take(left)
            left -= len(part)
            grown(part)
        return True


@dataclasses.dataclass
class ReceivedRequest:
    """One request as the pod received it."""

    connection: int
    head: bytes
    fields: list = dataclasses.field(default_factory=list)
    framing: object = 0  # a length, or "chunked"
    body: bytes = b""
    tunnel: bytes = b""
    whole: bool = False
    closed: bool = False
    broken: str = ""

    @property
    def line(self):
        return self.head.split(b"\r\n", 1)[0]

    def grow(self, part):
        self.body += part

    def parse(self):
        """Parses strictly: anything that a pod could read in two ways counts as broken."""
        if not REQUEST_LINE.fullmatch(self.line):
            raise Broken("request line")
        fields = fields_of(self.head)
        if None in fields:
            raise Broken("header field")
        self.fields = fields
        lengths, encodings = values(fields, b"content-length"), values(fields, b"transfer-encoding")
        if len(values(fields, b"host")) != 1:
            raise Broken("Host")
        if len(lengths) + len(encodings) > 1:
            raise Broken("two framings")
        if lengths and not re.fullmatch(rb"\d{1,18}", lengths[0]):
            raise Broken("Content-Length")
        if encodings and encodings[0] != b"chunked":
            raise Broken("Transfer-Encoding")
        self.framing = "chunked" if encodings else int(lengths[0]) if lengths else 0


@dataclasses.dataclass
class ScriptedAnswer:
    """The pod's answer to one request. `{accept}` is replaced by the accept value for its key."""

    text: bytes
    shut: bool = False  # closes the connection afterwards


class Recorder:
    """A pod on raw TCP, at one or more addresses, that accepts every request.

    `script` holds other answers for the next requests; the last one is repeated. After a 101 it
    echoes the payload of frames, and a Close.
    """

    def __init__(self, addresses=1):
        self._lock = threading.Condition()
        self._seen = []
        self._streams = []
        self.script = []
        self._asked = 0
        listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(addresses)]
        self.addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in listeners]
        for listener in listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = Stream(sock, 3600)
            with self._lock:
                self._streams.append(stream)
                number = len(self._streams)
            threading.Thread(target=self._serve, args=(stream, number), daemon=True).start()

    def _serve(self, stream, number):
        seen = None
        try:
            while (head := stream.until(b"\r\n\r\n")) is not None:
                seen = ReceivedRequest(number, head)
                with self._lock:
                    self._seen.append(seen)
                try:
                    seen.parse()
                    seen.whole = stream.body(seen.framing, seen.grow)
                except Broken as broken:
                    seen.broken = str(broken)
                    stream.sock.sendall(
                        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: "
                        b"close\r\n\r\n"
                    )
                    return
                if not seen.whole or not self._answer(stream, seen):
                    return
        except OSError:
            pass
        finally:
            stream.sock.close()
            with self._lock:
                if seen:
                    seen.closed = True
                self._lock.notify_all()

    def _says(self, seen):
        if seen.line.startswith(b"GET /barrier/"):
            return ScriptedAnswer(framed(seen.line))
        with self._lock:
            script, asked = self.script, self._asked
            self._asked += 1
        if script:
            return script[min(asked, len(script) - 1)]
        if values(seen.fields, b"upgrade"):
            return ScriptedAnswer(switching())
        return ScriptedAnswer(framed(seen.line, head_only=seen.line.startswith(b"HEAD ")))

    def _answer(self, stream, seen):
        """Answers a request. Returns whether the connection can carry another request."""
        says = self._says(seen)
        key = (values(seen.fields, b"sec-websocket-key") or [b""])[0]
        text = says.text.replace(b"{accept}", accept_for(key))
        stream.sock.sendall(text)
        if says.shut:
            stream.sock.shutdown(socket.SHUT_WR)
            # Closing with unread bytes would reset the connection, and the answer could be lost.
            while stream.more():
                pass
            return False
        if not re.match(rb"(HTTP/1\.. 1(?!01)\d\d [^\0]*?\r\n\r\n)*HTTP/1\.. 101 ", text):
            return True
        waiting = b""
        while stream.buffer or stream.more():
            got = stream.take(len(stream.buffer))
            seen.tunnel += got
            waiting += got
            while found := MASKED_FRAME.match(waiting):
                opcode, size = waiting[0] & 0xF, waiting[1] & 0x7F
                if len(waiting) < 6 + size:
                    break
                payload, waiting = waiting[6 : 6 + size], waiting[6 + size :]
                stream.sock.sendall(frame(opcode, payload))
                if found[0] == b"\x88":
                    return False
        return False

    def take(self):
        """Returns the requests since the last call. Bytes that form no request are returned as one
        broken request.
        """
        with self._lock:
            taken, self._seen, self._asked = self._seen, [], 0
            for number, stream in enumerate(self._streams, 1):
                talking = any(one.connection == number and not one.whole for one in taken)
                if stream.buffer and not talking:
                    taken.append(
                        ReceivedRequest(
                            number, stream.take(len(stream.buffer)), broken="no request"
                        )
                    )
            return taken

    def wait(self, condition, timeout=DEADLINE):
        """Waits until the requests seen so far fulfil a condition."""
        deadline = time.monotonic() + timeout
        while not (held := condition(list(self._seen))) and time.monotonic() < deadline:
            time.sleep(0.005)
        return held


def framed(body, status=b"200 OK", *fields, head_only=False):
    """Returns an answer with a Content-Length."""
    lines = [b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only else body)


def chunked(data, status=b"200 OK", *fields):
    """Returns a chunked answer. `data` is everything after its head."""
    return (
        b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"Transfer-Encoding: chunked"])
        + b"\r\n\r\n"
        + data
    )


def switching(*fields, upgrade=b"websocket", connection=b"Upgrade", accept=b"{accept}"):
    """Returns a 101. A value of None leaves the field out."""
    own = {b"Upgrade": upgrade, b"Connection": connection, b"Sec-WebSocket-Accept": accept}
    lines = [b"%s: %s" % field for field in own.items() if field[1] is not None]
    return b"\r\n".join([b"HTTP/1.1 101 Switching Protocols", *lines, *fields]) + b"\r\n\r\n"


@dataclasses.dataclass
class Answer:
    """The answer that a client received. Status 0: closed without an answer, -1: silence, -2: not
    HTTP.
    """

    status: int
    fields: list = dataclasses.field(default_factory=list)
    body: bytes = b""
    whole: bool = True
    version: bytes = b"1.1"

    def get(self, name):
        """Returns the value of a field, repeated values joined, or None."""
        found = values(self.fields, name.lower().encode())
        return b", ".join(found).decode("latin-1") if found else None

    def says_close(self):
        """Returns whether the answer announces the end of the connection; with HTTP/1.0 that is the
        default.
        """
        tokens = [token.strip().lower() for token in (self.get("connection") or "").split(",")]
        return "close" in tokens or (self.version == b"1.0" and "keep-alive" not in tokens)

    def __str__(self):
        shown = {0: "closed", -1: "silence", -2: "not HTTP"}.get(self.status, str(self.status))
        return shown if self.whole else f"{shown} cut"


class Client:
    """One connection that sends bytes unchanged and reads answers strictly."""

    def __init__(self, address, timeout=None):
        timeout = timeout or DEADLINE
        host, port = address.rsplit(":", 1)
        self.sock = socket.create_connection((host, int(port)), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = Stream(self.sock, timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, raw):
        try:
            self.sock.settimeout(DEADLINE)
            self.sock.sendall(raw)
        except OSError:
            pass  # refused before everything was sent: the answer says why

    def answer(self, method=b"GET"):
        """Reads the next final answer."""
        while True:
            head = self.stream.until(b"\r\n\r\n")
            if head is None:
                return Answer(0 if self.stream.ended else -1, body=self.stream.buffer)
            line = STATUS_LINE.fullmatch(head.split(b"\r\n", 1)[0])
            fields = fields_of(head)
            if not line or None in fields:
                raise Broken(f"answer {head!r}")
            status = int(line[2])
            if status == 101 or status >= 200:
                break
        answer = Answer(status, fields, version=line[1])
        lengths, chunked = values(fields, b"content-length"), values(fields, b"transfer-encoding")
        if len(lengths) + len(chunked) > 1 or chunked not in ([], [b"chunked"]):
            raise Broken(f"framing of {head!r}")
        if status == 101 or status in (204, 304) or method == b"HEAD":
            return answer
        framing = "chunked" if chunked else int(lengths[0]) if lengths else "close"

        def grown(part):
            answer.body += part

        answer.whole = self.stream.body(framing, grown)
        return answer

    def closed(self):
        """Returns whether the peer closes without sending anything more."""
        while self.stream.more():
            pass
        return self.stream.ended and not self.stream.buffer

    def silent(self):
        """Returns whether nothing more has arrived so far."""
        self.stream.deadline = 0
        while self.stream.more():
            pass
        return not self.stream.buffer


def barrier(address, number):
    """Sends an ordinary request after a case. Returns whether it got its own answer."""
    path = b"/barrier/%d" % number
    with Client(address) as client:
        client.send(b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (path, HOST))
        answer = client.answer()
        return answer.status == 200 and answer.body == b"GET %s HTTP/1.1" % path


def is_barrier(seen):
    return seen.line.startswith(b"GET /barrier/") and not seen.broken
