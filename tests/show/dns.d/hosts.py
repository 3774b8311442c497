"""Pods at addresses of their own, what the metrics say about them, and sessions that send all the
time.
"""

import asyncio
import json

from evidence import fleet, scripted
from evidence.checks import check
from evidence.scripted import eventually

# Lookups are frequent, and pods are never cold, so that counts are exact.
QUICK = """
poll_interval = "100ms"
discovery_min_ttl = "100ms"
discovery_max_ttl = "200ms"
cold_time = "0s"
"""


async def start(*hosts, port=None):
    """Starts a pod at each host, all with the same port."""
    port = port or fleet.common_free_port(hosts)
    pods = []
    for host in hosts:
        pods.append(await fleet.Pod(host).start(port, host))
    return pods


def port_of(pods):
    return pods[0].address.rpartition(":")[2]


def service(server, target, kind="dns", before=()):
    """Returns a service whose pods are found by DNS at this name server, after the ones in
    `before`.
    """
    servers = json.dumps([*before, server.address])
    return (
        f'[services.chat]\ndiscovery = {{ {kind} = "http://{target}" }}\nnameservers = {servers}\n'
    )


def entries(balancer):
    """Returns what podMetrics says of each address."""
    return {
        pod["address"]: pod for pods in balancer.metrics()["podMetrics"].values() for pod in pods
    }


def states(balancer):
    return {address: pod["state"] for address, pod in entries(balancer).items()}


def accepting(balancer):
    """Returns the addresses that accept new sessions."""
    return {
        address
        for address, state in states(balancer).items()
        if state not in ("draining", "ejected")
    }


async def wait_for_pods(balancer, pods, what="", timeout=scripted.DEADLINE):
    """Waits until exactly these pods accept new sessions."""
    wanted = {pod.address for pod in pods}
    found = await eventually(lambda: accepting(balancer) == wanted, timeout)
    shown = sorted(pod.name for pod in pods) if len(pods) < 8 else f"{len(pods)} pods"
    return check(
        found,
        f"{what or 'known'}: {shown}"
        + ("" if found else f" expected, instead of {states(balancer)}"),
    )


async def gone(balancer, pod):
    """Waits until the metrics no longer list a pod."""
    return await eventually(lambda: pod.address not in states(balancer))


def even(clients, pods, what):
    """Checks that clients are distributed evenly over these pods only."""
    counts = fleet.sessions_by_pod(clients)
    right = (
        set(counts) == {pod.name for pod in pods}
        and max(counts.values()) - min(counts.values()) <= 1
    )
    few = len(counts) < 8
    shown = counts if few else f"{len(counts)} pods, {set(counts.values())} each"
    check(right, f"{what}: {shown}")


class Talk:
    """A session that sends numbered messages without a pause and checks every echo."""

    def __init__(self, client):
        self.client, self.count, self.wrong = client, 0, None
        self.over = False
        self.task = asyncio.create_task(self._talk())

    async def _talk(self):
        try:
            while not self.over:
                message = b"message %d" % self.count
                await self.client.connection.send(scripted.frame(1, message, mask=b"mask"))
                _, opcode, payload = await self.client.connection.frame()
                if (opcode, payload) != (1, message):
                    self.wrong = f"{opcode} {payload!r} for {message!r}"
                    return
                self.count += 1
                await asyncio.sleep(0.01)
        except Exception as error:
            self.wrong = f"{type(error).__name__} behind {self.count} messages"

    async def check_undisturbed(self, what):
        """Checks that the session continues without an error."""
        before = self.count
        await eventually(lambda: self.count > before + 2 or self.wrong)
        progress = self.wrong or f"{self.count} messages so far"
        return check(not self.wrong, f"{what}: its live session continues, {progress}")

    async def stop(self):
        self.over = True
        await self.task
        self.client.leave()
