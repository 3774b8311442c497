"""Clients: each lives once, as the dice fall, and what it sees in the end has to be explained."""

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
SLACK = 0.2  # seconds between the balancer's clock and ours
FLOOD = 16 << 20  # more than all buffers on the way take, when the last one is
RECEIVED = 64 << 10
CODES = [1000, 1001, 1008, 3000, 4999]


class Over(Exception):
    """How a session ended, in words that `explain` knows."""


def shown(fin, opcode, payload):
    return (
        f"{'last' if fin else 'first'} frame of opcode {opcode}, {len(payload)} bytes "
        f"{payload[:20]!r}"
    )


class Client:
    """Whatever it does wrong on purpose is `staged`."""

    def __init__(self, number, address, seeded):
        self.number, self.address, self.seeded = number, address, seeded
        self.staged = self.outcome = self.pod = None
        self.began = self.ended = self.echoes = self.pings = 0
        self.connection = None
        self.answers_pings = True
        self.said_close = False

    async def live(self):
        kind = self.seeded.choices([*KINDS], [weight for weight, _ in KINDS.values()])[0]
        try:
            await self.come()
            await KINDS[kind][1](self)
        except Over as over:
            self.outcome = str(over)
        except TimeoutError:
            self.outcome = "silence"
        finally:
            self.ended = time.monotonic()
            if self.connection and not self.connection.writer.is_closing():
                self.connection.reset()
        return kind

    async def come(self):
        self.connection = await scripted.dial(self.address)
        await self.send(scripted.handshake(f"/life/{self.number}", HOST))
        head = await self.connection.head()
        self.began = time.monotonic()
        if head is None or head.status != 101:
            raise Over(head.first if head else "no answer")
        self.pod = head.get("x-pod")

    async def send(self, *parts):
        with contextlib.suppress(ConnectionError):  # what comes from there tells why
            await self.connection.send(*parts)

    async def next(self):
        """The next frame that is not for the connection's own sake: (fin, opcode, payload)."""
        while True:
            try:
                fin, opcode, payload = await self.connection.frame(rules.PATIENCE)
            except asyncio.IncompleteReadError as end:
                raise Over("end in a frame" if end.partial else "end") from end
            except ConnectionError as end:
                raise Over("reset") from end
            if opcode == 8:
                await self.send(scripted.frame(8, payload[:2], mask=MASK))
                raise Over(f"Close {int.from_bytes(payload[:2], 'big')} {payload[2:].decode()}")
            if opcode != 9:
                return fin, opcode, payload
            self.pings += 1
            if self.answers_pings:
                await self.send(scripted.frame(10, payload, mask=MASK))

    async def expect(self, *wanted):
        found = await self.next()
        if found != wanted:
            raise Over(f"wrong: got {shown(*found)}, not {shown(*wanted)}")
        self.echoes += 1

    async def to_the_end(self):
        while True:
            await self.next()

    def message(self):
        """Frames of one: sometimes in pieces, sometimes with a Ping of our own between or
        behind.
        """
        opcode, size = self.seeded.choice([1, 2]), int(2 ** self.seeded.uniform(0, 16))
        payload = (
            self.seeded.randbytes(size)
            if opcode == 2
            else bytes(self.seeded.choices(range(32, 127), k=size))
        )
        cuts = sorted(self.seeded.choices(range(size + 1), k=self.seeded.choice([0, 0, 0, 1, 3])))
        pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, size])]
        frames = [
            (at == len(pieces) - 1, 0 if at else opcode, piece) for at, piece in enumerate(pieces)
        ]
        if self.seeded.random() < 0.2:
            frames.insert(self.seeded.randint(0, len(frames)), (True, 9, self.seeded.randbytes(8)))
        return frames

    async def talk(self, rounds):
        """A few messages at once, then their echoes, and so on."""
        for _ in range(rounds):
            frames = [frame for _ in range(self.seeded.randint(1, 4)) for frame in self.message()]
            for fin, opcode, payload in frames:
                await self.send(scripted.frame(opcode, payload, fin=fin, mask=MASK))
            for fin, opcode, payload in frames:
                await self.expect(fin, 10 if opcode == 9 else opcode, payload)
            await asyncio.sleep(self.seeded.uniform(0, 0.3))

    async def leave(self):
        """Talks, then says Close, and waits for the answer and for the end."""
        await self.talk(self.seeded.randint(0, 8))
        code = self.seeded.choice(CODES)
        self.said_close = True
        await self.send(scripted.frame(8, code.to_bytes(2, "big") + b"bye", mask=MASK))
        try:
            await self.to_the_end()
        except Over as over:
            if str(over) != f"Close {code} bye":
                raise
        self.outcome = "left" if await self.connection.ended(rules.PATIENCE) else "silence"

    async def vanish(self):
        """Talks, then is gone without a Close, perhaps in a frame."""
        await self.talk(self.seeded.randint(0, 8))
        if self.seeded.random() < 0.5:
            await self.send(
                scripted.frame(2, bytes(5000), mask=MASK)[: self.seeded.randint(1, 4999)]
            )
        if self.seeded.random() < 0.5:
            self.connection.close()
        self.outcome = "left"

    async def stall(self):
        """Asks for much and takes nothing of it for too long."""
        self.staged = "stalls"
        # Left alone, a receive buffer may grow until it holds the whole flood.
        self.connection.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED
        )
        await self.send(scripted.frame(1, b"flood %d" % FLOOD, mask=MASK))
        await asyncio.sleep(rules.WRITE + 2)
        await self.to_the_end()

    async def nap(self):
        """Takes nothing for a while, then all of it."""
        await self.send(scripted.frame(1, b"flood %d" % FLOOD, mask=MASK))
        await asyncio.sleep(self.seeded.uniform(0.1, rules.WRITE / 2))
        left = FLOOD
        while left:
            fin, opcode, payload = await self.next()
            if not fin or opcode != 2 or any(payload):
                raise Over("wrong: another frame in the flood")
            left -= len(payload)
        await self.leave()

    async def burst(self):
        """More messages than it may send in a second, which are slowed down."""
        texts = [b"%d of a burst" % number for number in range(2 * rules.RATE)]
        await self.send(*(scripted.frame(1, text, mask=MASK) for text in texts))
        for text in texts:
            await self.expect(True, 1, text)
        await self.leave()

    async def exceed(self):
        """Announces a message that is too large."""
        self.staged = "exceeds"
        await self.talk(self.seeded.randint(0, 2))
        await self.send(
            scripted.frame(2, bytes(rules.MESSAGE), fin=False, mask=MASK),
            scripted.frame(0, b"1", mask=MASK),
        )
        await self.to_the_end()

    async def rest(self):
        """Says nothing, but answers Pings."""
        self.staged = "rests"
        await self.to_the_end()

    async def hide(self):
        """Says nothing at all."""
        self.staged = "hides"
        self.answers_pings = False
        await self.to_the_end()

    async def stay(self):
        """Talks for as long as it may."""
        while True:
            await self.talk(1)


