"""One of four pods is taken out of service by an operator, by its own report, or by failing: its
sessions are closed evenly over the configured time, and no others.
"""

import asyncio
import collections
import contextlib

from evidence import fleet, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import (
    MOVED,
    all_talk,
    are_undisturbed,
    call_admin,
    check_closes,
    connect,
    connect_many,
    unevenness,
    wait_until_counted,
    wait_until_ended,
)

PODS = 4
EVEN = 0.2  # tolerance for the closes of each second
POLLED = 'poll_interval = "100ms"\ncold_time = "0s"\n'
REASON = "requested by an operator"
QUIET = 1  # seconds in which nothing may happen


async def show(short):
    count, seconds = (400, 3) if short else (800, 4)
    await show_drain(count, seconds)
    await show_no_time(count)
    await show_undrain(count, seconds)
    await show_report(count, seconds)
    await show_ejected("close")
    await show_ejected("leave")


@contextlib.asynccontextmanager
async def start_four(count, settings=""):
    """Starts four pods and a balancer. Yields the clients of the first pod and those of the
    others.
    """
    pods = await sessions.start(PODS)
    async with fleet.balancing(pods, f"{POLLED}{settings}") as balancer:
        await eventually(lambda: all("reported" in one for one in balancer.metrics()["services"]))
        clients = await connect_many(balancer, count)
        say(f"         by pod: {fleet.sessions_by_pod(clients)}")
        sessions_of_pod = [client for client in clients if client.pod == pods[0].name]
        others = [client for client in clients if client.pod != pods[0].name]
        yield balancer, pods, sessions_of_pod, others
    fleet.stop(*pods)


async def call_operator(balancer, pod, what):
    """Sends an operator's request about a pod and checks the answer. Returns the pod's entry in the
    metrics.
    """
    status, received = await call_admin(balancer, "POST", f"/api/backends/{pod.address}/{what}")
    state = [(one["address"], one["state"], one.get("reason")) for one in received]
    say(f"         POST /api/backends/{pod.address}/{what}: {status} {state}")
    draining = what.startswith("drain")
    wanted = state == [(pod.address, "draining", REASON)] if draining else state[0][1] != "draining"
    check(
        status == 200 and wanted, f"the pod is {state[0][1]}, and the answer contains no other pod"
    )
    shown = fleet.metrics_entry(balancer, pod)
    check(
        (shown["state"], shown.get("reason")) == state[0][1:],
        f"/balancer-metrics shows the same: {shown['state']}, {shown.get('reason')!r}",
    )


async def visit(balancer, pod, count=20):
    """Connects new clients. Returns how many of them reached this pod."""
    return sum(client.pod == pod.name for client in await connect_many(balancer, count))


async def check_not_used(balancer, pod):
    got = await visit(balancer, pod)
    check(got == 0, f"{got} of them on the draining pod")


async def check_used(balancer, pod):
    got = await visit(balancer, pod)
    check(got > 0, f"{got} of them on the pod, which is in use again")


async def check_moved_evenly(sessions_of_pod, others, pod, seconds):
    """Waits until all sessions of the pod have been closed, and checks when they were."""
    await wait_until_ended(sessions_of_pod, seconds + sessions.PATIENCE)
    check_closes(sessions_of_pod, MOVED, "clients of the pod")
    received = collections.Counter(pod.closes)
    check(
        received == {(sessions.AWAY, MOVED[1]): len(sessions_of_pod)},
        f"the pod receives {dict(received)}",
    )
    worst = unevenness(sessions_of_pod, seconds)
    check(worst <= EVEN, f"closes per second stay within ±{EVEN:.0%} of even")
    await stay(others, "of the other pods")


async def stay(clients, whose):
    """Checks that these clients received no Close and that their sessions echo."""
    check(
        are_undisturbed(clients) and await all_talk(clients),
        f"all {len(clients)} {whose} stay and echo: "
        f"{sum(not are_undisturbed([one]) for one in clients)} have been closed",
    )


async def show_drain(count, seconds):
    say(
        f"{count} sessions on {PODS} pods, an operator drains one of them over {seconds} s, and "
        "puts it back afterwards"
    )
    async with start_four(count) as (balancer, pods, sessions_of_pod, others):
        pod = pods[0]
        status, listed = await call_admin(balancer, "GET", "/api/sessions")
        by_pod = collections.Counter(one["address"] for one in listed)
        check(
            by_pod == {one.address: one.sessions() for one in pods},
            f"GET /api/sessions lists the same number: {status}",
        )
        await call_operator(balancer, pod, f"drain?over={seconds}s")
        await check_not_used(balancer, pod)
        await check_moved_evenly(sessions_of_pod, others, pod, seconds)
        await wait_until_counted(balancer)
        left = [
            one
            for one in (await call_admin(balancer, "GET", "/api/sessions"))[1]
            if one["address"] == pod.address
        ]
        check(not left, f"GET /api/sessions lists {len(left)} of the pod")
        await check_not_used(balancer, pod)
        await call_operator(balancer, pod, "undrain")
        await check_used(balancer, pod)


