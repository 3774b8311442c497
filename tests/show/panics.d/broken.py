"""What is left of counts and sessions after panics, and when there are too many of them."""

import asyncio
import collections
import contextlib
import dataclasses
import os
import subprocess
from pathlib import Path

from evidence import chats, fleet, programs, sessions
from evidence.checks import check, say
from evidence.scripted import eventually

PODS = 4
NEWCOMERS = 40
EVEN = 2  # sessions by which pods may differ once these have come
ACTORS = {"metrics": "MetricsActor", "registry": "RegistryActor", "pick": "MetricsActor"}
MINUTE = 60  # seconds after which a panic is forgotten
RESTLESS = 8  # clients that come and leave all the time while something panics
EXIT = 30  # seconds that a process has to end


async def show_lives(short):
    count, rounds = (200, 1) if short else (1000, 2)
    say(
        f"{count} sessions chat on {PODS} pods; {', '.join(ACTORS)} panic, "
        f"{'twice' if rounds == 2 else 'once'} each,"
    )
    say(f"  while {RESTLESS} clients come and leave all the time")
    async with ground(count) as (balancer, chatting):
        before = await state(balancer)
        whole = len(before.ids) == sum(own for own, _ in before.pods.values()) == count
        check(whole, f"{len(before.ids)} sessions; own and estimate by pod: {before.pods}")
        await show_spread(balancer, before)
        for number in range(rounds):
            if number:
                say(f"  {MINUTE} s later")
                await asyncio.sleep(MINUTE)
            for hook, actor in ACTORS.items():
                say(f"  {actor} panics: {hook}")
                await show_panic(balancer, hook)
                check(
                    await same(balancer, before),
                    "own counts, estimates and the sessions' ids are those before",
                )
                await show_spread(balancer, before)
                check(
                    await chatting.turn() and chatting.stay(),
                    "everybody has had an echo since then",
                )
        await chatting.end()
        await show_difference(balancer, before)
        await chatting.leave()
        nothing = State(dict.fromkeys(before.pods, (0, 0)), set())
        check(await same(balancer, nothing), f"then there is nothing left: {await state(balancer)}")
        await chats.stop(balancer, rounds * len(ACTORS))


async def show_ends(short):
    count = 100 if short else 1000
    for hook, actor in ACTORS.items():
        say(f"{count} sessions chat, {actor} panics three times within a minute: {hook}")
        async with ground(count) as (balancer, chatting):
            for number in range(3):
                check(
                    balancer.process.poll() is None and await chatting.turn() and chatting.stay(),
                    f"after {number} panics it lives, and everybody has had an echo",
                )
                await panic(balancer, hook)
                await felt(balancer, number)
            await show_end(
                balancer, f"{actor} panicked 3 times within 1m, the last time: as it was told to"
            )
            await sessions.all_ended(chatting.chats)
            say(f"         its sessions have seen: {sessions.ends(chatting.chats)}")


async def felt(balancer, counted):
    """Somebody comes, who is asked about at least, and the panic shows."""
    await chats.enter(balancer.address, chats.caller())
    await eventually(lambda: panics(balancer) > counted or balancer.process.poll() is not None)


async def show_end(balancer, reason):
    code = await asyncio.to_thread(balancer.process.wait, EXIT)
    told = await eventually(lambda: reason in balancer.lines)
    check(code == 1 and told, f"after 3 its exit code is {code}, and it has said {reason!r}")


async def show_control(_):
    say("control: the build that is meant for people")
    async with ground(PODS, programs.BINARY) as (balancer, chatting):
        for hook in ACTORS:
            status, *_ = await sessions.call(balancer.admin, "POST", f"/api/fault/{hook}")
            check(status == 404, f"POST /api/fault/{hook}: {status}")
        check(await chatting.turn() and chatting.stay(), "everybody has had an echo since then")
        check("panic" not in balancer.output, "nothing has panicked")
        await chats.stop(balancer)


def faulty():
    """The build with the hooks."""
    if named := os.environ.get("WSBALANCER_FAULTS_BIN"):
        return Path(named)
    target = programs.WORK / "fault-hooks"
    build = (
        "cargo",
        "build",
        "--release",
        "--quiet",
        "--features",
        "fault-hooks",
        "--target-dir",
        str(target),
    )
    subprocess.run(build, cwd=programs.ROOT, check=True)
    return target / "release" / "wsbalancer"


