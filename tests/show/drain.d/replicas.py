"""Two replicas, one of which stops, and clients that reconnect: no client is closed or refused
twice.
"""

import asyncio
import collections

import shutdown
from evidence import fleet, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import ReconnectingClient, all_connected, connect_all, readiness

DELAY = 3  # seconds of drain_delay: many times LOOK_EVERY
LOOK_EVERY = 0.25


class Router:
    """Chooses a replica for each client in turn. If it `looks`, only among those whose readiness
    probe succeeds, as a proxy does.
    """

    def __init__(self, replicas, looks):
        self.replicas, self.looks = replicas, looks
        self.ready = [*replicas]
        self.turns = 0

    def address(self):
        self.turns += 1
        return self.ready[self.turns % len(self.ready)].address

    async def watch(self):
        while self.looks:
            answers = [await readiness(replica) for replica in self.replicas]
            self.ready = [
                replica for replica, status in zip(self.replicas, answers) if status == 200
            ] or self.ready
            await asyncio.sleep(LOOK_EVERY)


async def show(short):
    count, seconds = (1000, 4) if short else (5000, 20)
    say(
        f"{count} clients that reconnect at once, two replicas, SIGTERM to one: drain_delay = "
        f"{DELAY}s,"
        f" drain_time = {seconds}s; the router requests /readyz every {LOOK_EVERY} s"
    )
    failures = await one_ends(count, seconds, True)
    check(
        max(failures) == 1,
        f"no client fails twice; clients by number of failures: {dict(failures)}",
    )
    say("control: the router does not request /readyz")
    failures = await one_ends(count // 5, 2, False)
    check(
        max(failures) > 1,
        f"some clients fail twice; clients by number of failures: {dict(failures)}",
    )


async def one_ends(count, seconds, looks):
    """Returns the number of clients by number of failures. If the router looks, checks everything
    else, too.
    """
    pods = await sessions.start(shutdown.PODS)
    drain = {
        "DRAIN_DELAY": f"{DELAY}s",
        "DRAIN_TIME": f"{seconds}s",
        "SHUTDOWN_TIMEOUT": f"{seconds + 10}s",
    }
    one = fleet.balancing(pods, "replicas = 2", **shutdown.settings(**drain))
    other = fleet.balancing(pods, "replicas = 2", SERVER__SHUTDOWN_TIMEOUT="30s")
    async with one as leaving, other as staying:
        router = Router([leaving, staying], looks)
        watching = asyncio.create_task(router.watch())
        regulars = [ReconnectingClient(router.address) for _ in range(count)]
        tasks = await connect_all(regulars)
        await eventually(
            lambda: sum(one.metrics()["ownSessions"] for one in router.replicas) == count
        )
        held = leaving.metrics()["ownSessions"]
        say(f"         the replica that stops has {held} of them")
        shutdown.send_signal(leaving)
        await shutdown.check_exit(leaving, held, lambda cut: cut == 0) if looks else await gone(
            leaving
        )
        check(await all_connected(regulars), "all clients have a session again")
        if looks:
            await check_other_replica(regulars, staying, held)
        for task in (watching, *tasks):
            task.cancel()
        for regular in regulars:
            regular.client.leave()
    fleet.stop(*pods)
    return collections.Counter(len(regular.failures) for regular in regulars)


async def gone(balancer):
    await asyncio.to_thread(balancer.process.wait, shutdown.EXIT)


async def check_other_replica(regulars, staying, held):
    kinds = collections.Counter(failure for regular in regulars for failure in regular.failures)
    check(
        dict(kinds) == {"Close {} {!r}".format(*sessions.SHUTDOWN): held},
        f"failures: {dict(kinds)}, one for each session of the replica that stopped",
    )
    check(await sessions.all_talk([regular.client for regular in regulars]), "every session echoes")
    await eventually(lambda: staying.metrics()["ownSessions"] == len(regulars))
    own = staying.metrics()["ownSessions"]
    check(own == len(regulars), f"the other replica has {own} sessions now")