async def show_no_time(count):
    say("control: over=0s")
    async with start_four(count) as (balancer, pods, sessions_of_pod, others):
        await call_operator(balancer, pods[0], "drain?over=0s")
        await check_not_used(balancer, pods[0])
        await asyncio.sleep(QUIET)
        await stay(sessions_of_pod + others, "clients")


async def show_undrain(count, seconds):
    say(f"an operator drains a pod over {2 * seconds} s, and puts it back after the first closes")
    async with start_four(count) as (balancer, pods, sessions_of_pod, others):
        await call_operator(balancer, pods[0], f"drain?over={2 * seconds}s")
        await eventually(
            lambda: sum(client.ended.done() for client in sessions_of_pod) >= 5, sessions.PATIENCE
        )
        await call_operator(balancer, pods[0], "undrain")
        await check_stops(balancer, sessions_of_pod, 2 * seconds)
        await stay(others, "of the other pods")
        await check_used(balancer, pods[0])


async def check_stops(balancer, sessions_of_pod, seconds):
    """Checks that moving has stopped, although it would have taken much longer."""
    # The last request stops the moving, so no Close is decided on afterwards.
    await call_admin(balancer, "GET", "/api/sessions")
    talk = await asyncio.gather(*(client.talks() for client in sessions_of_pod))
    left = [client for client, talks in zip(sessions_of_pod, talk) if talks]
    await asyncio.sleep(QUIET)
    more = QUIET / seconds * len(sessions_of_pod)
    check(
        left,
        f"{len(sessions_of_pod) - len(left)} of {len(sessions_of_pod)} have been moved; "
        f"{more:.0f} more would have been in {QUIET} s",
    )
    await stay(left, "clients of the pod")


async def show_report(count, seconds):
    say(f"a pod reports draining: true, pod_drain_time = {seconds}s; and later false")
    async with start_four(count, f'pod_drain_time = "{seconds}s"') as (
        balancer,
        pods,
        sessions_of_pod,
        others,
    ):
        await report(balancer, pods[0])
        await check_moved_evenly(sessions_of_pod, others, pods[0], seconds)
        await check_not_used(balancer, pods[0])
        await take_back(balancer, pods[0])
    say(f"pod_drain_time = {2 * seconds}s, and it reports draining: false after the first closes")
    async with start_four(count, f'pod_drain_time = "{2 * seconds}s"') as (
        balancer,
        pods,
        sessions_of_pod,
        others,
    ):
        await report(balancer, pods[0])
        await eventually(
            lambda: sum(client.ended.done() for client in sessions_of_pod) >= 5, sessions.PATIENCE
        )
        await take_back(balancer, pods[0])
        await check_stops(balancer, sessions_of_pod, 2 * seconds)
        await stay(others, "of the other pods")
    say("control: pod_drain_time = 0s")
    async with start_four(count) as (balancer, pods, sessions_of_pod, others):
        await report(balancer, pods[0])
        await check_not_used(balancer, pods[0])
        await asyncio.sleep(QUIET)
        await stay(sessions_of_pod + others, "clients")


async def report(balancer, pod):
    pod.extra = {"draining": True}
    shown = await fleet.wait_for_state(balancer, pod, "draining")
    check(shown["state"] == "draining", f"the pod is {shown['state']}, {shown.get('reason')!r}")


async def take_back(balancer, pod):
    pod.extra = {}
    await eventually(lambda: fleet.metrics_entry(balancer, pod)["state"] != "draining")
    await check_used(balancer, pod)


async def show_ejected(on_ejected):
    say(
        "a pod refuses connections and so fails its polls, its sessions continue; on_ejected = "
        f'"{on_ejected}"'
    )
    async with start_four(40, f'on_ejected = "{on_ejected}"') as (
        balancer,
        pods,
        sessions_of_pod,
        others,
    ):
        pods[0].refuse()
        shown = await fleet.wait_for_state(balancer, pods[0], "ejected")
        check(shown["state"] == "ejected", f"the pod is {shown['state']}, {shown.get('reason')!r}")
        if on_ejected == "close":
            await wait_until_ended(sessions_of_pod)
            check_closes(sessions_of_pod, MOVED, "its clients")
            back = await connect(balancer.address)
            balancer.clients.append(back)
            check(
                back.pod not in (None, pods[0].name), f"a client that reconnects is at {back.pod}"
            )
            await stay(others, "of the other pods")
        else:
            await asyncio.sleep(QUIET)
            await stay(sessions_of_pod + others, "clients")
