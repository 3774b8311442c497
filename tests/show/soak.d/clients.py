"""The clients of `soak`: random behaviour, and an explanation for the end of every session."""

import asyncio
import collections
import contextlib
import random
import socket
import time

import rules
from evidence import scripted

HOST = "chat.example.org"
MASK = b"mask"
SLACK = 0.2  # seconds of difference between the balancer's measurements and ours
FLOOD = 16 << 20  # bytes, more than all buffers hold if the client's receive buffer is
RECEIVE_BUFFER = 64 << 10  # bytes
CODES = [1000, 1001, 1008, 3000, 4999]


class SessionEnd(Exception):
    """The end of a session, with a text that `explain` knows."""


def describe_frame(fin, opcode, payload):
    return (
        f"{'last' if fin else 'first'} frame of opcode {opcode}, {len(payload)} bytes "
        f"{payload[:20]!r}"
    )


class Client:
    """A client with one session. `staged` is the fault that it causes on purpose."""

    def __init__(self, number, address, generator):
        self.number, self.address, self.generator = number, address, generator
        self.staged = self.outcome = self.pod = None
        self.started_at = self.ended_at = self.echoes = self.pings = 0
        self.connection = None
        self.answers_pings = True
        self.sent_close = False

    async def run(self):
        kind = self.generator.choices([*KINDS], [weight for weight, _ in KINDS.values()])[0]
        try:
            await self.connect()
            await KINDS[kind][1](self)
        except SessionEnd as end:
            self.outcome = str(end)
        except TimeoutError:
            self.outcome = "silence"
        finally:
            self.ended_at = time.monotonic()
            if self.connection and not self.connection.writer.is_closing():
                self.connection.reset()
        return kind

    async def connect(self):
        self.connection = await scripted.dial(self.address)
        await self.send(scripted.handshake(f"/life/{self.number}", HOST))
        head = await self.connection.head()
        self.started_at = time.monotonic()
        if head is None or head.status != 101:
            raise SessionEnd(head.first if head else "no answer")
        self.pod = head.get("x-pod")

    async def send(self, *parts):
        # After an error, the next read shows how the session ended.
        with contextlib.suppress(ConnectionError):
            await self.connection.send(*parts)

    async def next(self):
        """Returns the next frame that is neither Ping nor Close: (fin, opcode, payload)."""
        while True:
            try:
                fin, opcode, payload = await self.connection.frame(rules.PATIENCE)
            except asyncio.IncompleteReadError as end:
                raise SessionEnd("end in a frame" if end.partial else "end") from end
            except ConnectionError as end:
                raise SessionEnd("reset") from end
            if opcode == 8:
                await self.send(scripted.frame(8, payload[:2], mask=MASK))
                raise SessionEnd(
                    f"Close {int.from_bytes(payload[:2], 'big')} {payload[2:].decode()}"
                )
            if opcode != 9:
                return fin, opcode, payload
            self.pings += 1
            if self.answers_pings:
                await self.send(scripted.frame(10, payload, mask=MASK))

    async def expect(self, *wanted):
        found = await self.next()
        if found != wanted:
            raise SessionEnd(f"wrong: got {describe_frame(*found)}, not {describe_frame(*wanted)}")
        self.echoes += 1

    async def read_to_end(self):
        while True:
            await self.next()

    def message(self):
        """Returns the frames of a random message, sometimes fragmented, sometimes with a Ping."""
        opcode, size = self.generator.choice([1, 2]), int(2 ** self.generator.uniform(0, 16))
        payload = (
            self.generator.randbytes(size)
            if opcode == 2
            else bytes(self.generator.choices(range(32, 127), k=size))
        )
        cuts = sorted(
            self.generator.choices(range(size + 1), k=self.generator.choice([0, 0, 0, 1, 3]))
        )
        pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, size])]
        frames = [
            (at == len(pieces) - 1, 0 if at else opcode, piece) for at, piece in enumerate(pieces)
        ]
        if self.generator.random() < 0.2:
            frames.insert(
                self.generator.randint(0, len(frames)), (True, 9, self.generator.randbytes(8))
            )
        return frames

    async def exchange_messages(self, rounds):
        """Sends a few messages and reads their echoes, for so many rounds."""
        for _ in range(rounds):
            frames = [
                frame for _ in range(self.generator.randint(1, 4)) for frame in self.message()
            ]
            for fin, opcode, payload in frames:
                await self.send(scripted.frame(opcode, payload, fin=fin, mask=MASK))
            for fin, opcode, payload in frames:
                await self.expect(fin, 10 if opcode == 9 else opcode, payload)
            await asyncio.sleep(self.generator.uniform(0, 0.3))

    async def close_properly(self):
        """Exchanges messages, sends a Close, and waits for the answer and the end."""
        await self.exchange_messages(self.generator.randint(0, 8))
        code = self.generator.choice(CODES)
        self.sent_close = True
        await self.send(scripted.frame(8, code.to_bytes(2, "big") + b"bye", mask=MASK))
        try:
            await self.read_to_end()
        except SessionEnd as end:
            if str(end) != f"Close {code} bye":
                raise
        self.outcome = "left" if await self.connection.ended(rules.PATIENCE) else "silence"

    async def disconnect(self):
        """Exchanges messages, then disconnects without a Close, perhaps within a frame."""
        await self.exchange_messages(self.generator.randint(0, 8))
        if self.generator.random() < 0.5:
            await self.send(
                scripted.frame(2, bytes(5000), mask=MASK)[: self.generator.randint(1, 4999)]
            )
        if self.generator.random() < 0.5:
            self.connection.close()
        self.outcome = "left"

    async def stall(self):
        """Requests a flood and does not read until the write time-out has passed."""
        self.staged = "stalls"
        # With its default size, the receive buffer could grow until it holds the whole flood.
        self.connection.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER
        )
        await self.send(scripted.frame(1, b"flood %d" % FLOOD, mask=MASK))
        await asyncio.sleep(rules.WRITE + 2)
        await self.read_to_end()

    async def pause_reading(self):
        """Requests a flood, does not read for a while, then reads all of it."""
        await self.send(scripted.frame(1, b"flood %d" % FLOOD, mask=MASK))
        await asyncio.sleep(self.generator.uniform(0.1, rules.WRITE / 2))
        remaining = FLOOD
        while remaining:
            fin, opcode, payload = await self.next()
            if not fin or opcode != 2 or any(payload):
                raise SessionEnd("wrong: unexpected frame in the flood")
            remaining -= len(payload)
        await self.close_properly()

    async def burst(self):
        """Sends more messages than allowed per second, which the balancer slows down."""
        texts = [b"%d of a burst" % number for number in range(2 * rules.RATE)]
        await self.send(*(scripted.frame(1, text, mask=MASK) for text in texts))
        for text in texts:
            await self.expect(True, 1, text)
        await self.close_properly()

    async def exceed_size(self):
        """Sends a message that is too large."""
        self.staged = "exceeds size"
        await self.exchange_messages(self.generator.randint(0, 2))
        await self.send(
            scripted.frame(2, bytes(rules.MESSAGE), fin=False, mask=MASK),
            scripted.frame(0, b"1", mask=MASK),
        )
        await self.read_to_end()

    async def stay_idle(self):
        """Sends no messages, but answers Pings."""
        self.staged = "idle"
        await self.read_to_end()

    async def ignore_pings(self):
        """Sends nothing at all."""
        self.staged = "ignores pings"
        self.answers_pings = False
        await self.read_to_end()

    async def exceed_age(self):
        """Exchanges messages until the balancer ends the session."""
        while True:
            await self.exchange_messages(1)


