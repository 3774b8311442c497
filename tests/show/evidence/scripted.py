"""HTTP/1.1 and WebSocket by hand on asyncio, for both sides of the balancer.

Bytes are seen as they were on the wire. A `Pod` runs in the script's own process, so that the
script decides what it sends at each step.
"""

import asyncio
import base64
import collections
import hashlib
import os
import re
import socket
import struct
import tempfile
import traceback
import urllib.request

from evidence import checks, programs

LONGEST_HEAD = 1 << 20
PIECE = 1 << 18
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DEADLINE = 30  # seconds for a step that should be quick: generous, because the machine may be busy
IDLE = 3600  # seconds for a pod that waits for its next request


class Head:
    """A first line and its header fields, with names in lower case and in their original order."""

    def __init__(self, raw):
        self.raw = raw
        self.first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        split = (line.partition(":") for line in lines)
        self.fields = [(name.lower(), value.strip()) for name, _, value in split]

    def all(self, name):
        return [value for field, value in self.fields if field == name]

    def get(self, name):
        """Returns all values of `name` joined as one list, as HTTP defines repeated fields, or
        None.
        """
        return ", ".join(self.all(name)) if self.all(name) else None

    @property
    def method(self):
        return self.first.split()[0]

    @property
    def target(self):
        return self.first.split()[1]

    @property
    def status(self):
        return int(self.first.split()[1])


class Connection:
    """One side of a TCP connection. Every step has a deadline."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, *parts):
        self.writer.write(
            b"".join(part.encode() if isinstance(part, str) else part for part in parts)
        )
        await asyncio.wait_for(self.writer.drain(), DEADLINE)

    async def head(self, timeout=DEADLINE):
        """Reads the next head. Returns None if the connection ends before it."""
        try:
            return Head(await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), timeout))
        except asyncio.IncompleteReadError as end:
            if end.partial:
                raise RuntimeError(f"connection ended within a head: {end.partial!r}") from end
        except ConnectionError:
            pass
        return None

    async def pieces(self, head, bodiless=False):
        """Yields the parts of a body as they arrive, without chunk framing. Raises if the body is
        cut off.
        """
        answers = head.first.startswith("HTTP/")
        if bodiless or (answers and (head.status < 200 or head.status in (204, 304))):
            return
        if "chunked" in (head.get("transfer-encoding") or "").lower():
            while left := await self._chunk_size():
                while left:
                    piece = await self.some(left)
                    left -= len(piece)
                    yield piece
                await self.reader.readexactly(2)
            while await self.reader.readuntil(b"\r\n") != b"\r\n":
                pass  # a trailer
        elif head.get("content-length") is not None:
            left = int(head.get("content-length"))
            while left:
                piece = await self.some(left)
                left -= len(piece)
                yield piece
        elif answers:  # without a length, the body ends with the connection
            while piece := await asyncio.wait_for(self.reader.read(PIECE), DEADLINE):
                yield piece

    async def _chunk_size(self):
        line = await asyncio.wait_for(self.reader.readuntil(b"\r\n"), DEADLINE)
        return int(line.split(b";")[0], 16)

    async def some(self, most=PIECE):
        piece = await asyncio.wait_for(self.reader.read(min(most, PIECE)), DEADLINE)
        if not piece:
            raise asyncio.IncompleteReadError(b"", most)
        return piece

    async def body(self, head, bodiless=False):
        return b"".join([piece async for piece in self.pieces(head, bodiless)])

    async def answer(self, bodiless=False):
        """Reads the next answer. Returns its head and body."""
        head = await self.head()
        return head, None if head is None else await self.body(head, bodiless)

    async def quiet(self, seconds=0.3):
        """Returns whether nothing arrives for some time."""
        try:
            await asyncio.wait_for(self.reader.read(1), seconds)
        except TimeoutError:
            return True
        return False

    async def ended(self, timeout=DEADLINE):
        """Returns whether the other side closes or resets in time, whatever it sends before."""
        try:
            while await asyncio.wait_for(self.reader.read(PIECE), timeout):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    async def frame(self, timeout=DEADLINE):
        """Reads the next WebSocket frame. Returns (fin, opcode, payload), unmasked."""

        async def read():
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            mask = await self.reader.readexactly(4) if second & 0x80 else bytes(4)
            return (
                bool(first & 0x80),
                first & 0x0F,
                masked(await self.reader.readexactly(size), mask),
            )

        return await asyncio.wait_for(read(), timeout)

    def close(self):
        self.writer.close()

    def reset(self):
        """Closes the connection with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


async def dial(address, source=None):
    """Connects to `host:port` or `unix:PATH`, from the address `source` if one is given."""
    if address.startswith("unix:"):
        opening = asyncio.open_unix_connection(address.removeprefix("unix:"), limit=LONGEST_HEAD)
        return Connection(*await asyncio.wait_for(opening, DEADLINE))
    host, _, port = address.rpartition(":")
    local = (source, 0) if source else None
    opening = asyncio.open_connection(
        host.strip("[]"), int(port), local_addr=local, limit=LONGEST_HEAD
    )
    return Connection(*await asyncio.wait_for(opening, DEADLINE))


