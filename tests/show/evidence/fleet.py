"""Pods that report their sessions, and clients that connect through the balancer and stay."""

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
LONG = 600  # seconds of an ejection that lasts longer than the script


class Pod(scripted.Pod):
    """A healthy pod: it reports its sessions, sends its name in `X-Pod`, and echoes.

    `others` is added to the reported count. `extra` holds further fields of the report.
    """

    def __init__(self, name):
        super().__init__(self.talk)
        self.name = name
        self.others = 0
        self.extra = {}
        self.mute = False  # whether its metric route never answers
        self.status = 200  # status of its metric route
        self.sessions = 0
        self.attempts = []  # times of handshakes

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
            **self.extra,
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
        """Stops accepting connections."""
        self.server.close()


def stop(*pods):
    for pod in pods:
        pod.stop()


async def echo(connection):
    """Echoes frames until a Close, which is echoed, too."""
    opcode = 1
    while opcode != 8:
        _, opcode, payload = await connection.frame(scripted.IDLE)
        await connection.send(scripted.frame(opcode, payload))


def static(pods):
    """Returns the configuration of one service with these pods."""
    return f"services = {json.dumps([pod.url for pod in pods])}"


@contextlib.asynccontextmanager
async def balancing(services, settings="", **more):
    """Runs a balancer; stops it at the end and checks its exit code and log.

    Clients that connected with `connect_one` are disconnected first. `services` is TOML or a list
    of pods, `settings` are lines of [balancer].
    """
    text = services if isinstance(services, str) else static(services)
    balancer = scripted.ConfiguredBalancer(f"{text}\n[balancer]\n{settings}\n", **more)
    balancer.clients = []
    try:
        yield balancer
    finally:
        for client in balancer.clients:
            client.leave()
        # In a thread, because pods and clients run on this event loop.
        code = await asyncio.to_thread(balancer.stop)
        if code != 0 or "panic" in balancer.output:
            check(False, f"exit code {code}, no panic in its log:\n{balancer.output[-3000:]}")


@dataclasses.dataclass
class Client:
    """One handshake and its outcome."""

    status: int = 0  # 0 if there was no answer
    pod: str | None = None
    took: float = 0.0  # seconds from connecting until the answer's head was received
    body: bytes = b""
    connection: scripted.Connection | None = None

    async def talks(self):
        """Returns whether the session echoes."""
        await self.connection.send(scripted.frame(1, b"tick", mask=b"mask"))
        return (await self.connection.frame())[2] == b"tick"

    def leave(self):
        if self.connection:
            self.connection.close()


async def connect_one(balancer):
    """Connects a client. Its session stays open until the balancer is stopped."""
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


async def connect_many(balancer, count, lanes=16):
    """Connects `count` clients, `lanes` of them at a time."""
    left = iter(range(count))
    came = []

    async def lane():
        for _ in left:
            came.append(await connect_one(balancer))

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return came


async def connect_paced(balancer, count, rate):
    """Connects `count` clients at `rate` per second, however long each of them takes."""
    began = time.monotonic()
    coming = []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        coming.append(asyncio.create_task(connect_one(balancer)))
    return await asyncio.gather(*coming)


def errors(clients):
    return [client for client in clients if client.status != 101]


def check_no_errors(clients, what):
    """Checks that no client received an error."""
    wrong = errors(clients)
    details = f", {len(wrong)} did: {wrong[0].status} {wrong[0].body!r}" if wrong else ""
    check(not wrong, f"{what}: none of {len(clients)} clients receives an error{details}")


def sessions_by_pod(clients):
    """Returns the number of sessions by pod."""
    counts = {}
    for client in clients:
        counts[client.pod] = counts.get(client.pod, 0) + 1
    return dict(sorted(counts.items(), key=str))


def metrics_entry(balancer, pod):
    """Returns the entry of a pod in the metrics."""
    return next(one for one in balancer.metrics()["services"] if one["url"] == pod.url)


async def wait_for_state(balancer, pod, state, timeout=scripted.DEADLINE):
    """Waits until the metrics show a pod in this state, and returns its entry."""
    await eventually(lambda: metrics_entry(balancer, pod)["state"] == state, timeout)
    return metrics_entry(balancer, pod)


def common_free_port(hosts):
    """Returns a port that is free on all hosts."""

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
    raise RuntimeError("no port is free on all hosts")


def percentile(times, share):
    """Returns the smallest of `times` that a `share` of them does not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latencies(times):
    """Returns median, p99 and maximum in milliseconds."""
    figures = percentile(times, 0.5), percentile(times, 0.99), max(times)
    return [f"{1000 * figure:.1f}" for figure in figures]


def print_row(*cells):
    first, *rest = map(str, cells)
    say(f"  {first:40}" + "".join(f"{cell:>10}" for cell in rest))
