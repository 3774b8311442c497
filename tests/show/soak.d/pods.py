"""Pods that keep their port over restarts and deaths, and write down what they did to which
session.
"""

import asyncio
import json

import rules
from evidence import scripted

PIECE = bytes(16 << 10)  # of a flood
CUT = b"\x82\x7e\x40\x00half of a frame"  # 16 KiB are announced


class Session:
    """A pod's side of one."""

    def __init__(self, connection):
        self.connection = connection
        self.is_over = False  # nothing more may be written

    async def flood(self, size):
        while size > 0 and not self.is_over:
            await self.connection.send(scripted.frame(2, PIECE))
            size -= len(PIECE)

    def goodbye(self):
        """Says Close."""
        self.is_over = True
        self.connection.writer.write(scripted.frame(8, (1001).to_bytes(2, "big") + b"restarting"))


class Pod(scripted.Pod):
    """Echoes frame by frame, answers Pings, floods when it is asked to."""

    def __init__(self, name):
        super().__init__(self.talk)
        self.name = name
        self.everyone = set()  # connections, those of polls included
        self.sessions = {}  # by the client's number
        self.faults = {}  # what was done to the client with this number
        self.awake = asyncio.Event()
        self.awake.set()
        self.is_busy = False
        self.strays = 0  # Pongs that nobody here asked for

    async def talk(self, connection):
        self.everyone.add(connection)
        try:
            while head := await connection.head(scripted.IDLE):
                await self.awake.wait()
                if head.get("sec-websocket-key"):
                    return await self.handshake(connection, head)
                report = {"agentsConnections": len(self.sessions), "podName": self.name}
                await connection.send(scripted.answer(200, body=json.dumps(report).encode()))
        finally:
            self.everyone.discard(connection)

    async def handshake(self, connection, head):
        if self.is_busy:
            return await connection.send(scripted.answer(503))
        number = int(head.target.rpartition("/")[2])
        self.sessions[number] = Session(connection)
        try:
            await connection.send(scripted.switch(head, f"X-Pod: {self.name}"))
            await self.serve_session(self.sessions[number])
        finally:
            del self.sessions[number]

    async def serve_session(self, session):
        opcode = None
        while opcode != 8:
            fin, opcode, payload = await session.connection.frame(scripted.IDLE)
            await self.awake.wait()
            if opcode == 10:
                self.strays += 1
            elif session.is_over:
                continue
            elif payload.startswith(b"flood "):
                await session.flood(int(payload[6:]))
            else:
                await session.connection.send(
                    scripted.frame(10 if opcode == 9 else opcode, payload, fin=fin)
                )

    def blame(self, fault):
        """Writes down what happens to all sessions."""
        self.faults.update(dict.fromkeys(self.sessions, fault))

    async def come_back(self):
        self.is_busy = False
        await self.start(int(self.address.rpartition(":")[2]), self.address.rpartition(":")[0])

    async def restart(self, seeded):
        """In good order: nobody new, a Close to everybody, then it is away for a moment."""
        self.server.close()
        self.is_busy = True
        self.blame("restart")
        for session in self.sessions.values():
            session.goodbye()
        await asyncio.sleep(rules.CLOSE)
        self.hang_up()
        await asyncio.sleep(seeded.uniform(0.2, 2))
        await self.come_back()

    async def die(self, seeded):
        """Its connections end in one of three ways each, without a Close."""
        self.server.close()
        for number, session in self.sessions.items():
            self.faults[number] = fault = seeded.choice(["reset", "fin", "cut"])
            session.is_over = True
            if fault == "cut":
                session.connection.writer.write(CUT)
            if fault == "reset" and not session.connection.writer.is_closing():
                session.connection.reset()
        self.hang_up()
        await asyncio.sleep(seeded.uniform(0.2, 2))
        await self.come_back()

    def hang_up(self):
        for connection in self.everyone:
            connection.close()

    async def stall(self, seeded):
        """Takes connections and bytes, and says nothing: not for long, or for longer than it
        may.
        """
        self.blame("stall")
        self.awake.clear()
        await asyncio.sleep(seeded.uniform(0.5, rules.PING_INTERVAL + rules.PING_TIMEOUT + 3))
        self.blame("stall")
        self.awake.set()

    async def refuse(self, seeded):
        """Answers handshakes with 503."""
        self.is_busy = True
        await asyncio.sleep(seeded.uniform(0.5, 3))
        self.is_busy = False


async def start(count):
    """Each at an address of its own, from which nobody connects to anywhere: ports stay free
    meanwhile.
    """
    return [
        await Pod(f"pod-{number}").start(host=f"127.0.2.{number}") for number in range(1, count + 1)
    ]


class Trouble:
    """Pods that fail, a few at once, as the dice fall."""

    KINDS = {"restart": Pod.restart, "die": Pod.die, "stall": Pod.stall, "refuse": Pod.refuse}

    def __init__(self, pods, seeded):
        self.pods, self.seeded = pods, seeded
        self.counts = dict.fromkeys(self.KINDS, 0)
        self.acts = {}  # the last one of each pod

    async def make(self):
        while True:
            await asyncio.sleep(self.seeded.expovariate(1))
            well = [pod for pod in self.pods if pod not in self.acts or self.acts[pod].done()]
            if len(self.pods) - len(well) < rules.FAILING:
                pod, kind = self.seeded.choice(well), self.seeded.choice([*self.KINDS])
                if pod in self.acts:
                    await self.acts[pod]  # which tells whether it failed
                self.counts[kind] += 1
                self.acts[pod] = asyncio.create_task(self.KINDS[kind](pod, self.seeded))

    async def over(self):
        """Waits for the end of what is under way."""
        await asyncio.gather(*self.acts.values())
