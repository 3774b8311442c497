"""The parts of `panics`: counts and sessions after a panic, and the end after repeated ones."""

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
NEW_CLIENTS = 40  # clients that connect after a panic
MAX_DIFFERENCE = 2  # sessions by which the pods may differ after these have connected
ACTORS = {"metrics": "MetricsActor", "registry": "RegistryActor", "pick": "MetricsActor"}
FORGET_SECONDS = 60  # seconds after which a panic is forgotten
VISITORS = 8  # clients that connect and leave all the time during a panic
EXIT_SECONDS = 30  # seconds within which the process must end


async def show_recovery(short):
    count, rounds = (200, 1) if short else (1000, 2)
    say(
        f"{count} chat sessions on {PODS} pods; {', '.join(ACTORS)} panic "
        f"{'twice' if rounds == 2 else 'once'} each,"
    )
    say(f"  while {VISITORS} clients connect and leave all the time")
    async with running_chats(count) as (balancer, chatters):
        before = await state(balancer)
        is_complete = len(before.ids) == sum(own for own, _ in before.pods.values()) == count
        check(is_complete, f"{len(before.ids)} sessions; own and estimate by pod: {before.pods}")
        await show_spread(balancer, before)
        for number in range(rounds):
            if number:
                say(f"  {FORGET_SECONDS} s later")
                await asyncio.sleep(FORGET_SECONDS)
            for hook, actor in ACTORS.items():
                say(f"  {actor} panics: {hook}")
                await show_panic(balancer, hook)
                check(
                    await is_state(balancer, before),
                    "counts, estimates and session IDs are the same as before",
                )
                await show_spread(balancer, before)
                check(
                    await chatters.all_echoed() and chatters.is_undisturbed(),
                    "every session has received an echo since then",
                )
        await chatters.finish()
        await show_state_control(balancer, before)
        await chatters.leave()
        empty = State(dict.fromkeys(before.pods, (0, 0)), set())
        check(
            await is_state(balancer, empty),
            f"then the balancer has no sessions: {await state(balancer)}",
        )
        await chats.stop(balancer, rounds * len(ACTORS))


async def show_repeated_panics(short):
    count = 100 if short else 1000
    for hook, actor in ACTORS.items():
        say(f"{count} chat sessions, {actor} panics three times within a minute: {hook}")
        async with running_chats(count) as (balancer, chatters):
            for number in range(3):
                check(
                    balancer.process.poll() is None
                    and await chatters.all_echoed()
                    and chatters.is_undisturbed(),
                    f"after {number} panics the process runs, and every session has received an "
                    "echo",
                )
                await panic(balancer, hook)
                await provoke(balancer, number)
            await check_exit(
                balancer,
                f"{actor} panicked 3 times within 1m, most recently: panic requested by a test",
            )
            await sessions.wait_until_ended(chatters.chats)
            say(f"         the sessions end with: {sessions.count_endings(chatters.chats)}")


async def provoke(balancer, count_before):
    """Opens a session, so that the actor gets a message, and waits until the panic is logged."""
    await chats.connect(balancer.address, chats.new_client())
    await eventually(lambda: panics(balancer) > count_before or balancer.process.poll() is not None)


async def check_exit(balancer, reason):
    code = await asyncio.to_thread(balancer.process.wait, EXIT_SECONDS)
    is_logged = await eventually(lambda: reason in balancer.lines)
    check(
        code == 1 and is_logged,
        f"after 3 panics the exit code is {code}, and the log says {reason!r}",
    )


async def show_control(_):
    say("control: the ordinary build")
    async with running_chats(PODS, programs.BINARY) as (balancer, chatters):
        for hook in ACTORS:
            status, *_ = await sessions.call(balancer.admin, "POST", f"/api/fault/{hook}")
            check(status == 404, f"POST /api/fault/{hook}: {status}")
        check(
            await chatters.all_echoed() and chatters.is_undisturbed(),
            "every session has received an echo since then",
        )
        check("panic" not in balancer.output, "no panic in the log")
        await chats.stop(balancer)


