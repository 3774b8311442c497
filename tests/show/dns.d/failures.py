"""Name servers that fail, deny, do not answer or do not run: the known pods are kept, and the
failure is reported.
"""

import urllib.request

import hosts
import zone
from evidence import fleet
from evidence.checks import check, say
from evidence.fleet import balancing, check_no_errors, connect_one
from evidence.scripted import eventually
from zone import a

NAME = "pods"


async def show(server):
    pods = await hosts.start("127.0.0.2", "127.0.0.3")
    service = hosts.service(server, f"{NAME}.test:{hosts.port_of(pods)}")
    failures = {
        "SERVFAIL": (server.fail, lambda: None, lambda: server.count("SERVFAIL") > 3),
        "silence": (server.freeze, server.resume, None),
        "a server that is down": (server.stop, server.start, None),
    }
    for name, (begin, end, seen) in failures.items():
        await show_kept(server, pods, service, name, begin, end, seen)
    await show_denied_once(server, pods, service)
    for name, records in (("NXDOMAIN", []), ("an empty answer", [f"{NAME} 0 TXT here"])):
        await show_denied(server, pods, service, name, records)
    await show_late_server(server, pods, service)
    await show_misspelt(server, pods, service)
    fleet.stop(*pods)
    await show_half(server)
    await show_second_server(server)


async def wait_for_failures(balancer, position):
    """Waits for log lines about a failed lookup, after line `said`."""

    def lines():
        return [text for text in balancer.lines[position:] if f"{NAME}.test" in text]

    await eventually(lines, 30)
    return lines()


async def show_kept(server, pods, service, name, begin, end, seen):
    first, second = pods
    say(f"{name}: the last valid addresses are kept")
    server.set(*a(NAME, first.name))
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, [first])
        clients = await fleet.connect_many(balancer, 5, lanes=1)
        talk = hosts.Talk(clients[0])
        position = len(balancer.lines)
        begin()
        try:
            lines = await wait_for_failures(balancer, position)
            check(bool(lines), f"the log reports it: {lines[:1]}")
            if seen:
                check(await eventually(seen), "several lookups have failed")
            (lookup,) = balancer.metrics()["lookups"]
            check(
                lookup["known"] == 1 and lookup["error"] and lookup["failingForMs"] >= 0,
                f"/balancer-metrics reports it: {lookup}",
            )
            check(hosts.accepting(balancer) == {first.address}, f"kept: {hosts.states(balancer)}")
            more = await fleet.connect_many(balancer, 10, lanes=1)
            check_no_errors(more, f"new sessions during {name}")
            await talk.check_undisturbed(f"during {name}")
        finally:
            end()
        server.set(*a(NAME, first.name, second.name))
        await hosts.wait_for_pods(balancer, pods, "it is over, and the zone has one more", 60)
        (lookup,) = balancer.metrics()["lookups"]
        check(
            lookup["known"] == 2 and "error" not in lookup,
            f"/balancer-metrics reports no failure: {lookup}",
        )
        later = await fleet.connect_many(balancer, 10, lanes=1)
        check(
            fleet.sessions_by_pod(later).get(second.name) == 10,
            f"10 clients: {fleet.sessions_by_pod(later)}",
        )
        await talk.check_undisturbed("afterwards")
        others = [text for text in balancer.lines[position:] if text not in lines]
        say(f"         log: {lines + others}")
        logged = [text for text in balancer.lines[position:] if f"{NAME}.test" in text]
        check(len(logged) <= 5, f"{len(logged)} lines about it, not one per lookup")
        await talk.stop()


async def show_denied_once(server, pods, service):
    say("NXDOMAIN for one lookup only has no effect; discovery_min_ttl = discovery_max_ttl = 2s")
    server.set(*a(NAME, pods[0].name))
    seconds = (
        'poll_interval = "100ms"\ndiscovery_min_ttl = "2s"\ndiscovery_max_ttl = '
        '"2s"\ncold_time = "0s"\n'
    )
    async with balancing(service, seconds) as balancer:
        await hosts.wait_for_pods(balancer, pods[:1])
        denied = server.count("NXDOMAIN")
        server.set()
        seen = await eventually(lambda: server.count("NXDOMAIN") > denied)
        server.set(*a(NAME, pods[0].name))
        asked = server.count("A")
        states = []

        def twice_more():
            states.append(hosts.states(balancer))
            return server.count("A") >= asked + 2

        await eventually(twice_more)
        kept = all(one.get(pods[0].address) not in (None, "draining") for one in states)
        check(
            seen and kept,
            f"denied {server.count('NXDOMAIN') - denied} times, and the pods are kept",
        )


