"""Each way to fail before the 101, beside two healthy pods.

Pods have no metric route here, so the failing one always seems to have the fewest sessions. Only
failed handshakes can stop the balancer from choosing it for every client.
"""

import asyncio

import kinds
from evidence import fleet
from evidence.checks import check, say
from evidence.fleet import (
    balancing,
    check_no_errors,
    connect_one,
    errors,
    latencies,
    metrics_entry,
    print_row,
)

CLIENTS = 200
WARM_UP = (
    60  # sessions after which the failing pod seems emptiest even with a handshake in every lane
)
LANES = 2  # few, so that clients wait for the balancer and not for each other
WAITING = 16  # for cases that mostly wait for a time-out
EJECT_AFTER = 3
SETTINGS = 'metric_path = "none"\nread_timeout = "1s"\nconnect_timeout = "1s"\n'
# For many clients at once: healthy pods must answer in time even on a busy machine.
PATIENT = 'metric_path = "none"\nread_timeout = "5s"\nconnect_timeout = "5s"\n'
BRIEF = 'metric_path = "none"\nread_timeout = "500ms"\nconnect_timeout = "500ms"\n'
KINDS = (
    kinds.Silent,
    kinds.Unavailable,
    kinds.Closing,
    kinds.Garbage,
    kinds.Refused,
    kinds.WrongAccept,
    kinds.Unreached,
)


async def attempts(balancer, pod):
    """Returns the number of handshakes tried at a pod; from the log, if the pod cannot know it."""
    if not isinstance(pod, kinds.Refused):
        return len(pod.attempts)
    counts = []
    # The balancer's output may still be on the way: read until no more comes.
    while len(counts) < 3 or len({*counts[-3:]}) > 1:
        counts.append(
            sum(f"{pod.address} failed: cannot be reached" in text for text in balancer.lines)
        )
        await asyncio.sleep(0.05)
    return counts[-1]


async def show():
    say(f"pods that fail before the 101, each beside two healthy ones; {CLIENTS} clients each time")
    say(f"  {SETTINGS.replace(chr(10), ', ')}")
    healthy = [await fleet.Pod(f"healthy-{number}").start() for number in (1, 2)]
    rows = [await show_direct(healthy)]
    for kind in KINDS:
        pod = kind() if issubclass(kind, kinds.Refused) else kind("failing")
        await pod.start()
        say(f"a pod that {kind.__doc__}")
        await show_ejected(pod, healthy)
        rows.append(await show_never_ejected(pod, healthy))
        await show_no_retries(pod, healthy)
        fleet.stop(pod)
    say("latency of a handshake that failed over, in ms, beside that of a direct one:")
    print_row("", "clients", "median", "p99", "max", "added")
    for name, times in rows:
        added = fleet.percentile(times, 0.5) - fleet.percentile(rows[0][1], 0.5)
        print_row(name, len(times), *latencies(times), f"{1000 * added:.1f}")
    await show_storm(healthy)
    await show_deadline()
    fleet.stop(*healthy)


async def show_direct(healthy):
    async with balancing(healthy, SETTINGS) as balancer:
        await fleet.connect_many(balancer, WARM_UP)
        clients = await fleet.connect_many(balancer, CLIENTS, LANES)
        check_no_errors(clients, "healthy pods only")
    return "direct", [client.took for client in clients]