@contextlib.asynccontextmanager
async def ground(count, binary=None):
    """Pods, a balancer, and so many sessions that chat."""
    pods = await sessions.start(PODS)
    file = programs.scratch("panics") / "balancer.toml"
    file.write_text(
        chats.toml(
            {
                "server": {
                    "listen": "127.0.0.1:0",
                    "drain_delay": "0s",
                    "drain_time": "0s",
                    "shutdown_timeout": "1s",
                },
                "admin": {"listen": "127.0.0.1:0"},
                "balancer": {"poll_interval": "100ms", "cold_time": "0s"},
                "services.default": {"backends": [pod.url for pod in pods]},
            }
        )
    )
    balancer = chats.Balancer(file, binary or faulty())
    chatting = chats.Crowd()
    await chatting.join(balancer.address, count)
    await eventually(lambda: sum(balancer.own().values()) == count)
    yield balancer, chatting
    fleet.stop(*pods)


@dataclasses.dataclass
class State:
    """What the balancer knows: own sessions and estimate by pod, and the ids of all sessions."""

    pods: dict
    ids: set


async def state(balancer):
    _, listed = await sessions.admin(balancer, "GET", "/api/sessions")
    shown = balancer.metrics()["services"]
    return State(
        {one["url"]: (one["own"], one["estimate"]) for one in shown}, {one["id"] for one in listed}
    )


async def same(balancer, wanted):
    """Whether it knows just that, once those who have left are gone."""

    async def known():
        return await state(balancer) == wanted

    return await sessions.until(known)


async def panic(balancer, hook):
    status, *_ = await sessions.call(balancer.admin, "POST", f"/api/fault/{hook}")
    check(status == 202, f"POST /api/fault/{hook}: {status}")


def panics(balancer):
    return balancer.output.count("panicked and goes on without the message: as it was told to")


async def show_panic(balancer, hook):
    """A panic in the midst of clients that come and leave, all of whom are served."""
    counted = panics(balancer)
    over = asyncio.Event()
    visits = [asyncio.create_task(keep_visiting(balancer, over)) for _ in range(RESTLESS)]
    await panic(balancer, hook)
    await eventually(lambda: panics(balancer) > counted)
    line = next(line for line in reversed(balancer.lines) if "goes on" in line)
    check(panics(balancer) == counted + 1 and ACTORS[hook] in line, f"the log: {line}")
    over.set()
    outcomes = collections.Counter(
        outcome for came in await asyncio.gather(*visits) for outcome in came
    )
    check(set(outcomes) == {"an echo"}, f"who came meanwhile got: {dict(outcomes)}")


async def keep_visiting(balancer, over):
    """Comes and leaves until it is over, and then once more; what came of each time."""
    outcomes = []
    is_last = False
    while not is_last:
        is_last = over.is_set()
        client = await chats.enter(balancer.address, chats.caller())
        outcomes.append("an echo" if await client.talks() else client.told())
        if client.inside:
            client.says_goodbye()
        await sessions.all_ended([client])
    return outcomes


async def show_spread(balancer, before):
    """Newcomers are balanced by right counts, and leave."""
    came = [await chats.enter(balancer.address, chats.caller()) for _ in range(NEWCOMERS)]
    count = len(before.ids) + NEWCOMERS
    await eventually(lambda: sum(balancer.own().values()) == count)
    own = balancer.own()
    even = (
        max(own.values()) - min(own.values()) <= EVEN
        and sum(own.values()) == len(before.ids) + NEWCOMERS
    )
    check(even, f"{NEWCOMERS} more are spread evenly, then pods have {[*own.values()]}")
    for client in came:
        if client.inside:
            client.says_goodbye()
    await sessions.all_ended(came)
    check(await same(balancer, before), "they leave, and all is as before")


async def show_difference(balancer, before):
    """The comparison is none that cannot fail."""
    say("  control: one session more")
    client = await chats.enter(balancer.address, chats.caller())
    check(await state(balancer) != before, "that is not the state before")
    client.says_goodbye()
    await sessions.all_ended([client])
    check(await same(balancer, before), "once it has left, it is")