async def show_denied(server, pods, service, name, records):
    say(f"{name}, repeatedly: there are no pods any more, live sessions continue")
    server.set(*a(NAME, *(pod.name for pod in pods)))
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, pods)
        clients = await fleet.connect_many(balancer, 10, lanes=1)
        talk = hosts.Talk(clients[0])
        position = len(balancer.lines)
        server.set(*records)
        await hosts.wait_for_pods(balancer, [], "no pod takes new sessions")
        states = hosts.states(balancer)
        check(set(states.values()) == {"draining"} and len(states) == 2, f"they drain: {states}")
        refused = await connect_one(balancer)
        check(
            refused.status == 503,
            f"a new client: {refused.status} {refused.body.decode().strip()!r}",
        )
        await talk.check_undisturbed(f"during {name}")
        check(all([await client.talks() for client in clients[1:]]), "all other sessions echo, too")
        lines = [text for text in balancer.lines[position:] if f"{NAME}.test" in text]
        check(bool(lines), f"the log reports it: {lines}")
        server.set(*a(NAME, *(pod.name for pod in pods)))
        await hosts.wait_for_pods(balancer, pods, "the records are back")
        check_no_errors(await fleet.connect_many(balancer, 10, lanes=1), "afterwards")
        await talk.check_undisturbed("afterwards")
        await talk.stop()


async def show_late_server(server, pods, service):
    say("the name server is down when the balancer starts")
    server.stop()
    server.set(*a(NAME, pods[0].name))
    async with balancing(service, hosts.QUICK) as balancer:
        with urllib.request.urlopen(f"http://{balancer.admin}/readyz", timeout=10) as answer:
            check(answer.status == 200, "it is ready nevertheless")
        client = await connect_one(balancer)
        check(client.status == 503, f"a client: {client.status} {client.body.decode().strip()!r}")
        lines = await wait_for_failures(balancer, 0)
        check(bool(lines), f"the log reports it: {lines[:1]}")
        server.start()
        await hosts.wait_for_pods(balancer, pods[:1], "the name server starts", 60)
        check_no_errors(await fleet.connect_many(balancer, 5, lanes=1), "then")
    server.freeze()
    say("  a balancer that starts and stops while the name server does not answer")
    async with balancing(service, hosts.QUICK) as balancer:
        client = await connect_one(balancer)
        check(client.status == 503, f"a client: {client.status} {client.body.decode().strip()!r}")
    server.resume()


async def show_misspelt(server, pods, service):
    say("a name that does not exist, from the start")
    server.set(*a("other", pods[0].name))
    async with balancing(service, hosts.QUICK) as balancer:
        lines = await wait_for_failures(balancer, 0)
        check(bool(lines), f"the log names the host: {lines[:1]}")
        client = await connect_one(balancer)
        check(client.status == 503, f"a client: {client.status} {client.body.decode().strip()!r}")


async def show_half(server):
    say(
        "A records are found, AAAA records get SERVFAIL: unknown addresses are kept, known ones "
        "are "
        "followed"
    )
    relay = await zone.Relay(server).start()
    pods = await hosts.start("127.0.0.2", "::1", "127.0.0.3")
    four, six, other = pods
    server.set(*a(NAME, four.name, six.name))
    service = hosts.service(relay, f"{NAME}.test:{hosts.port_of(pods)}")
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, [four, six])
        position = len(balancer.lines)
        relay.failing = {"AAAA"}
        server.set(*a(NAME, other.name))
        await hosts.wait_for_pods(balancer, [other, six], "another A record")
        failed = relay.failed
        await eventually(lambda: relay.failed > failed + 3)
        check(
            hosts.accepting(balancer) == {other.address, six.address},
            f"nothing changes: {hosts.states(balancer)}",
        )
        lines = await wait_for_failures(balancer, position)
        check(bool(lines), f"the log reports it: {lines}")
        relay.failing = set()
        await hosts.wait_for_pods(
            balancer, [other], "AAAA lookups work again: there are no records"
        )
    relay.transport.close()
    fleet.stop(*pods)


async def show_second_server(server):
    pods = await hosts.start("127.0.0.2")
    server.set(*a(NAME, pods[0].name))
    target = f"{NAME}.test:{hosts.port_of(pods)}"
    say("two name servers, the first one does not run")
    service = hosts.service(server, target, before=[f"127.0.0.1:{zone.free_port()}"])
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, pods, "the second one is asked", 30)
        check_no_errors(await fleet.connect_many(balancer, 5, lanes=1), "then")
        say(f"         log: {[text for text in balancer.lines if NAME in text]}")
    fleet.stop(*pods)