KINDS = {
    "close": (30, Client.close_properly),
    "disconnect": (25, Client.disconnect),
    "stall": (4, Client.stall),
    "pause": (4, Client.pause_reading),
    "burst": (5, Client.burst),
    "exceed size": (6, Client.exceed_size),
    "idle": (4, Client.stay_idle),
    "ignore pings": (4, Client.ignore_pings),
    "exceed age": (5, Client.exceed_age),
}

MAX_AGE = "maximum session age reached"
# The ends of a session that are explained by a fault of the client, or by a fault of its pod.
CLIENT_FAULTS = {
    "stalls": {"end", "end in a frame", "reset"},
    "ignores pings": {"Close 1001 ping timed out: client did not answer"},
    "exceeds size": {"Close 1009 "},
    "idle": {"Close 1001 idle timeout"},
}
POD_FAULTS = {
    "restart": {"Close 1001 restarting"},
    "reset": {"Close 1012 pod disconnected without a Close frame", "end in a frame", "reset"},
    "fin": {"Close 1012 pod disconnected without a Close frame"},
    "cut": {"end in a frame"},
    "stall": {
        "Close 1012 ping timed out: pod did not answer",
        "Close 1012 write timed out: pod is not reading",
    },
}
AFTER_CLOSE = {
    "end",
    "reset",
}  # its pod cannot answer the Close any more, and the balancer must not


def explain(client, fault):
    """Returns the reason for the client's end of the session, None if it is unexplained."""
    age = client.ended_at - client.started_at
    if client.outcome == "left":
        return "left"
    if client.outcome == f"Close 1012 {MAX_AGE}" and age >= 0.9 * rules.AGE - SLACK:
        return "reached the maximum age"
    if any(client.outcome.startswith(start) for start in CLIENT_FAULTS.get(client.staged, ())):
        return client.staged
    if (
        client.staged == "stalls"
        and fault == "stall"
        and client.outcome in CLIENT_FAULTS["ignores pings"]
    ):
        # The pod sends no flood then, and the client does not answer Pings.
        return "stalls without a flood, pod: stall"
    if client.outcome in POD_FAULTS.get(fault, ()):
        return f"pod: {fault}"
    if client.sent_close and fault and client.outcome in AFTER_CLOSE:
        return f"sent Close, pod: {fault}"
    return None


class Crowd:
    """A constant number of clients: when one has ended, the next one starts."""

    def __init__(self, address, pods, seed, size):
        self.address, self.seed, self.size = address, seed, size
        self.pods = {pod.name: pod for pod in pods}
        self.count = self.echoes = self.pings = 0
        self.kinds, self.reasons = collections.Counter(), collections.Counter()
        self.unexplained = []

    def workers(self, generator):
        return [self.worker(generator) for _ in range(self.size)]

    async def worker(self, generator):
        """Runs one client after the other until it is cancelled."""
        while True:
            await asyncio.sleep(generator.uniform(0, 0.5))
            self.count += 1
            client = Client(self.count, self.address, random.Random(f"{self.seed}/{self.count}"))
            kind = await client.run()
            self.kinds[kind] += 1
            self.record(client, kind)

    def record(self, client, kind):
        pod = self.pods.get(client.pod)
        fault = pod and pod.faults.get(client.number)
        self.echoes += client.echoes
        self.pings += client.pings
        reason = explain(client, fault)
        self.reasons[reason or "unexplained"] += 1
        if not reason:
            seconds = client.ended_at - client.started_at
            self.unexplained.append(
                f"client {client.number} ({kind}) on {client.pod}: {client.outcome!r} after "
                f"{seconds:.1f} s, "
                f"fault of the pod: {fault}"
            )