class Pod:
    """A listener on this event loop. `serve(connection)` handles each connection."""

    def __init__(self, serve):
        self.serve = serve
        self.connections = 0
        self.open = 0

    async def start(self, port=0, host="127.0.0.1"):
        self.server = await asyncio.start_server(
            self._one, host, port, limit=LONGEST_HEAD, backlog=1024
        )
        port = self.server.sockets[0].getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.url = f"http://{self.address}"
        return self

    async def _one(self, reader, writer):
        self.connections += 1
        self.open += 1
        try:
            await self.serve(Connection(reader, writer))
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the balancer closed, or the script ended: checks look at that elsewhere
        except Exception as error:
            checks.check(False, f"pod: {type(error).__name__}: {error}")
        finally:
            self.open -= 1
            writer.close()


class Balancer(programs.Balancer):
    """A balancer that does not poll its pods, because each of their connections belongs to a test
    case. It may listen on IPv6.
    """

    def __init__(self, *pods, **settings):
        # In a file, because an empty environment variable counts as unset.
        file = programs.WORK / "unpolled.toml"
        programs.WORK.mkdir(parents=True, exist_ok=True)
        file.write_text('[balancer]\nmetric_path = ""\n')
        os.environ["WSBALANCER_CONFIG"] = str(file)
        # Nothing answers its Close frames while it is being stopped.
        super().__init__(
            [pod.url for pod in pods], **{"SERVER__SHUTDOWN_TIMEOUT": "1s", **settings}
        )

    def expect(self, _, timeout=30):
        return super().expect(r"traffic on (\S+:\d+), admin on (\S+:\d+)", timeout)

    def telemetry(self):
        with urllib.request.urlopen(f"http://{self.admin}/telemetry", timeout=DEADLINE) as answer:
            return answer.read().decode()

    def refusals(self, before=None):
        """Returns refusals by reason. With `before`, only those counted since then."""
        found = re.findall(
            r'^wsbalancer_refusals_total\{(?:.*,)?reason="([^"]+)".*\} (\d+)',
            self.telemetry(),
            re.M,
        )
        counts = collections.Counter({reason: int(count) for reason, count in found})
        if before is None:
            return counts
        return {
            reason: count - before[reason]
            for reason, count in counts.items()
            if count != before[reason]
        }

    async def refusals_reach(self, before, count):
        """Waits until `count` requests have been refused since `before`; returns them by reason.

        A client may have its answer before the refusal is counted.
        """
        await eventually(lambda: sum(self.refusals(before).values()) >= count)
        return self.refusals(before)


class ConfiguredBalancer(Balancer):
    """A balancer whose settings are the TOML `text`, polls included. It may listen on
    `unix:PATH`.
    """

    def __init__(self, text, **settings):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(text)
            file.flush()
            os.environ["WSBALANCER_CONFIG"] = file.name
            try:
                programs.Balancer.__init__(
                    self, [], **{"SERVER__SHUTDOWN_TIMEOUT": "1s", **settings}
                )
            finally:
                del os.environ["WSBALANCER_CONFIG"]

    def expect(self, _, timeout=30):
        return programs.Program.expect(self, r"traffic on (\S+), admin on (\S+:\d+)", timeout)


def request(target, host, *fields, method="GET", version="HTTP/1.1"):
    """Returns a request's head. `fields` are lines `Name: value`."""
    return "\r\n".join([f"{method} {target} {version}", f"Host: {host}", *fields, "", ""])


def answer(status, *fields, body=b"", reason="Reason"):
    """Returns a whole answer with its length."""
    lines = [f"HTTP/1.1 {status} {reason}", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def handshake(target, host, *fields, key=None):
    key = key or base64.b64encode(os.urandom(16)).decode()
    upgrade = "Upgrade: websocket", "Connection: Upgrade"
    return request(
        target, host, *upgrade, "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", *fields
    )


def switch(head, *fields):
    """Returns the 101 that answers a handshake."""
    accept = base64.b64encode(
        hashlib.sha1((head.get("sec-websocket-key") + GUID).encode()).digest()
    ).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", *fields, "", ""])


def masked(payload, mask):
    if not any(mask):
        return payload
    repeated = mask * (len(payload) // 4 + 1)
    return bytes(left ^ right for left, right in zip(payload, repeated))


def frame(opcode, payload=b"", fin=True, mask=None):
    """Returns a frame. Clients pass a `mask` of four bytes."""
    flag = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        length = bytes([flag | size])
    elif size < 1 << 16:
        length = bytes([flag | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([flag | 127]) + size.to_bytes(8, "big")
    return (
        bytes([(0x80 if fin else 0) | opcode])
        + length
        + (mask + masked(payload, mask) if mask else payload)
    )


async def eventually(probe, timeout=DEADLINE, pause=0.02):
    """Like `programs.eventually`, for scripts whose pods run on the same event loop."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not (found := probe()) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(pause)
    return found


async def settled(probe, pause=0.1):
    """Waits until the value of `probe` was the same eleven times, `pause` seconds apart."""
    values = [probe()]
    while len(values) < 11 or len(set(values[-11:])) > 1:
        await asyncio.sleep(pause)
        values.append(probe())
    return values[-1]


def run(main):
    """Runs the main function of a script and prints the verdict. An exception is a failure."""
    programs.build()
    try:
        asyncio.run(main())
    except Exception as error:
        checks.say(traceback.format_exc())
        checks.check(False, f"{type(error).__name__}: {error}")
    checks.finish()
