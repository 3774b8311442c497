"""Pods that are added, removed, and added again, within the grace period and after it."""

import hosts
from evidence import fleet, scripted
from evidence.checks import check, say
from evidence.fleet import balancing, check_no_errors
from evidence.metrics_reader import check_valid
from evidence.scripted import eventually
from zone import a

NAME = "pods"
OWN_COUNTS = 'metric_path = "none"\n'


async def show(server):
    pods = await hosts.start("127.0.0.2", "127.0.0.3", "127.0.0.4")
    service = hosts.service(server, f"{NAME}.test:{hosts.port_of(pods)}")
    await show_added_and_removed(server, pods, service)
    await show_order(server, pods, service)
    await show_return(server, pods[:2], service)
    for grace in ("10m", "0s"):
        await show_grace(server, pods[0], grace)
    await show_forgotten(server, pods[:2], service)
    fleet.stop(*pods)


async def show_added_and_removed(server, pods, service):
    say("a pod is added, another is removed, and a removed pod stays until its last session ends")
    first, second, third = pods
    server.set(*a(NAME, first.name, second.name))
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, pods[:2])
        clients = await fleet.connect_many(balancer, 20, lanes=1)
        hosts.even(clients, pods[:2], "20 clients")
        talks = {}
        for name in (first.name, second.name):
            talks[name] = hosts.Talk(next(client for client in clients if client.pod == name))

        server.set(*a(NAME, first.name, second.name, third.name))
        await hosts.wait_for_pods(balancer, pods, "added")
        new = await fleet.connect_many(balancer, 10, lanes=1)
        check(
            fleet.sessions_by_pod(new) == {third.name: 10},
            f"the next 10 clients connect to the new pod: {fleet.sessions_by_pod(new)}",
        )
        for name, talk in talks.items():
            await talk.check_undisturbed(f"{name}, a pod was added")

        server.set(*a(NAME, second.name, third.name))
        await hosts.wait_for_pods(balancer, pods[1:], f"{first.name} is removed")
        state = hosts.entries(balancer).get(first.address)
        check(state and state["state"] == "draining", f"the removed pod drains: {state}")
        attempts = len(first.attempts)
        late = await fleet.connect_many(balancer, 20, lanes=1)
        check_no_errors(late, "after the removal")
        hosts.even(late, pods[1:], "none of the next 20 clients goes there")
        check(len(first.attempts) == attempts, "no handshake is sent to it")
        check_valid(balancer, "while it drains")
        check(first.sessions == 10, f"its {first.sessions} sessions continue")
        for name, talk in talks.items():
            await talk.check_undisturbed(f"{name}, {first.name} was removed")
        old = [
            client
            for client in clients
            if client.pod == first.name and client is not talks[first.name].client
        ]
        check(
            all([await client.talks() for client in old]),
            f"each of the other {len(old)} sessions echoes",
        )
        for talk in talks.values():
            await talk.stop()
        for client in old:
            client.leave()
        left = await eventually(lambda: first.sessions == 0)
        check(left, "the sessions end when their clients leave")
        lines = [text for text in balancer.lines if f"{NAME}.test" in text]
        check(
            any("3 pods" in text for text in lines),
            f"the log states the number of addresses: {lines}",
        )


async def show_order(server, pods, service):
    say("the same addresses in another order, one of them twice: nothing changes")
    first, second, third = pods
    server.set(*a(NAME, first.name, second.name, third.name))
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, pods)
        clients = await fleet.connect_many(balancer, 9, lanes=1)
        position = len(balancer.lines)
        asked = server.count("A")
        server.set(*a(NAME, third.name, first.name, second.name), *a(NAME, first.name))
        await eventually(lambda: server.count("A") > asked + 3)
        check(len(balancer.lines) == position, f"nothing is logged: {balancer.lines[position:]}")
        hosts.even(clients + await fleet.connect_many(balancer, 9, lanes=1), pods, "18 clients")