def hooked_binary():
    """Returns the binary with the hooks, and builds it if necessary."""
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
async def running_chats(count, binary=None):
    """Starts pods and a balancer, and opens `count` chat sessions."""
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
    balancer = chats.Balancer(file, binary or hooked_binary())
    chatters = chats.Crowd()
    await chatters.open_sessions(balancer.address, count)
    await eventually(lambda: sum(balancer.own().values()) == count)
    yield balancer, chatters
    fleet.stop(*pods)


@dataclasses.dataclass
class State:
    """The balancer's state: own sessions and estimate by pod, and the IDs of all sessions."""

    pods: dict
    ids: set


async def state(balancer):
    _, listed = await sessions.call_admin(balancer, "GET", "/api/sessions")
    services = balancer.metrics()["services"]
    return State(
        {one["url"]: (one["own"], one["estimate"]) for one in services},
        {one["id"] for one in listed},
    )


async def is_state(balancer, wanted):
    """Waits until the balancer's state is `wanted`. Returns whether it is."""

    async def known():
        return await state(balancer) == wanted

    return await sessions.eventually_async(known)


async def panic(balancer, hook):
    status, *_ = await sessions.call(balancer.admin, "POST", f"/api/fault/{hook}")
    check(status == 202, f"POST /api/fault/{hook}: {status}")


def panics(balancer):
    return balancer.output.count(
        "panicked, one message is lost and the actor continues: panic requested by a test"
    )


async def show_panic(balancer, hook):
    """Causes a panic while clients connect and leave, and checks that all of them are served."""
    count_before = panics(balancer)
    over = asyncio.Event()
    visits = [asyncio.create_task(keep_visiting(balancer, over)) for _ in range(VISITORS)]
    await panic(balancer, hook)
    await eventually(lambda: panics(balancer) > count_before)
    line = next(line for line in reversed(balancer.lines) if "the actor continues" in line)
    check(panics(balancer) == count_before + 1 and ACTORS[hook] in line, f"the log: {line}")
    over.set()
    outcomes = collections.Counter(
        outcome for new_clients in await asyncio.gather(*visits) for outcome in new_clients
    )
    check(
        set(outcomes) == {"an echo"},
        f"clients that connected during the panic got: {dict(outcomes)}",
    )


async def keep_visiting(balancer, over):
    """Connects and leaves until `over` is set, and then once more. Returns the outcomes."""
    outcomes = []
    is_last_visit = False
    while not is_last_visit:
        is_last_visit = over.is_set()
        client = await chats.connect(balancer.address, chats.new_client())
        outcomes.append("an echo" if await client.talks() else client.ending())
        if client.inside:
            client.send_close()
        await sessions.wait_until_ended([client])
    return outcomes


async def show_spread(balancer, before):
    """Checks that new sessions are balanced by correct counts, and ends them."""
    new_clients = [
        await chats.connect(balancer.address, chats.new_client()) for _ in range(NEW_CLIENTS)
    ]
    count = len(before.ids) + NEW_CLIENTS
    await eventually(lambda: sum(balancer.own().values()) == count)
    own = balancer.own()
    even = (
        max(own.values()) - min(own.values()) <= MAX_DIFFERENCE
        and sum(own.values()) == len(before.ids) + NEW_CLIENTS
    )
    check(
        even, f"{NEW_CLIENTS} new sessions are spread evenly, the pods then have {[*own.values()]}"
    )
    for client in new_clients:
        if client.inside:
            client.send_close()
    await sessions.wait_until_ended(new_clients)
    check(await is_state(balancer, before), "after they have left, the state is the same as before")


async def show_state_control(balancer, before):
    """Control: the comparison of states notices one session more."""
    say("  control: one more session")
    client = await chats.connect(balancer.address, chats.new_client())
    check(await state(balancer) != before, "the state differs")
    client.send_close()
    await sessions.wait_until_ended([client])
    check(await is_state(balancer, before), "after it has left, the state is the same again")
