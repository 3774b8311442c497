"""The end of an ejection: probes with growing intervals, a pod that recovers, and pods that all
fail.
"""

import asyncio
import itertools
import time

import kinds
from evidence import fleet
from evidence.checks import check, say
from evidence.fleet import balancing, check_no_errors, errors, metrics_entry
from evidence.scripted import eventually

RATE = 50  # clients per second: a probe waits for the next client
QUIET = 0.25  # seconds without an attempt end a round; the shortest ejection is 0.4 s
ROUNDS = 6
GROWING = (1.2, 3.3)  # doubling, with a jitter of 20 % on both, and the pace of the clients
HEALTHY = 9
FAIR = 1 / (HEALTHY + 1)
HELD = 200  # added to the reports of healthy pods: more than the number of clients
COLD_RATE = 60
MEASURED = 150  # arrivals after its return: 2.5 s of a cold time of 5 s


async def show():
    healthy = [await fleet.Pod(f"healthy-{number}").start() for number in (1, 2)]
    for one in healthy:
        one.others = HELD
    say("a pod that answers 503: eject_after = 3, eject_time = 500ms")
    await show_doubling(healthy, "4s")
    await show_doubling(healthy, "500ms", is_control=True)
    fleet.stop(*healthy)
    say(
        f"a pod that recovers, beside {HEALTHY} that report {HELD} each; {COLD_RATE} clients/s, "
        f"fair share {FAIR:.0%}"
    )
    await show_healed("5s")
    await show_healed("0s", is_control=True)
    await show_all_failed()


async def known(balancer):
    """Waits until every pod has reported. Then the failing one, which reports 0, is the first
    choice of every client.
    """
    await eventually(lambda: all("reported" in one for one in balancer.metrics()["services"]))


def rounds(times, quiet=QUIET):
    """Groups attempts as (first, last, count). Attempts less than `quiet` apart are one round."""
    found = []
    for moment in times:
        if found and moment - found[-1][1] < quiet:
            found[-1][1:] = [moment, found[-1][2] + 1]
        else:
            found.append([moment, moment, 1])
    return found


async def visit(balancer, pod):
    """Connects and disconnects clients at a steady pace until the pod has had this number of
    rounds.
    """
    clients = []
    while len(rounds(pod.attempts)) < ROUNDS and len(clients) < 60 * RATE:
        began = time.monotonic()
        client = await fleet.connect_one(balancer)
        client.leave()
        clients.append(client)
        await asyncio.sleep(max(0.0, began + 1 / RATE - time.monotonic()))
    return clients


async def show_doubling(healthy, longest, is_control=False):
    pod = await kinds.Unavailable("failing").start()
    settings = f'poll_interval = "200ms"\neject_time = "500ms"\neject_time_max = "{longest}"\n'
    name = f"{'control, ' if is_control else ''}eject_time_max = {longest}"
    async with balancing([pod, *healthy], settings) as balancer:
        await known(balancer)
        clients = await visit(balancer, pod)
    check_no_errors(clients, name)
    found = rounds(pod.attempts)
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(found)]
    ratios = [later / earlier for earlier, later in itertools.pairwise(gaps)]
    say(
        f"         attempts per round {[count for _, _, count in found]}, of {len(clients)} clients"
    )
    say(f"         seconds between rounds {[round(gap, 2) for gap in gaps]}")
    say(f"         each divided by the one before {[round(one, 2) for one in ratios]}")
    grows = len(ratios) >= 3 and all(GROWING[0] <= one <= GROWING[1] for one in ratios[:3])
    grows = grows and len(found) == ROUNDS
    check(
        grows != is_control,
        f"{name}: the time {'does not double' if is_control else 'doubles up to it'}",
    )
    check(found[0][2] == 3, f"{name}: the first ejection takes {found[0][2]} failures in a row")
    check(all(count == 1 for *_, count in found[1:]), f"{name}: then one probe at a time")
    fleet.stop(pod)


