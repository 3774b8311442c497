"""Two replicas behind HAProxy are restarted one after the other, while clients exchange messages
all the time.
"""

import asyncio
import collections
import contextlib
import random
import signal

import shutdown
from evidence import fleet, install, programs, scripted, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import NORMAL, SHUTDOWN, TEXT, ReconnectingClient, all_connected, connect_all

PERIOD = 1  # seconds between two messages of a client
THINKS = 0.4  # seconds that a pod waits before it echoes
CHECK_EVERY, FALL = 0.2, 3  # of HAProxy; three failures are its default
DELAY = 5  # seconds of drain_delay: several times what HAProxy needs to notice
OLD = 5  # seconds after which a message must have been echoed; pods are faster
QUIET = 1  # seconds of messages before, between and after the restarts
SEED = 6
NOT_RECEIVED = "crossed the Close on the way to the pod"
NOT_DELIVERED = "answered by the pod, the echo crossed the Close"
# Separate addresses, so that no outgoing connection uses their ports while they are down.
HOSTS = {"a": "127.0.0.2", "b": "127.0.0.3"}


async def show(short):
    count, seconds = (300, 2) if short else (1000, 5)
    say(
        f"{count} clients, a message every {PERIOD} s each, echoed after {THINKS} s; HAProxy in "
        "TCP mode, round robin;"
    )
    say(
        f"  it requests /readyz of two replicas every {CHECK_EVERY} s, {FALL} failures remove one;"
        f" drain_delay = {DELAY}s, drain_time = {seconds}s, seed {SEED}"
    )
    async with chain(seconds) as (replicas, haproxy, pods):
        async with talking(count, haproxy) as talkers:
            for replica in replicas:
                await restart(replica, replicas, haproxy, talkers)
        check(not unexplained(talkers), f"no unexplained event{first_of(unexplained(talkers))}")
        account(talkers, pods)
        closes = collections.Counter(len(talker.failures) for talker in talkers)
        check(
            max(closes) <= len(replicas),
            f"no client is closed more than once by each replica: {dict(closes)}",
        )
    await control(
        "drain_delay = 0s, drain_time = 1s: HAProxy does not notice in time",
        count // 3,
        1,
        signal.SIGTERM,
        DRAIN_DELAY="0s",
    )
    if not short:
        await control("SIGKILL instead of SIGTERM", count // 3, 1, signal.SIGKILL)


async def control(what, count, seconds, sig, **server):
    say(f"control, {count} clients: {what}")
    async with chain(seconds, **server) as (replicas, haproxy, _):
        async with talking(count, haproxy) as talkers:
            replicas[0].balancer.process.send_signal(sig)
            await asyncio.to_thread(replicas[0].balancer.process.wait, shutdown.EXIT)
        found = unexplained(talkers)
        check(found, f"{len(found)} unexplained events{first_of(found)}")
        kinds = collections.Counter(failure for talker in talkers for failure in talker.failures)
        say(f"         failures of clients: {dict(kinds)}")


class Replica:
    """A balancer that keeps its addresses when it is restarted."""

    def __init__(self, name, pods, **server):
        self.name, self.pods, self.server = name, pods, server
        self.listen = self.admin = f"{HOSTS[name]}:0"
        self.start()

    def start(self):
        more = shutdown.settings(LISTEN=self.listen, **self.server)
        text = f"{fleet.static(self.pods)}\n[balancer]\nreplicas = {len(HOSTS)}"
        self.balancer = scripted.ConfiguredBalancer(text, **more, ADMIN__LISTEN=self.admin)
        self.listen, self.admin = self.balancer.address, self.balancer.admin


class Haproxy(programs.Program):
    """HAProxy with round robin over the replicas whose readiness probes on the admin listeners
    succeed.
    """

    def __init__(self, replicas):
        self.address = f"127.0.0.1:{programs.free_port()}"
        servers = "\n".join(
            f"  server {one.name} {one.listen} check addr {one.admin.split(':')[0]} port "
            f"{one.admin.split(':')[1]}"
            for one in replicas
        )
        file = programs.scratch("drain") / "haproxy.cfg"
        file.write_text(f"""\
global
  nbthread 1
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
listen traffic
  bind {self.address}
  balance roundrobin
  option httpchk GET /readyz
  default-server inter {CHECK_EVERY * 1000:.0f}ms fall {FALL} rise 1
{servers}
""")
        super().__init__(install.require("haproxy"), "-db", "-f", file)

    async def finds(self, replica, state):
        found = await asyncio.to_thread(
            self.expect, f"Server traffic/{replica.name} is {state}.*?, code: [0-9]+"
        )
        say(f"         HAProxy: {found.group()}")


@contextlib.asynccontextmanager
async def chain(seconds, **server):
    """Starts two replicas behind HAProxy, and pods that wait before they echo."""
    pods = await sessions.start(shutdown.PODS, thinks=THINKS)
    drain = {
        "DRAIN_DELAY": f"{DELAY}s",
        "DRAIN_TIME": f"{seconds}s",
        "SHUTDOWN_TIMEOUT": f"{seconds + 10}s",
        **server,
    }
    replicas = [Replica(name, pods, **drain) for name in HOSTS]
    haproxy = Haproxy(replicas)
    await sessions.eventually_async(lambda: listens(haproxy))
    yield replicas, haproxy, pods
    haproxy.stop()
    for replica in replicas:
        replica.balancer.stop(signal.SIGKILL)  # a drain would take too long
        check(
            "panic" not in replica.balancer.output, f"no panic in the log of replica {replica.name}"
        )
    fleet.stop(*pods)


async def listens(haproxy):
    client = await sessions.connect(haproxy.address)
    client.leave()
    return client.status == 101


@contextlib.asynccontextmanager
async def talking(count, haproxy):
    """Runs clients that exchange messages. At the end each waits for its remaining echoes and
    leaves.
    """
    seeded = random.Random(SEED)
    talkers = [Talker(number, haproxy.address, seeded.random()) for number in range(count)]
    tasks = await connect_all(talkers)
    await asyncio.sleep(QUIET)
    yield talkers
    check(await all_connected(talkers), "at the end all clients have a session")
    await asyncio.sleep(QUIET)
    for talker in talkers:
        talker.leaving = True
    await asyncio.wait(tasks, timeout=sessions.PATIENCE)
    check(all(task.done() for task in tasks), "all sessions end with a Close")


async def restart(replica, replicas, haproxy, talkers):
    old = replica.balancer

    def sessions_at_all():
        return sum(one.balancer.metrics()["ownSessions"] for one in replicas)

    # A client may have its 101 a moment before its session is counted.
    await eventually(lambda: sessions_at_all() == len(talkers), sessions.PATIENCE)
    held = old.metrics()["ownSessions"]
    say(f"  replica {replica.name} with {held} sessions gets SIGTERM")
    shutdown.send_signal(old)
    await haproxy.finds(replica, "DOWN")
    check(old.metrics()["ownSessions"] == held, "it has not closed any session yet")
    await shutdown.check_exit(old, held, lambda cut: cut == 0)
    check(await all_connected(talkers), "its clients have a session on the other replica")
    await asyncio.sleep(QUIET)
    replica.start()
    await haproxy.finds(replica, "UP")


class Talk:
    """The numbered messages of one session, and the echoes received so far."""

    def __init__(self, name, client):
        self.name, self.client = name, client
        self.sent = []  # time of each message
        self.echoed = 0
        self.disorder = []
        client.hear = self.hear

    def message(self, number):
        return f"{self.name}: {number}".encode()

    def say(self):
        self.client.send(TEXT, self.message(len(self.sent)))
        self.sent.append(self.client.loop.time())

    def hear(self, payload):
        expected = self.message(self.echoed) if self.echoed < len(self.sent) else None
        if payload != expected:
            self.disorder.append(f"{payload} instead of {expected}")
        self.echoed += 1

    def lost(self):
        return range(self.echoed, len(self.sent))

    def is_going_on(self):
        return not (self.client.close or self.client.ended.done())


class Talker(ReconnectingClient):
    """A client that reconnects after each Close and continues. `phase` is its moment within the
    period.
    """

    def __init__(self, number, address, phase):
        super().__init__(lambda: address)
        self.number, self.phase = number, phase
        self.talks = []

    async def stay(self):
        talk = Talk(f"client {self.number}, session {len(self.talks)}", self.client)
        self.talks.append(talk)
        await self.pause(self.phase * PERIOD)
        while talk.is_going_on() and not self.leaving:
            talk.say()
            await self.pause(PERIOD)
        if talk.is_going_on():
            await eventually(
                lambda: not talk.lost() or not talk.is_going_on(), sessions.PATIENCE, 0.1
            )
            self.client.send_close()
        await asyncio.wait([self.client.ended], timeout=sessions.PATIENCE)

    async def pause(self, seconds):
        await asyncio.wait([self.client.ended], timeout=seconds)

    def unexplained(self):
        """Returns everything that does not follow from an announced Close."""
        found = [
            failure for failure in self.failures if failure != "Close {} {!r}".format(*SHUTDOWN)
        ]
        for talk in self.talks:
            found += talk.disorder
            if talk.client.behind:
                found.append(f"{talk.client.behind} frames behind a Close")
            if talk.client.error:
                found.append(f"{talk.client.ending()}, but then {talk.client.error}")
            if talk.client.close not in (SHUTDOWN, (NORMAL, "")):
                found += [f"lost, then {talk.client.ending()}"] * len(talk.lost())
            elif old := [
                number for number in talk.lost() if talk.client.closed_at - talk.sent[number] > OLD
            ]:
                found.append(f"{len(old)} unanswered for more than {OLD} s when the Close came")
            elif talk.client.close != SHUTDOWN and talk.lost():
                found.append(f"{len(talk.lost())} lost without a Close 1012")
        return [f"client {self.number}: {what}" for what in found]


def unexplained(talkers):
    return [what for talker in talkers for what in talker.unexplained()]


def first_of(found):
    return f", such as {found[0]!r}" if found else ""


def account(talkers, pods):
    """Prints the fate of every message."""
    talks = [talk for talker in talkers for talk in talker.talks]
    heard, said = (set().union(*(getattr(pod, name) for pod in pods)) for name in ("heard", "said"))
    lost = [(talk, number) for talk in talks for number in talk.lost()]
    where = collections.Counter(fate(talk.message(number), heard, said) for talk, number in lost)
    closed = [talk for talk in talks if talk.client.close == SHUTDOWN]
    ages = [talk.client.closed_at - talk.sent[number] for talk, number in lost]
    sent, echoed = sum(len(talk.sent) for talk in talks), sum(talk.echoed for talk in talks)
    say(
        f"  {sent} messages in {len(talks)} sessions, {len(closed)} of them closed with 1012;"
        f" {echoed} echoes in order, {len(lost)} lost, {len(lost) / len(closed):.2f} for each of "
        "these closes"
    )
    for what, number in sorted(where.items()):
        say(f"    {number}: {what}")
    say(f"    the Close came {min(ages):.2f} to {max(ages):.2f} s after they were sent")
    check(
        len(heard) == sent - where[NOT_RECEIVED] and len(said) == echoed + where[NOT_DELIVERED],
        f"the pods count the same: they received {len(heard)} and answered {len(said)}",
    )
    check(lost, "there were messages under way when sessions were closed")


def fate(message, heard, said):
    """Returns how far a message without an echo got."""
    if message not in heard:
        return NOT_RECEIVED
    if message not in said:
        return "received by the pod, which was closed before it answered"
    return NOT_DELIVERED
