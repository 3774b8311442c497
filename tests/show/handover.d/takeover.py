"""Processes that follow one another under clients that come all the time, and what becomes of
these.
"""

import asyncio
import collections
import contextlib
import json
import signal
import socket
import sys
import time
from pathlib import Path

from evidence import chats, fleet, programs, scripted, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import SHUTDOWN, unevenness

RATE = 500  # connects a second
PODS = 4
BACKLOG = 4096  # connections that wait in the socket, if the system allows as many
DRAIN = 2  # seconds over which an old process closes its sessions
# How far each of them may be off, while others come and go; the script `drain` is stricter.
SPREAD = 0.5
STOPPED = r"stopped: (\d+) sessions were open, (\d+) were cut"
BEHIND, ASKED = 100, 100  # connects and plain requests a second where Traefik is between
CONTROL = 4  # seconds of connects
# Its first socket is descriptor 3, and LISTEN_PID the process's own number, which nobody knows
# before it runs.
AS_SYSTEMD = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="traffic")
os.execv(sys.argv[2], sys.argv[2:])
"""


async def show_beside(short):
    seconds, turns = (6, 2) if short else (10, 3)
    say(
        f"{RATE} connects a second for {seconds} s; a new process starts beside the old one, "
        "which then gets SIGTERM,"
    )
    say(
        f"  {turns} times, drain_time = {DRAIN}s; every second client stays and comes back when "
        "it is closed"
    )
    async with ground() as host, visitors(host, seconds) as came:
        for turn in range(turns):
            await asyncio.sleep(
                max(0.0, came.began + (turn + 0.5) * seconds / turns - time.monotonic())
            )
            old = host.current
            await host.start()
            await leaves(old, came)
    account(came)


async def show_restart(short):
    seconds, turns = (5, 1) if short else (10, 2)
    say(
        f"the same with a restart, {turns} times: the old process ends first, then the new one "
        "starts"
    )
    async with ground() as host, visitors(host, seconds) as came:
        for turn in range(turns):
            await asyncio.sleep(
                max(0.0, came.began + (turn + 0.3) * seconds / turns - time.monotonic())
            )
            await leaves(host.current, came)
            gap = time.monotonic()
            await host.start()
            say(f"         nobody listened for {time.monotonic() - gap:.2f} s more")
    account(came)


async def show_behind(short):
    seconds, turns = (6, 1) if short else (10, 3)
    say(
        f"the same behind Traefik, which keeps connections: {BEHIND} connects and {ASKED} plain "
        "requests a second"
    )
    async with ground() as host:
        traefik = Traefik(host)
        host.front = traefik.address
        await traefik.ready()
        asking = asyncio.create_task(ask(traefik.address, seconds))
        async with visitors(host, seconds, BEHIND) as came:
            for turn in range(turns):
                await asyncio.sleep(
                    max(0.0, came.began + (turn + 0.5) * seconds / turns - time.monotonic())
                )
                old = host.current
                await host.start()
                await leaves(old, came)
        statuses = await asking
        await asyncio.to_thread(traefik.stop)  # Pods and clients go on meanwhile.
    account(came)
    check(set(statuses) == {200} and statuses[200] > ASKED, f"plain requests: {dict(statuses)}")


class Traefik(programs.Program):
    """Everything that comes goes to the socket that is handed on."""

    def __init__(self, host):
        server = {"loadBalancer": {"servers": [{"url": f"http://{host.address}"}]}}
        rules = {
            "routers": {"all": {"rule": "PathPrefix(`/`)", "service": "all"}},
            "services": {"all": server},
        }
        file = host.file.with_name("rules.yml")
        file.write_text(json.dumps({"http": rules}))  # JSON is YAML
        self.address = f"127.0.0.1:{programs.free_port()}"
        super().__init__(
            Path(sys.executable).with_name("traefik"),
            f"--entrypoints.web.address={self.address}",
            f"--providers.file.filename={file}",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
        )

    async def ready(self):
        """Waits until it routes: it says nothing when it does."""
        async with asyncio.timeout(scripted.DEADLINE):
            while await status(self.address) != 200:
                await asyncio.sleep(0.1)


async def ask(address, seconds):
    """Plain requests, as many as there should be; how often they came to what."""
    began = time.monotonic()
    asking = []
    for number in range(ASKED * seconds):
        await asyncio.sleep(max(0.0, began + number / ASKED - time.monotonic()))
        asking.append(asyncio.create_task(status(address)))
    return collections.Counter(await asyncio.gather(*asking))


async def status(address):
    """What becomes of a plain request on a connection of its own."""
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
        f"control: each process opens the socket itself, {RATE} connects a second for {CONTROL} "
        "s, one restart"
    )
    async with ground(hands_over=False) as host, visitors(host, CONTROL) as came:
        await asyncio.sleep(CONTROL / 4)
        host.current.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(host.current.process.wait, sessions.LATE)
        await host.start()
    harmed = came.harmed()
    check(any("ConnectionRefused" in what for what in harmed), f"some are turned away: {harmed}")


class Host:
    """Keeps the listening socket, and starts processes that have it; or lets them open it
    themselves.
    """

    def __init__(self, pods, hands_over):
        self.pods, self.hands_over = pods, hands_over
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.address = "{}:{}".format(*self.socket.getsockname())
        self.front = self.address  # where clients come to
        if not hands_over:
            self.socket.close()
        self.file = programs.scratch("handover") / "balancer.toml"
        self.file.write_text(
            chats.toml(
                {
                    "server": {
                        "listen": self.address,
                        "drain_delay": "0s",
                        "drain_time": f"{DRAIN}s",
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
        """The next process, once it serves."""
        descriptor = [self.socket.fileno()] if self.hands_over else []
        wrapper = [sys.executable, "-c", AS_SYSTEMD, *descriptor] if self.hands_over else []
        # Pods and clients go on meanwhile.
        self.current = await asyncio.to_thread(chats.Balancer, self.file, None, wrapper, descriptor)
        self.started += 1
        self.current.number = self.started
        handed = "using the inherited socket" in self.current.output
        told = ", which it has been handed" if handed else ""
        check(
            handed == self.hands_over and self.current.address == self.address,
            f"process {self.started} serves on {self.current.address}{told}",
        )


@contextlib.asynccontextmanager
async def ground(hands_over=True):
    """Pods and a host with its first process."""
    pods = await sessions.start(PODS)
    host = Host(pods, hands_over)
    await host.start()
    if hands_over:
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        say(f"         {min(BACKLOG, most)} connections may wait in the socket")
    yield host
    await chats.stop(host.current)
    host.socket.close()
    fleet.stop(*pods)


ECHO = "an echo"
CROSSED = "Close {} {!r}".format(*SHUTDOWN)


class Visitor:
    """Comes, expects an echo, and leaves; or stays, and comes back when it is told to."""

    def __init__(self, address, stays):
        self.address, self.stays = address, stays
        self.clients = []  # one for each connect
        self.visits = []  # how each of them went until its echo
        self.waits = []  # seconds until each of them was answered

    async def live(self):
        await self.visit()
        while self.stays and self.visits[-1] in (ECHO, CROSSED):
            await self.clients[-1].ended
            if self.stays:
                await self.visit()
        if self.clients[-1].inside:
            self.clients[-1].says_goodbye()
            await self.clients[-1].ended

    async def visit(self):
        began = time.monotonic()
        client = await sessions.enter(self.address)
        self.waits.append(time.monotonic() - began)
        self.clients.append(client)
        error = client.error and type(client.error).__name__
        self.visits.append(ECHO if await client.talks() else error or client.told())

    def is_inside(self):
        return len(self.visits) == len(self.clients) > 0 and self.clients[-1].inside

    def leave(self):
        """No coming back any more."""
        self.stays = False
        if self.is_inside():
            self.clients[-1].says_goodbye()


class Came:
    """All visitors, in the order in which they came."""

    def __init__(self):
        self.began = time.monotonic()
        self.visitors, self.tasks = [], []

    async def keep_coming(self, address, seconds, rate):
        for number in range(rate * seconds):
            await asyncio.sleep(max(0.0, self.began + number / rate - time.monotonic()))
            self.visitors.append(Visitor(address, stays=number % 2 == 0))
            self.tasks.append(asyncio.create_task(self.visitors[-1].live()))
        say(
            f"         {len(self.visitors)} clients came within "
            f"{time.monotonic() - self.began:.1f} s"
        )

    def stayers(self):
        return [visitor for visitor in self.visitors if visitor.stays]

    def closed(self, since):
        """The connections that have heard of a shutdown since then."""
        clients = [client for visitor in self.visitors for client in visitor.clients]
        return [
            client for client in clients if client.close == SHUTDOWN and client.closed_at >= since
        ]

    def visits(self):
        return collections.Counter(visit for visitor in self.visitors for visit in visitor.visits)

    def harmed(self):
        return {what: count for what, count in self.visits().items() if what not in (ECHO, CROSSED)}


@contextlib.asynccontextmanager
async def visitors(host, seconds, rate=RATE):
    """Clients that come for so long; afterwards those who stay are counted, and all leave."""
    came = Came()
    coming = asyncio.create_task(came.keep_coming(host.front, seconds, rate))
    yield came
    await coming
    stayers = came.stayers()
    if host.hands_over:
        inside = await eventually(
            lambda: all(visitor.is_inside() for visitor in stayers), sessions.LATE
        )
        check(inside, f"all {len(stayers)} who stay have a session")
        counted = await eventually(
            lambda: sum(host.current.own().values()) == len(stayers), sessions.LATE
        )
        check(counted, f"the last process has just these: {host.current.own()}")
    for visitor in stayers:
        visitor.leave()
    await asyncio.wait(came.tasks, timeout=sessions.LATE)
    check(all(task.done() and not task.exception() for task in came.tasks), "all have left")


async def leaves(old, came):
    """An old process is told to end, and closes its sessions one after the other."""
    signalled, began = asyncio.get_running_loop().time(), time.monotonic()
    old.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(old.process.wait, sessions.LATE)
    took = time.monotonic() - began
    found = await asyncio.to_thread(programs.Program.expect, old, STOPPED)
    opened, cut = map(int, found.groups())
    # The process is gone, but the last Close frames may still wait to be read in this loop.
    await eventually(lambda: len(came.closed(signalled)) >= opened, sessions.LATE)
    closed = came.closed(signalled)
    check(
        code == 0 and cut == 0 and opened == len(closed) > 0 and "panic" not in old.output,
        f"process {old.number} ends {took:.1f} s after SIGTERM, exit code {code}: {found.group()};"
        f" {len(closed)} clients have heard Close {SHUTDOWN[0]} {SHUTDOWN[1]!r}",
    )
    worst = unevenness(closed, DRAIN)
    check(
        worst <= SPREAD,
        f"each second of drain_time has its share of them, give or take {SPREAD:.0%}",
    )


def account(came):
    """Checks how all connects went."""
    visits, harmed = came.visits(), came.harmed()
    waits = [wait for visitor in came.visitors for wait in visitor.waits]
    clients = [client for visitor in came.visitors for client in visitor.clients]
    say(
        f"         {len(waits)} connects, those of clients that came back included; milliseconds "
        "until the 101,"
    )
    say(f"         median, p99 and longest: {', '.join(fleet.latencies(waits))}")
    statuses = collections.Counter(client.status for client in clients)
    check(
        not harmed and set(statuses) == {101},
        f"none is refused or reset: {dict(statuses)} {harmed or ''}",
    )
    check(
        visits[ECHO] + visits[CROSSED] == len(clients),
        f"{visits[ECHO]} have their echo; {visits[CROSSED]} were told of the shutdown while it "
        "was under way",
    )
    without = [
        client for client in clients if client.ended.done() and (client.error or not client.close)
    ]
    check(
        not without,
        f"every session ended with a Close{chats.first([client.told() for client in without])}",
    )
