"""One balancer that stops: which clients are still served, when sessions are closed, and what it
reports.
"""

import asyncio
import contextlib
import signal
import time

from evidence import fleet, programs, scripted, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import (
    SHUTDOWN,
    check_closes,
    connect,
    connect_many,
    readiness,
    unevenness,
    wait_until_ended,
)

PODS = 4
DELAY = 5  # seconds of drain_delay, long enough for a late client to connect
EVEN = 0.2  # tolerance for the closes of each second
EXIT = 60  # seconds in which a process must exit after its last session


async def show(short):
    count, seconds = (1000, 5) if short else (5000, 20)
    await show_spread(count, seconds)
    await show_at_once(count // 5)
    await show_killed(count // 5)
    await show_stragglers()
    await show_second_signal()


def send_signal(balancer, sig=signal.SIGTERM):
    """Sends the signal. Returns the time."""
    balancer.process.send_signal(sig)
    return time.monotonic()


async def check_exit(balancer, opened, cut):
    """Checks the exit code and the last line of the log. Returns the number of sessions that were
    cut.
    """
    code = await asyncio.to_thread(balancer.process.wait, EXIT)
    line = r"stopped: (\d+) sessions were open, (\d+) were cut"
    found = await asyncio.to_thread(programs.Program.expect, balancer, line)
    received = tuple(map(int, found.groups()))
    check(code == 0, f"exit code {code}")
    check(received[0] == opened and cut(received[1]), f"its last line: {found.group()!r}")
    return received[1]


def settings(**server):
    return {f"SERVER__{name}": value for name, value in server.items()}


async def show_spread(count, seconds):
    say(f"{count} sessions, SIGTERM: drain_delay = {DELAY}s, drain_time = {seconds}s")
    pods = await sessions.start(PODS)
    drain = settings(
        DRAIN_DELAY=f"{DELAY}s", DRAIN_TIME=f"{seconds}s", SHUTDOWN_TIMEOUT=f"{seconds + 10}s"
    )
    async with fleet.balancing(pods, **drain) as balancer:
        clients = await connect_many(balancer, count)
        began = send_signal(balancer)
        clients += await show_delay(balancer, began)
        await show_refusals(balancer)
        await wait_until_ended(clients, seconds + sessions.PATIENCE)
        first = min((client.closed_at for client in clients if client.close), default=began) - began
        check(
            first >= DELAY,
            f"no session is closed before drain_delay is over, the first after {first:.2f} s",
        )
        check_closes(clients, SHUTDOWN, "clients")
        received = [close for pod in pods for close in pod.closes]
        check(
            received == [(sessions.AWAY, SHUTDOWN[1])] * len(clients),
            f"pods: {len(received)} sessions receive { ({*received}) }",
        )
        worst = unevenness(clients, seconds)
        check(worst <= EVEN, f"closes per second stay within ±{EVEN:.0%} of even")
        await check_exit(balancer, len(clients), lambda cut: cut == 0)
    fleet.stop(*pods)


async def show_delay(balancer, began):
    """During drain_delay a new client is still served."""
    await sessions.eventually_async(lambda: says(balancer, 503))
    say(
        f"         /readyz answers {await readiness(balancer)} {time.monotonic() - began:.3f} s "
        "after "
        "the signal"
    )
    late = await connect(balancer.address)
    check(
        late.status == 101 and await late.talks(),
        f"a new client is served: {late.status}, and an echo",
    )
    status, *_ = await sessions.call(balancer.address, "GET", "/")
    check(status == 200, f"and so is a plain request: {status}")
    check(sessions.are_undisturbed(balancer.clients), "no session has been closed so far")
    return [late]


async def says(balancer, status):
    return await readiness(balancer) == status


async def show_refusals(balancer):
    """After drain_delay new requests are refused."""
    await eventually(
        lambda: not sessions.are_undisturbed(balancer.clients), DELAY + sessions.PATIENCE
    )
    refused = await connect(balancer.address)
    wait = refused.answer and refused.answer.get("retry-after")
    check(
        refused.status == 503 and str(wait).isdigit(),
        f"after the first closes, a new client gets {refused.status} with Retry-After: {wait}",
    )
    status, head, _ = await sessions.call(balancer.address, "GET", "/")
    wait = head and head.get("retry-after")
    check(
        status == 503 and str(wait).isdigit(),
        f"a plain request gets {status} with Retry-After: {wait}",
    )
    check(await readiness(balancer) == 503, "/readyz still answers, 503")


async def show_at_once(count):
    say(f"control: {count} sessions, drain_time = 0s")
    pods = await sessions.start(PODS)
    async with fleet.balancing(
        pods, **settings(DRAIN_TIME="0s", SHUTDOWN_TIMEOUT="30s")
    ) as balancer:
        clients = await connect_many(balancer, count)
        send_signal(balancer)
        await wait_until_ended(clients)
        check_closes(clients, SHUTDOWN, "clients")
        worst = unevenness(clients, 5)
        check(worst > EVEN, f"closes per second do not stay within ±{EVEN:.0%} of even")
        await check_exit(balancer, count, lambda cut: cut == 0)
    fleet.stop(*pods)


async def show_killed(count):
    say(f"control: {count} sessions, SIGKILL")
    pods = await sessions.start(PODS)
    balancer = scripted.ConfiguredBalancer(fleet.static(pods))
    balancer.clients = []
    clients = await connect_many(balancer, count)
    send_signal(balancer, signal.SIGKILL)
    await wait_until_ended(clients)
    check(
        not any(client.close for client in clients),
        f"no client receives a Close: {sessions.count_endings(clients)}",
    )
    fleet.stop(*pods)


@contextlib.asynccontextmanager
async def start_few(count, mute=0, **server):
    """Starts a balancer with `count` clients and `mute` others that answer no Close. close_timeout
    is long.
    """
    pods = await sessions.start(PODS)
    drain = settings(**server)
    async with fleet.balancing(pods, 'close_timeout = "1h"', **drain) as balancer:
        await connect_many(balancer, count)
        if mute:
            await connect_many(balancer, mute, polite=False)
        yield balancer
    fleet.stop(*pods)


async def show_stragglers():
    say(
        "20 sessions, 3 of them with clients that answer no Close, SIGINT: drain_time = 1s, "
        "shutdown_timeout = 2s"
    )
    async with start_few(17, 3, DRAIN_TIME="1s", SHUTDOWN_TIMEOUT="2s") as balancer:
        send_signal(balancer, signal.SIGINT)
        await wait_until_ended(balancer.clients[:17])
        check_closes(balancer.clients[:17], SHUTDOWN, "the others")
        await check_exit(balancer, 20, lambda cut: cut == 3)


async def show_second_signal():
    say("40 sessions, a second SIGTERM within drain_delay = 1h")
    async with start_few(40, DRAIN_DELAY="1h") as balancer:
        send_signal(balancer)
        await sessions.eventually_async(lambda: says(balancer, 503))
        check(
            sessions.are_undisturbed(balancer.clients), "/readyz answers 503, no session is closed"
        )
        await show_hurry(balancer, lambda cut: cut == 40)
        check(
            not any(client.close for client in balancer.clients),
            f"clients receive {sessions.count_endings(balancer.clients)}",
        )
    say("40 sessions, a second SIGTERM after the first closes of drain_time = 20s")
    async with start_few(40, DRAIN_TIME="20s", SHUTDOWN_TIMEOUT="30s") as balancer:
        send_signal(balancer)
        await eventually(
            lambda: sum(client.ended.done() for client in balancer.clients) >= 3, sessions.PATIENCE
        )
        cut = await show_hurry(balancer, lambda cut: 0 < cut <= 37)
        without = sum(not client.close for client in balancer.clients)
        check(
            without <= cut,
            f"{without} of the clients receive no Close: "
            f"{sessions.count_endings(balancer.clients)}",
        )


async def show_hurry(balancer, cut):
    began = send_signal(balancer)
    count = await check_exit(balancer, 40, cut)
    say(f"         it exits {time.monotonic() - began:.2f} s after the second signal")
    await wait_until_ended(balancer.clients)
    return count
