"""Pods that report what they hold, and clients that come to the balancer before them and stay."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import time

from evidence import scripted
from evidence.checks import check, say
from evidence.scripted import eventually

HOST = "chat.example.org"
LONG = 600  # of an ejection that nobody waits for the end of, in seconds


class Pod(scripted.Pod):
    """One that works: it reports, greets every session with its name, and echoes.

    `others` are connections it reports beside its sessions, `told` is whatever else its report has.
    """

    def __init__(self, name):
        super().__init__(self.talk)
        self.name = name
        self.others = 0
        self.told = {}
        self.mute = False  # whether its metric route says nothing
        self.status = 200  # of its metric route
        self.sessions = 0
        self.attempts = []  # when handshakes came

    async def talk(self, connection):
        while head := await connection.head(scripted.IDLE):
            if head.get("sec-websocket-key"):
                self.attempts.append(time.monotonic())
                return await self.handshake(connection, head)
            await self.metric(connection, head)

    async def metric(self, connection, _):
        if self.mute:
            await connection.ended(scripted.IDLE)
            return
        report = {
            "agentsConnections": self.others + self.sessions,
            "podName": self.name,
            **self.told,
        }
        await connection.send(scripted.answer(self.status, body=json.dumps(report).encode()))

    async def handshake(self, connection, head):
        await connection.send(scripted.switch(head, f"X-Pod: {self.name}"))
        self.sessions += 1
        try:
            await echo(connection)
        finally:
            self.sessions -= 1

    def stop(self):
        """Takes nobody any more."""
        self.server.close()


def stop(*pods):
    for pod in pods:
        pod.stop()


async def echo(connection):
    """Until a Close, which is echoed, too."""
    opcode = 1
    while opcode != 8:
        _, opcode, payload = await connection.frame(scripted.IDLE)
        await connection.send(scripted.frame(opcode, payload))


def static(pods):
    """The configuration of one service that has these pods."""
    return f"services = {json.dumps([pod.url for pod in pods])}"


@contextlib.asynccontextmanager
async def balancing(services, settings="", **more):
    """A balancer, stopped and looked at afterwards, with all clients that came by `arrive`.

    `services` is TOML or a list of pods, `settings` are lines of [balancer].
    """
    text = services if isinstance(services, str) else static(services)
    balancer = scripted.Configured(f"{text}\n[balancer]\n{settings}\n", **more)
    balancer.clients = []
    try:
        yield balancer
    finally:
        for client in balancer.clients:
            client.leave()
        # Pods and clients live on this loop, so it must go on turning.
        code = await asyncio.to_thread(balancer.stop)
        if code != 0 or "panic" in balancer.output:
            check(False, f"exit code {code}, no panic in its log:\n{balancer.output[-3000:]}")


@dataclasses.dataclass
class Client:
    """One handshake and what came of it."""

    status: int = 0  # 0: no answer at all
    pod: str | None = None
    took: float = 0.0  # from before the connection to behind the answer's head, in seconds
    body: bytes = b""
    connection: scripted.Connection | None = None

    async def talks(self):
        """Whether its session echoes."""
        await self.connection.send(scripted.frame(1, b"tick", mask=b"mask"))
        return (await self.connection.frame())[2] == b"tick"

    def leave(self):
        if self.connection:
            self.connection.close()


async def arrive(balancer):
    """A client; its session stays until the balancer is stopped."""
    began = time.monotonic()
    client = Client(connection=await scripted.dial(balancer.address))
    balancer.clients.append(client)
    await client.connection.send(scripted.handshake("/", HOST))
    head = await client.connection.head()
    client.took = time.monotonic() - began
    if head:
        client.status, client.pod = head.status, head.get("x-pod")
        if head.status != 101:
            client.body = await client.connection.body(head)
    return client


async def come(balancer, count, lanes=16):
    """`count` clients, `lanes` of them at a time."""
    left = iter(range(count))
    came = []

    async def lane():
        for _ in left:
            came.append(await arrive(balancer))

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return came


async def paced(balancer, count, rate):
    """`count` clients, `rate` a second, however long each of them takes."""
    began = time.monotonic()
    coming = []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        coming.append(asyncio.create_task(arrive(balancer)))
    return await asyncio.gather(*coming)


def errors(clients):
    return [client for client in clients if client.status != 101]


def unharmed(clients, what):
    """Checks that nobody saw an error."""
    wrong = errors(clients)
    told = f", {len(wrong)} did: {wrong[0].status} {wrong[0].body!r}" if wrong else ""
    check(not wrong, f"{what}: none of {len(clients)} clients sees an error{told}")


def spread(clients):
    """Sessions by pod."""
    counts = {}
    for client in clients:
        counts[client.pod] = counts.get(client.pod, 0) + 1
    return dict(sorted(counts.items(), key=str))


def entry(balancer, pod):
    """What the metrics say of a pod."""
    return next(one for one in balancer.metrics()["services"] if one["url"] == pod.url)


async def shown(balancer, pod, state, timeout=scripted.DEADLINE):
    """Waits for a pod's state; what the metrics say of it then."""
    await eventually(lambda: entry(balancer, pod)["state"] == state, timeout)
    return entry(balancer, pod)


def common_port(hosts):
    """A port that is free at all of them."""

    def bind(host, port=0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, port))
            return probe.getsockname()[1]

    for _ in range(100):
        port = bind(hosts[0])
        with contextlib.suppress(OSError):
            for host in hosts[1:]:
                bind(host, port)
            return port
    raise RuntimeError("no port is free at all of them")


def percentile(times, share):
    """The smallest of `times` that `share` of them do not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latencies(times):
    """Median, p99 and maximum in milliseconds."""
    figures = percentile(times, 0.5), percentile(times, 0.99), max(times)
    return [f"{1000 * figure:.1f}" for figure in figures]


def line(*cells):
    first, *rest = map(str, cells)
    say(f"  {first:40}" + "".join(f"{cell:>10}" for cell in rest))