KINDS = {
    "leave": (30, Client.leave),
    "vanish": (25, Client.vanish),
    "stall": (4, Client.stall),
    "nap": (4, Client.nap),
    "burst": (5, Client.burst),
    "exceed": (6, Client.exceed),
    "rest": (4, Client.rest),
    "hide": (4, Client.hide),
    "stay": (5, Client.stay),
}

# What a client may see beside its own plan: what it has staged, or what its pod has done to it.
BY_ITSELF = {
    "stalls": {"end", "end in a frame", "reset"},
    "hides": {"Close 1001 no answer to a Ping"},
    "exceeds": {"Close 1009 "},
    "rests": {"Close 1001 idle for long"},
}
BY_POD = {
    "restart": {"Close 1001 restarting"},
    "reset": {"Close 1012 the pod is gone", "end in a frame", "reset"},
    "fin": {"Close 1012 the pod is gone"},
    "cut": {"end in a frame"},
    "stall": {"Close 1012 the pod is gone"},
}
AFTER_CLOSE = {"end", "reset"}  # its pod cannot answer any more, and nobody else may


def explain(client, fault):
    """Why the client saw what it did; None when nothing explains it."""
    age = client.ended - client.began
    if client.outcome == "left":
        return "left"
    if client.outcome == "Close 1012 lived for long" and age >= 0.9 * rules.AGE - SLACK:
        return "reached the greatest age"
    if any(client.outcome.startswith(start) for start in BY_ITSELF.get(client.staged, ())):
        return client.staged
    if client.staged == "stalls" and fault == "stall" and client.outcome in BY_ITSELF["hides"]:
        # Nothing waits for it then, and it answers no Ping.
        return "stalls without a flood, pod: stall"
    if client.outcome in BY_POD.get(fault, ()):
        return f"pod: {fault}"
    if client.said_close and fault and client.outcome in AFTER_CLOSE:
        return f"said Close, pod: {fault}"
    return None


class Crowd:
    """So many clients at any time; each that has ended makes room for the next."""

    def __init__(self, address, pods, seed, size):
        self.address, self.seed, self.size = address, seed, size
        self.pods = {pod.name: pod for pod in pods}
        self.count = self.echoes = self.pings = 0
        self.kinds, self.reasons = collections.Counter(), collections.Counter()
        self.unexplained = []

    def lanes(self, seeding):
        return [self.lane(seeding) for _ in range(self.size)]

    async def lane(self, seeding):
        """One client after the other, until it is cancelled."""
        while True:
            await asyncio.sleep(seeding.uniform(0, 0.5))
            self.count += 1
            client = Client(self.count, self.address, random.Random(f"{self.seed}/{self.count}"))
            kind = await client.live()
            self.kinds[kind] += 1
            self.judge(client, kind)

    def judge(self, client, kind):
        pod = self.pods.get(client.pod)
        fault = pod and pod.faults.get(client.number)
        self.echoes += client.echoes
        self.pings += client.pings
        reason = explain(client, fault)
        self.reasons[reason or "unexplained"] += 1
        if not reason:
            seconds = client.ended - client.began
            self.unexplained.append(
                f"client {client.number} ({kind}) of {client.pod}: {client.outcome!r} after "
                f"{seconds:.1f} s, "
                f"the pod's fault: {fault}"
            )
