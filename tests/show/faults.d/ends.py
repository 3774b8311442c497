"""The two ends of a session as raw sockets: they record every byte, and how the connection
ended.
"""

import asyncio
import collections
import contextlib
import fcntl
import random
import re
import socket
import struct
import termios
from pathlib import Path

from evidence import scripted

SEED = 6
MASK = b"mask"  # of frames that clients send
OPEN_MASK = bytes(4)  # replaces the balancer's random masks
PING_PAYLOAD = b"balancer"  # replaces the random payload of its Pings
CLOSE, PING, PONG = 8, 9, 10
PIECE = 1 << 18
SEND_BUFFER = 212_992  # the largest buffer that Linux allows every process
FULL = 1 << 16  # bytes in the send buffer: the peer does not read
UNMOVED = 0.5  # seconds without progress, after which the path counts as full
FLOOD_FRAME = 8192
TCP_CLOSED = 7  # TCP_CLOSE in Linux's tcp_states.h

Frame = collections.namedtuple("Frame", "begin fin opcode key payload end")


def walk(raw):
    """Returns the complete frames at the start of `raw`."""
    at = 0
    while len(raw) - at >= 2:
        size, start = raw[at + 1] & 0x7F, at + 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, start = int.from_bytes(raw[start : start + width], "big"), start + width
        masked = 4 if raw[at + 1] & 0x80 else 0
        key, start = bytes(raw[start : start + masked]), start + masked
        if start + size > len(raw):
            return
        yield Frame(
            at,
            bool(raw[at] & 0x80),
            raw[at] & 0x0F,
            key,
            bytes(raw[start : start + size]),
            start + size,
        )
        at = start + size


def boundary(raw):
    """Returns whether `raw` is empty or ends with a complete frame."""
    *_, end = 0, *(frame.end for frame in walk(raw))
    return end == len(raw)


def payload_of(raw, opcode):
    """Returns the unmasked payload of the first frame with this opcode, or None."""
    found = (
        scripted.masked(one.payload, one.key or OPEN_MASK)
        for one in walk(raw)
        if one.opcode == opcode
    )
    return next(found, None)


def readable(raw, all_masks=False):
    """Returns `raw` with its random parts replaced: masks and Ping payloads of the balancer's own
    frames, and dates.

    `all_masks`: all masks, because they come from a library.
    """
    if raw.startswith(b"HTTP/"):
        return re.sub(rb"^date: [^\r]*", b"date: NOW", raw, flags=re.MULTILINE)
    parts, at = [], 0
    for one in walk(raw):
        parts.append(raw[one.begin : one.end])
        if all_masks or (one.opcode in (CLOSE, PING) and one.key != MASK):
            payload = scripted.masked(one.payload, one.key) if one.key else one.payload
            if one.opcode == PING and len(payload) == len(PING_PAYLOAD):
                payload = PING_PAYLOAD
            parts[-1] = scripted.frame(one.opcode, payload, one.fin, OPEN_MASK if one.key else None)
        at = one.end
    return b"".join([*parts, raw[at:]])


def hexadecimal(address):
    """Formats an IPv4 address and port as /proc/net/tcp does."""
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"


class Flood:
    """Frames of random bytes, all different, enough to fill every buffer on the path."""

    def __init__(self, mask):
        seeded = random.Random(SEED)
        length = bytes([(0x80 if mask else 0) | 126]) + FLOOD_FRAME.to_bytes(2, "big")
        self.frames = [b"\x82" + length + mask + seeded.randbytes(FLOOD_FRAME) for _ in range(61)]

    def __getitem__(self, number):
        return self.frames[number % len(self.frames)]


FLOODS = {"client": Flood(MASK), "pod": Flood(b"")}


class End:
    """A socket of the client or the pod. It reads only when asked to."""

    def __init__(self, side, sock):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.side, self.sock = side, sock
        self.got, self.said = bytearray(), bytearray()
        self.flood = bytearray()  # the part of `said` that was sent to fill the path
        self.end = None  # "FIN" or "RST" once received
        self.gone = False  # whether it closed by itself
        self._changed = asyncio.Event()
        self._reader = None

    def read(self):
        """Starts to read."""
        self._reader = self._reader or asyncio.create_task(self._read())

    async def _read(self):
        loop = asyncio.get_running_loop()
        try:
            while piece := await loop.sock_recv(self.sock, PIECE):
                self.got += piece
                self._changed.set()
            self.end = "FIN"
        except ConnectionError:
            self.end = "RST"
        self._changed.set()

    async def until(self, probe, timeout=scripted.DEADLINE):
        """Waits until the received data make `probe` true. Returns whether they did in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not probe():
                    self._changed.clear()
                    await self._changed.wait()
        return bool(probe())

    async def send(self, data):
        self.said += data
        await asyncio.wait_for(
            asyncio.get_running_loop().sock_sendall(self.sock, data), scripted.DEADLINE
        )

    async def fill(self):
        """Sends complete frames until the path accepts no more, or the other side has ended."""
        number = 0
        while await self._moves() and not self.end:
            frame = FLOODS[self.side][number]
            if self.sock.send(frame) != len(frame):
                raise RuntimeError("a frame of a flood was sent partially")
            self.flood += frame
            number += 1
        self.said += self.flood

    async def _moves(self):
        loop = asyncio.get_running_loop()
        left, since = self._unsent(), loop.time()
        while left >= FULL and loop.time() - since < UNMOVED:
            await asyncio.sleep(0.01)
            if (now := self._unsent()) != left:
                left, since = now, loop.time()
        await asyncio.sleep(0)
        return left < FULL

    def _unsent(self):
        """Returns the bytes that the other system has not acknowledged (TIOCOUTQ, the same as
        SIOCOUTQ).
        """
        return int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)), "little")

    async def taken(self):
        """Waits until the other end has read everything: closing with unread bytes would cause an
        RST.
        """
        return await scripted.eventually(lambda: not self._unread())

    def _unread(self):
        """Returns the bytes in the other end's receive buffer, from the queues in /proc/net/tcp."""
        ends = [hexadecimal(self.sock.getpeername()), hexadecimal(self.sock.getsockname())]
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        queues = next(fields[4] for fields in lines if fields[1:3] == ends)
        return self._unsent() + int(queues.split(":")[1], 16)

    def shut(self):
        with contextlib.suppress(OSError):  # the socket is closed already
            self.sock.shutdown(socket.SHUT_WR)

    async def leave(self, reset=False):
        """Closes the socket: with a FIN if nothing is unread, otherwise with an RST."""
        self.gone = True
        if self._reader:
            self._reader.cancel()
            await asyncio.wait([self._reader])  # releases the descriptor
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _closed(self):
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSED

    async def last(self):
        """Returns how the connection ended, including an RST after a FIN. Called after this end has
        shut down, too.
        """
        if self.end == "FIN":
            await scripted.eventually(self._closed, 1)
            if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return "FIN, RST"
        return self.end or "open"