async def show_healed(cold, is_control=False):
    pod = await kinds.Unavailable("failing").start()
    healthy = [await fleet.Pod(f"healthy-{number}").start() for number in range(HEALTHY)]
    for one in healthy:
        one.others = HELD
    settings = f'poll_interval = "200ms"\neject_time = "500ms"\ncold_time = "{cold}"\n'
    name = f"{'control, ' if is_control else ''}cold_time = {cold}"
    async with balancing([pod, *healthy], settings) as balancer:
        await known(balancer)
        # At the same pace as afterwards, because shares are relative to it.
        check_no_errors(
            await fleet.connect_paced(balancer, 3 * COLD_RATE, COLD_RATE),
            f"{name}, before it recovers",
        )
        tried = len(pod.attempts)
        pod.ill = False
        began = []
        while not pod.sessions and len(began) < 1000:
            began += await fleet.connect_paced(balancer, 2, COLD_RATE)
        check(
            pod.sessions > 0,
            f"{name}: it is used again, attempts since it has recovered: "
            f"{len(pod.attempts) - tried}",
        )
        state = metrics_entry(balancer, pod)["state"]
        clients = await fleet.connect_paced(balancer, MEASURED, COLD_RATE)
        check_no_errors(began + clients, name)
        share = sum(client.pod == pod.name for client in clients) / MEASURED
        share_of_clients = (
            f"{share:.0%} of the next {MEASURED}, {share / FAIR:.1f} times its fair share"
        )
        if is_control:
            check(share > 5 * FAIR, f"{name}: it is {state} and gets {share_of_clients}")
        else:
            check(state == "cold", f"{name}: it is {state}")
            check(
                FAIR / 2 <= share <= 3.8 * FAIR,
                f"{name}: it gets {share_of_clients}, about 3 at most",
            )
    fleet.stop(pod, *healthy)


async def show_all_failed():
    """More pods than a handshake has attempts, so that the recovered one is not found by trying
    all.
    """
    say("six pods that all answer 503: eject_after = 3, eject_time = 600s, retries = 2")
    pods = [await kinds.Unavailable(f"failing-{number}").start() for number in range(6)]
    settings = f'metric_path = "none"\neject_time = "{fleet.LONG}s"\n'
    async with balancing(pods, settings) as balancer:
        first = await fleet.connect_many(balancer, 40, lanes=4)
        answers = {(client.status, client.body) for client in first}
        check(answers == {(503, b"not now\n")}, f"clients get the last pod's own answer: {answers}")
        states = [metrics_entry(balancer, pod) for pod in pods]
        say(f"         {states[0]}")
        check(
            {one["state"] for one in states} == {"ejected"},
            f"all are ejected: {[one['state'] for one in states]}",
        )
        before = [len(pod.attempts) for pod in pods]
        await fleet.connect_many(balancer, 40, lanes=4)
        more = sum(len(pod.attempts) for pod in pods) - sum(before)
        check(more == 120, f"they are tried nevertheless: {more} attempts for 40 clients")
        said = [text for text in balancer.lines if "all pods are ejected" in text]
        check(bool(said), f"the log reports it: {said[:1]}")
        check(len(said) == 1, f"once, not for every client: {len(said)} time(s) so far")

        pods[1].ill = False
        found = []
        while not found or (errors(found[-1:]) and len(found) < 50):
            found.append(await fleet.connect_one(balancer))
        check(not errors(found[-1:]), f"one of them recovers: client {len(found)} is served")
        later = await fleet.connect_many(balancer, 60, lanes=4)
        check_no_errors(later, "then, long before the ejections end")
        state = await eventually(
            lambda: (now := metrics_entry(balancer, pods[1]))["state"] != "ejected" and now, 2
        )
        check(
            bool(state),
            f"it is {state['state'] if state else 'still ejected, with sessions on it'}",
        )
    fleet.stop(*pods)
