"""The parts of `handover`: balancer processes are replaced while clients connect all the time."""

import asyncio
import collections
import contextlib
import signal
import socket
import sys
import time
from pathlib import Path

from evidence import chats, fleet, programs, proxies, scripted, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import SHUTDOWN, unevenness

RATE = 500  # connects per second
PODS = 4
BACKLOG = 4096  # connections that may wait in the socket; the system may allow fewer
DRAIN_SECONDS = 2  # seconds in which an old process closes its sessions
# Tolerance of the closes per second while other sessions begin and end. `drain` has a stricter
# check.
SPREAD_TOLERANCE = 0.5
STOPPED = r"stopped: (\d+) sessions were open, (\d+) were cut"
TRAEFIK_CONNECT_RATE, TRAEFIK_REQUEST_RATE = (
    100,
    100,
)  # connects and plain requests per second through Traefik
CONTROL_SECONDS = 4  # seconds of connects in the control
# systemd passes the first socket as descriptor 3. LISTEN_PID is the ID of the process itself, so it
# is set after the fork and before the balancer starts.
SYSTEMD_WRAPPER = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="traffic")
os.execv(sys.argv[2], sys.argv[2:])
"""


async def show_overlap(short):
    seconds, replacements = (6, 2) if short else (10, 3)
    say(
        f"{RATE} connects per second for {seconds} s; a new process starts, then the old one gets "
        "SIGTERM,"
    )
    say(
        f"  {replacements} times, drain_time = {DRAIN_SECONDS}s; every second client stays, and "
        "reconnects when it gets a Close"
    )
    async with started_host() as host, visitors(host, seconds) as group:
        for number in range(replacements):
            await asyncio.sleep(
                max(
                    0.0,
                    group.started_at + (number + 0.5) * seconds / replacements - time.monotonic(),
                )
            )
            old = host.current
            await host.start()
            await replace_old_process(old, group)
    check_connects(group)


async def show_restart(short):
    seconds, replacements = (5, 1) if short else (10, 2)
    say(f"the same with {replacements} restarts: the old process ends before the new one starts")
    async with started_host() as host, visitors(host, seconds) as group:
        for number in range(replacements):
            await asyncio.sleep(
                max(
                    0.0,
                    group.started_at + (number + 0.3) * seconds / replacements - time.monotonic(),
                )
            )
            await replace_old_process(host.current, group)
            stopped_at = time.monotonic()
            await host.start()
            say(
                "         no process accepted connections for another "
                f"{time.monotonic() - stopped_at:.2f} s"
            )
    check_connects(group)


async def show_behind_traefik(short):
    seconds, replacements = (6, 1) if short else (10, 3)
    say(
        f"the same behind Traefik, which reuses connections: {TRAEFIK_CONNECT_RATE} connects and "
        f"{TRAEFIK_REQUEST_RATE} plain requests per second"
    )
    async with started_host() as host:
        traefik = Traefik(host)
        host.front = traefik.address
        await traefik.ready()
        requests = asyncio.create_task(send_requests(traefik.address, seconds))
        async with visitors(host, seconds, TRAEFIK_CONNECT_RATE) as group:
            for number in range(replacements):
                await asyncio.sleep(
                    max(
                        0.0,
                        group.started_at
                        + (number + 0.5) * seconds / replacements
                        - time.monotonic(),
                    )
                )
                old = host.current
                await host.start()
                await replace_old_process(old, group)
        statuses = await requests
        await asyncio.to_thread(traefik.stop)  # in a thread: pods and clients run on this loop
    check_connects(group)
    check(
        set(statuses) == {200} and statuses[200] > TRAEFIK_REQUEST_RATE,
        f"plain requests: {dict(statuses)}",
    )


class Traefik(proxies.Traefik):
    """Traefik, which sends all requests to the inherited listening socket."""

    def __init__(self, host):
        server = {"loadBalancer": {"servers": [{"url": f"http://{host.address}"}]}}
        routers = {"all": {"rule": "PathPrefix(`/`)", "service": "all"}}
        super().__init__({"routers": routers, "services": {"all": server}})

    async def ready(self):
        """Waits until a request through Traefik succeeds: Traefik does not log when it is ready."""
        async with asyncio.timeout(scripted.DEADLINE):
            while await request_status(self.address) != 200:
                await asyncio.sleep(0.1)


async def send_requests(address, seconds):
    """Sends plain requests at a fixed rate. Returns how often each outcome occurred."""
    started_at = time.monotonic()
    requests = []
    for number in range(TRAEFIK_REQUEST_RATE * seconds):
        await asyncio.sleep(max(0.0, started_at + number / TRAEFIK_REQUEST_RATE - time.monotonic()))
        requests.append(asyncio.create_task(request_status(address)))
    return collections.Counter(await asyncio.gather(*requests))


async def request_status(address):
    """Sends a plain request on a new connection. Returns its status, or the name of the error."""
    try:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(scripted.request("/metric", address, "Connection: close").encode())
        line = await asyncio.wait_for(reader.readline(), scripted.DEADLINE)
        writer.close()
        return int(line.split()[1])
    except (OSError, IndexError, TimeoutError) as error:
        return type(error).__name__


async def show_control(_):
    say(
        f"control: each process opens the socket itself, {RATE} connects per second for "
        f"{CONTROL_SECONDS} s, one restart"
    )
    async with started_host(hands_over=False) as host, visitors(host, CONTROL_SECONDS) as group:
        await asyncio.sleep(CONTROL_SECONDS / 4)
        host.current.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(host.current.process.wait, sessions.PATIENCE)
        await host.start()
    failed_visits = group.failed_visits()
    check(
        any("ConnectionRefused" in label for label in failed_visits),
        f"some connects are refused: {failed_visits}",
    )


class Host:
    """Owns the listening socket and starts balancer processes that inherit it.

    Without `hands_over` each process opens the socket itself.
    """

    def __init__(self, pods, hands_over):
        self.pods, self.hands_over = pods, hands_over
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.address = "{}:{}".format(*self.socket.getsockname())
        self.front = self.address  # the address that clients connect to
        if not hands_over:
            self.socket.close()
        self.file = programs.scratch("handover") / "balancer.toml"
        self.file.write_text(
            chats.toml(
                {
                    "server": {
                        "listen": self.address,
                        "drain_delay": "0s",
                        "drain_time": f"{DRAIN_SECONDS}s",
                    },
                    "admin": {"listen": "127.0.0.1:0"},
                    "balancer": {"poll_interval": "200ms", "cold_time": "0s", "replicas": 2},
                    "services.default": {"backends": [pod.url for pod in pods]},
                }
            )
        )
        self.current = None
        self.started = 0

    async def start(self):
        """Starts the next process and waits until it serves."""
        descriptor = [self.socket.fileno()] if self.hands_over else []
        wrapper = [sys.executable, "-c", SYSTEMD_WRAPPER, *descriptor] if self.hands_over else []
        # In a thread, because pods and clients run on this loop.
        self.current = await asyncio.to_thread(chats.Balancer, self.file, None, wrapper, descriptor)
        self.started += 1
        self.current.number = self.started
        inherited = "using the inherited socket" in self.current.output
        note = ", which it has inherited" if inherited else ""
        check(
            inherited == self.hands_over and self.current.address == self.address,
            f"process {self.started} serves on {self.current.address}{note}",
        )


@contextlib.asynccontextmanager
async def started_host(hands_over=True):
    """Starts pods and a host with its first process."""
    pods = await sessions.start(PODS)
    host = Host(pods, hands_over)
    await host.start()
    if hands_over:
        system_limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
        say(
            f"         {min(BACKLOG, system_limit)} connections may wait in the socket (the "
            "backlog)"
        )
    yield host
    await chats.stop(host.current)
    host.socket.close()
    fleet.stop(*pods)


ECHO = "an echo"
CLOSED_BEFORE_ECHO = "Close {} {!r}".format(*SHUTDOWN)


class Visitor:
    """A client that opens a session, expects an echo, and leaves.

    If it `stays`, it keeps its session, and reconnects when the balancer closes it.
    """

    def __init__(self, address, stays):
        self.address, self.stays = address, stays
        self.clients = []  # one per connect
        self.visits = []  # the outcome of each connect up to its echo
        self.waits = []  # seconds until the handshake was answered, one per connect

    async def run(self):
        await self.visit()
        while self.stays and self.visits[-1] in (ECHO, CLOSED_BEFORE_ECHO):
            await self.clients[-1].ended
            if self.stays:
                await self.visit()
        if self.clients[-1].inside:
            self.clients[-1].send_close()
            await self.clients[-1].ended

    async def visit(self):
        started_at = time.monotonic()
        client = await sessions.connect(self.address)
        self.waits.append(time.monotonic() - started_at)
        self.clients.append(client)
        error = client.error and type(client.error).__name__
        self.visits.append(ECHO if await client.talks() else error or client.ending())

    def has_session(self):
        return len(self.visits) == len(self.clients) > 0 and self.clients[-1].inside

    def leave(self):
        """Ends the session. The visitor does not reconnect."""
        self.stays = False
        if self.has_session():
            self.clients[-1].send_close()


class VisitorGroup:
    """All visitors, in the order of their arrival."""

    def __init__(self):
        self.started_at = time.monotonic()
        self.visitors, self.tasks = [], []

    async def connect_steadily(self, address, seconds, rate):
        for number in range(rate * seconds):
            await asyncio.sleep(max(0.0, self.started_at + number / rate - time.monotonic()))
            self.visitors.append(Visitor(address, stays=number % 2 == 0))
            self.tasks.append(asyncio.create_task(self.visitors[-1].run()))
        say(
            f"         {len(self.visitors)} clients connected within "
            f"{time.monotonic() - self.started_at:.1f} s"
        )

    def stayers(self):
        return [visitor for visitor in self.visitors if visitor.stays]

    def closed(self, since):
        """Returns the clients that have received the Close of a shutdown since then."""
        clients = [client for visitor in self.visitors for client in visitor.clients]
        return [
            client for client in clients if client.close == SHUTDOWN and client.closed_at >= since
        ]

    def visits(self):
        return collections.Counter(visit for visitor in self.visitors for visit in visitor.visits)

    def failed_visits(self):
        return {
            label: count
            for label, count in self.visits().items()
            if label not in (ECHO, CLOSED_BEFORE_ECHO)
        }


@contextlib.asynccontextmanager
async def visitors(host, seconds, rate=RATE):
    """Lets clients connect for `seconds`.

    Then checks the sessions of those that stay, and ends them.
    """
    group = VisitorGroup()
    coming = asyncio.create_task(group.connect_steadily(host.front, seconds, rate))
    yield group
    await coming
    stayers = group.stayers()
    if host.hands_over:
        inside = await eventually(
            lambda: all(visitor.has_session() for visitor in stayers), sessions.PATIENCE
        )
        check(inside, f"all {len(stayers)} clients that stay have a session")
        counted = await eventually(
            lambda: sum(host.current.own().values()) == len(stayers), sessions.PATIENCE
        )
        check(counted, f"the last process counts exactly these sessions: {host.current.own()}")
    for visitor in stayers:
        visitor.leave()
    await asyncio.wait(group.tasks, timeout=sessions.PATIENCE)
    check(
        all(task.done() and not task.exception() for task in group.tasks), "all sessions have ended"
    )


async def replace_old_process(old, group):
    """Sends SIGTERM to an old process, and checks how it closes its sessions."""
    signalled, started_at = asyncio.get_running_loop().time(), time.monotonic()
    old.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(old.process.wait, sessions.PATIENCE)
    took = time.monotonic() - started_at
    found = await asyncio.to_thread(programs.Program.expect, old, STOPPED)
    opened, cut = map(int, found.groups())
    # The process has ended, but its last Close frames may not have been read yet.
    await eventually(lambda: len(group.closed(signalled)) >= opened, sessions.PATIENCE)
    closed = group.closed(signalled)
    check(
        code == 0 and cut == 0 and opened == len(closed) > 0 and "panic" not in old.output,
        f"process {old.number} ends {took:.1f} s after SIGTERM, exit code {code}: {found.group()};"
        f" {len(closed)} clients received Close {SHUTDOWN[0]} {SHUTDOWN[1]!r}",
    )
    worst = unevenness(closed, DRAIN_SECONDS)
    check(
        worst <= SPREAD_TOLERANCE,
        f"the Closes are spread over the seconds of drain_time, within {SPREAD_TOLERANCE:.0%}",
    )


def check_connects(group):
    """Checks the outcomes of all connects."""
    visits, failed_visits = group.visits(), group.failed_visits()
    waits = [wait for visitor in group.visitors for wait in visitor.waits]
    clients = [client for visitor in group.visitors for client in visitor.clients]
    say(f"         {len(waits)} connects, including reconnects; milliseconds until the 101,")
    say(f"         median, p99 and maximum: {', '.join(fleet.latencies(waits))}")
    statuses = collections.Counter(client.status for client in clients)
    check(
        not failed_visits and set(statuses) == {101},
        f"no connect is refused or reset: {dict(statuses)} {failed_visits or ''}",
    )
    check(
        visits[ECHO] + visits[CLOSED_BEFORE_ECHO] == len(clients),
        f"{visits[ECHO]} received their echo; {visits[CLOSED_BEFORE_ECHO]} received the "
        "shutdown's Close before the echo",
    )
    without_close = [
        client for client in clients if client.ended.done() and (client.error or not client.close)
    ]
    check(
        not without_close,
        "every session ended with a "
        f"Close{chats.example_of([client.ending() for client in without_close])}",
    )
