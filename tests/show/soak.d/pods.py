"""The pods of `soak`: they keep their port over restarts, and record the faults they cause."""

import asyncio
import json

import rules
from evidence import scripted

PIECE = bytes(16 << 10)  # of a flood
CUT = b"\x82\x7e\x40\x00half of a frame"  # 16 KiB are announced


class Session:
    """The pod's side of a session."""

    def __init__(self, connection):
        self.connection = connection
        self.is_over = False  # whether nothing more may be written

    async def flood(self, size):
        while size > 0 and not self.is_over:
            await self.connection.send(scripted.frame(2, PIECE))
            size -= len(PIECE)

    def send_close(self):
        """Sends a Close."""
        self.is_over = True
        self.connection.writer.write(scripted.frame(8, (1001).to_bytes(2, "big") + b"restarting"))


class Pod(scripted.Pod):
    """A pod that echoes every frame, answers Pings, and sends a flood on request."""

    def __init__(self, name):
        super().__init__(self.talk)
        self.name = name
        self.open_connections = set()  # all connections, including those of polls
        self.sessions = {}  # by the number of the client
        self.faults = {}  # the last fault by the number of the affected client
        self.not_stalled = asyncio.Event()
        self.not_stalled.set()
        self.is_refusing = False
        self.unexpected_pongs = 0  # Pongs without a Ping of the pod

    async def talk(self, connection):
        self.open_connections.add(connection)
        try:
            while head := await connection.head(scripted.IDLE):
                await self.not_stalled.wait()
                if head.get("sec-websocket-key"):
                    return await self.handshake(connection, head)
                report = {"agentsConnections": len(self.sessions), "podName": self.name}
                await connection.send(scripted.answer(200, body=json.dumps(report).encode()))
        finally:
            self.open_connections.discard(connection)

    async def handshake(self, connection, head):
        if self.is_refusing:
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
            await self.not_stalled.wait()
            if opcode == 10:
                self.unexpected_pongs += 1
            elif session.is_over:
                continue
            elif payload.startswith(b"flood "):
                await session.flood(int(payload[6:]))
            else:
                await session.connection.send(
                    scripted.frame(10 if opcode == 9 else opcode, payload, fin=fin)
                )

    def record_fault(self, fault):
        """Records a fault for all open sessions."""
        self.faults.update(dict.fromkeys(self.sessions, fault))

    async def start_again(self):
        self.is_refusing = False
        await self.start(int(self.address.rpartition(":")[2]), self.address.rpartition(":")[0])

    async def restart(self, generator):
        """Stops gracefully: accepts no sessions, sends a Close to all, and is down for a moment."""
        self.server.close()
        self.is_refusing = True
        self.record_fault("restart")
        for session in self.sessions.values():
            session.send_close()
        await asyncio.sleep(rules.CLOSE)
        self.close_all()
        await asyncio.sleep(generator.uniform(0.2, 2))
        await self.start_again()

    async def crash(self, generator):
        """Crashes: each connection ends without a Close, in one of three ways."""
        self.server.close()
        for number, session in self.sessions.items():
            self.faults[number] = fault = generator.choice(["reset", "fin", "cut"])
            session.is_over = True
            if fault == "cut":
                session.connection.writer.write(CUT)
            if fault == "reset" and not session.connection.writer.is_closing():
                session.connection.reset()
        self.close_all()
        await asyncio.sleep(generator.uniform(0.2, 2))
        await self.start_again()

    def close_all(self):
        for connection in self.open_connections:
            connection.close()

    async def stall(self, generator):
        """Accepts connections and bytes, but sends nothing, for less or more than the time-outs."""
        self.record_fault("stall")
        self.not_stalled.clear()
        await asyncio.sleep(generator.uniform(0.5, rules.PING_INTERVAL + rules.PING_TIMEOUT + 3))
        self.record_fault("stall")
        self.not_stalled.set()

    async def refuse(self, generator):
        """Answers handshakes with 503."""
        self.is_refusing = True
        await asyncio.sleep(generator.uniform(0.5, 3))
        self.is_refusing = False


async def start(count):
    """Starts pods.

    Each has its own address that no client connects from, so its port stays free while it is down.
    """
    return [
        await Pod(f"pod-{number}").start(host=f"127.0.2.{number}") for number in range(1, count + 1)
    ]


class PodFaults:
    """Causes random faults of pods, a few at the same time."""

    KINDS = {"restart": Pod.restart, "crash": Pod.crash, "stall": Pod.stall, "refuse": Pod.refuse}

    def __init__(self, pods, generator):
        self.pods, self.generator = pods, generator
        self.counts = dict.fromkeys(self.KINDS, 0)
        self.tasks = {}  # the last fault of each pod

    async def run(self):
        while True:
            await asyncio.sleep(self.generator.expovariate(1))
            healthy = [pod for pod in self.pods if pod not in self.tasks or self.tasks[pod].done()]
            if len(self.pods) - len(healthy) < rules.FAILING:
                pod, kind = self.generator.choice(healthy), self.generator.choice([*self.KINDS])
                if pod in self.tasks:
                    await self.tasks[pod]  # raises an error of the fault itself
                self.counts[kind] += 1
                self.tasks[pod] = asyncio.create_task(self.KINDS[kind](pod, self.generator))

    async def finish(self):
        """Waits until all faults have ended."""
        await asyncio.gather(*self.tasks.values())