async def show_return(server, pods, service):
    """Reports are off, so new sessions show whether the balancer kept its own counts."""
    say(
        "a pod leaves with 10 live sessions and comes back; the balancer knows its load only "
        "from its own "
        "sessions"
    )
    stays, leaves = pods
    server.set(*a(NAME, stays.name, leaves.name))
    async with balancing(service, f"{hosts.QUICK}{OWN_COUNTS}") as balancer:
        await hosts.wait_for_pods(balancer, pods)
        clients = await fleet.connect_many(balancer, 20, lanes=1)
        hosts.even(clients, pods, "20 clients")
        server.set(*a(NAME, stays.name))
        await hosts.wait_for_pods(balancer, [stays], f"{leaves.name} is removed")
        more = await fleet.connect_many(balancer, 10, lanes=1)
        check(
            fleet.sessions_by_pod(more) == {stays.name: 10},
            f"10 more: {fleet.sessions_by_pod(more)}",
        )
        server.set(*a(NAME, stays.name, leaves.name))
        await hosts.wait_for_pods(balancer, pods, f"{leaves.name} is back")
        back = await fleet.connect_many(balancer, 20, lanes=1)
        # If the counts were lost, all 20 would connect to this pod.
        counts, kept = fleet.sessions_by_pod(back), {stays.name: 5, leaves.name: 15}
        check(
            counts == kept,
            f"its counts are kept: to reach 25 each, 20 clients are distributed as {counts}",
        )
        check(
            all([await client.talks() for client in clients + more + back]), "every session echoes"
        )


class Unavailable(fleet.Pod):
    """Answers every handshake with 503."""

    async def handshake(self, connection, _):
        await connection.send(scripted.answer(503))


async def show_grace(server, healthy, grace):
    """A pod without sessions: only its health is remembered."""
    say(
        f"an ejected pod leaves and comes back, discovery_grace = {grace}, eject_time = "
        f"{fleet.LONG}s"
    )
    sick = await Unavailable("127.0.0.9").start(int(hosts.port_of([healthy])), "127.0.0.9")
    service = hosts.service(server, f"{NAME}.test:{hosts.port_of([healthy])}")
    settings = (
        f'{hosts.QUICK}{OWN_COUNTS}eject_time = "{fleet.LONG}s"\ndiscovery_grace = "{grace}"\n'
    )
    both = a(NAME, healthy.name, sick.name)
    server.set(*both)
    async with balancing(service, settings) as balancer:
        await hosts.wait_for_pods(balancer, [healthy, sick])
        check_no_errors(await fleet.connect_many(balancer, 12, lanes=1), "12 clients")
        state = await eventually(
            lambda: (now := hosts.states(balancer)[sick.address]) == "ejected" and now
        )
        check(state, f"{sick.name} is ejected, {len(sick.attempts)} attempts")
        for records in (a(NAME, healthy.name), both):
            asked = server.count("A")
            server.set(*records)
            await eventually(lambda asked=asked: server.count("A") > asked + 2)
            say(f"         in the zone: {len(records)}; {hosts.states(balancer)}")
        tried = len(sick.attempts)
        check_no_errors(await fleet.connect_many(balancer, 12, lanes=1), "12 clients")
        more = len(sick.attempts) - tried
        if grace == "0s":
            check(more > 0, f"control: its ejection is forgotten, {more} more attempts")
        else:
            check(more == 0, f"it is still ejected, {more} more attempts")
    fleet.stop(sick)


async def show_forgotten(server, pods, service):
    say(
        "a pod leaves without sessions, is forgotten after discovery_grace = 300ms, and comes "
        "back as a new one"
    )
    stays, leaves = pods
    server.set(*a(NAME, stays.name, leaves.name))
    warming = hosts.QUICK.replace("0s", "1m")
    async with balancing(service, f'{warming}discovery_grace = "300ms"\n') as balancer:
        await hosts.wait_for_pods(balancer, pods)
        server.set(*a(NAME, stays.name))
        await hosts.wait_for_pods(balancer, [stays], f"{leaves.name} is removed")
        check(await hosts.gone(balancer, leaves), f"it is forgotten: {hosts.states(balancer)}")
        server.set(*a(NAME, stays.name, leaves.name))
        await hosts.wait_for_pods(balancer, pods, "back")
        states = await eventually(
            lambda: (now := hosts.states(balancer))[leaves.address] == "cold" and now
        )
        check(states, f"as a new one: {states or hosts.states(balancer)}")