async def show_ejected(pod, healthy):
    """Connects one client after the other until the pod is ejected, then all the others."""
    settings = f'{SETTINGS}eject_after = {EJECT_AFTER}\neject_time = "{fleet.LONG}s"\n'
    async with balancing([pod, *healthy], settings) as balancer:
        first = []
        while metrics_entry(balancer, pod)["state"] != "ejected" and len(first) < 100:
            first.append(await connect_one(balancer))
        tried = await attempts(balancer, pod)
        check_no_errors(first, "one client after the other until it is ejected")
        check(tried == EJECT_AFTER, f"ejected after {tried} attempts, eject_after = {EJECT_AFTER}")
        shown = metrics_entry(balancer, pod)
        say(f"         {shown}")
        check(shown.get("reason"), f"/balancer-metrics shows the reason: {shown.get('reason')}")
        left = shown.get("ejectedForMs", -1)
        check(
            0 < left <= 1200 * fleet.LONG,
            f"and the time left, {left} ms of {fleet.LONG} s and up to 20 %",
        )
        check(bool(logged_line := logged(balancer, pod)), f"the log reports it: {logged_line}")
        rest = await fleet.connect_many(balancer, CLIENTS)
        check_no_errors(rest, "afterwards")
        further = await attempts(balancer, pod) - tried
        check(further == 0, f"attempts in the meantime: {further}")
        counts = fleet.sessions_by_pod(first + rest)
        check(
            max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 2,
            f"spread: {counts}",
        )


def logged(balancer, pod):
    """Returns the log line about its ejection."""
    return next((text for text in balancer.lines if pod.address in text and "eject" in text), None)


async def show_never_ejected(pod, healthy):
    async with balancing([pod, *healthy], f"{SETTINGS}eject_after = 0\n") as balancer:
        await fleet.connect_many(balancer, WARM_UP, WAITING)
        before = await attempts(balancer, pod)
        clients = await fleet.connect_many(balancer, CLIENTS, WAITING if pod.waits else LANES)
        check_no_errors(clients, "control, eject_after = 0")
        tried = await attempts(balancer, pod) - before
        check(
            tried == CLIENTS,
            f"control, eject_after = 0: each client is sent to it first: {tried} attempts",
        )
        state = metrics_entry(balancer, pod)["state"]
        check(
            state != "ejected" and not logged(balancer, pod),
            f"control, eject_after = 0: it is {state}",
        )
    return f"a pod that {pod.__doc__.partition(':')[0]}", [client.took for client in clients]


async def show_no_retries(pod, healthy):
    async with balancing([pod, *healthy], f"{SETTINGS}eject_after = 0\nretries = 0\n") as balancer:
        clients = await fleet.connect_many(balancer, WARM_UP)
        wrong = errors(clients)
        statuses = sorted({client.status for client in wrong})
        check(
            len(wrong) >= WARM_UP // 3,
            f"control, retries = 0: {len(wrong)} of {len(clients)} receive {statuses}",
        )
        say(f"         {wrong[-1].body.decode(errors='replace').strip() if wrong else ''}")


async def show_storm(healthy):
    """Connects all clients at once, so the number of attempts before the ejection is not exact."""
    pod = await kinds.Silent("failing").start()
    settings = f'{PATIENT}eject_after = {EJECT_AFTER}\neject_time = "{fleet.LONG}s"\n'
    say(f"{CLIENTS} clients at once, a pod that {pod.__doc__}")
    async with balancing([pod, *healthy], settings) as balancer:
        clients = await fleet.connect_many(balancer, CLIENTS, CLIENTS)
        check_no_errors(clients, "clients at once")
        say(f"         {len(pod.attempts)} were sent to it before it was ejected")
        check(metrics_entry(balancer, pod)["state"] == "ejected", "it is ejected")
    fleet.stop(pod)


async def show_deadline():
    """All attempts of a handshake share one deadline."""
    pods = [await kinds.Silent(f"silent-{number}").start() for number in range(3)]
    say(
        "three pods that never answer, read_timeout = 500ms, handshake_timeout = 1200ms, retries "
        "= 2"
    )
    settings = f'{BRIEF}handshake_timeout = "1200ms"\n'
    async with balancing(pods, settings) as balancer:
        client = await connect_one(balancer)
        shown = client.body.decode(errors="replace").strip()
        check(client.status == 504, f"{client.status} after {client.took:.2f} s: {shown}")
        tried = sorted(len(pod.attempts) for pod in pods)
        check(tried == [1, 1, 1], f"each was tried once: {tried}")
        say(f"         without the shared deadline it would have taken {3 * 0.5} s")
    fleet.stop(*pods)
