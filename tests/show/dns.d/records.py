"""Record types: a hundred addresses, SRV with ports and priorities, A beside AAAA, aliases."""

import asyncio

import hosts
from evidence import fleet
from evidence.checks import check, say
from evidence.fleet import balancing, check_no_errors
from evidence.metrics_reader import check_valid
from evidence.scripted import eventually
from zone import a

NAME = "pods"
SERVICE = "_ws._tcp.pods"
MANY = 100


async def show(server):
    await show_many(server)
    await show_families(server)
    await show_alias(server)
    await show_services(server)


async def show_many(server):
    names = [f"127.0.1.{number}" for number in range(1, MANY + 1)]
    pods = await hosts.start(*names)
    say(f"{MANY} addresses: more than fit in a datagram")
    server.set(*a(NAME, *names))
    service = hosts.service(server, f"{NAME}.test:{hosts.port_of(pods)}")
    before = server.counts()
    calm = (
        'poll_interval = "2s"\ndiscovery_min_ttl = "500ms"\ndiscovery_max_ttl = '
        '"500ms"\ncold_time = "0s"\n'
    )
    async with balancing(service, calm) as balancer:
        await hosts.wait_for_pods(balancer, pods)
        now = server.counts()
        grown = {kind: now.get(kind, 0) - before.get(kind, 0) for kind in ("udp4", "tcp4")}
        check(grown["tcp4"] > 0, f"the query is repeated over TCP: {grown} queries")
        clients = await fleet.connect_many(balancer, 2 * MANY, lanes=4)
        check_no_errors(clients, f"{MANY} pods")
        hosts.even(clients, pods, f"{2 * MANY} clients")
        check_valid(balancer, f"{MANY} addresses of one URL")
        server.set(*a(NAME, *names[: MANY // 2]))
        await hosts.wait_for_pods(balancer, pods[: MANY // 2], "half of them leave")
        more = await fleet.connect_many(balancer, MANY, lanes=4)
        hosts.even(more, pods[: MANY // 2], f"{MANY} clients")
        talking = await asyncio.gather(*(client.talks() for client in clients))
        check(all(talking), f"all {len(talking)} earlier sessions echo")
    fleet.stop(*pods)


async def show_families(server):
    pods = await hosts.start("127.0.0.2", "::1")
    say("A and AAAA of one name")
    service = hosts.service(server, f"{NAME}.test:{hosts.port_of(pods)}")
    four, six = pods
    server.set(*a(NAME, four.name, six.name))
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, pods, "both")
        check(
            six.address in hosts.states(balancer),
            f"addresses as a URL has them: {sorted(hosts.states(balancer))}",
        )
        clients = await fleet.connect_many(balancer, 10, lanes=1)
        hosts.even(clients, pods, "10 clients")
        for left, gone in ((six, four), (four, six)):
            server.set(*a(NAME, left.name))
            await hosts.wait_for_pods(balancer, [left], f"{left.name} only")
            more = await fleet.connect_many(balancer, 4, lanes=1)
            check(
                fleet.sessions_by_pod(more) == {left.name: 4},
                f"4 clients: {fleet.sessions_by_pod(more)}",
            )
            check(all([await one.talks() for one in clients]), f"sessions on {gone.name} echo, too")
            server.set(*a(NAME, four.name, six.name))
            await hosts.wait_for_pods(balancer, pods, "both")
    fleet.stop(*pods)


async def show_alias(server):
    pods = await hosts.start("127.0.0.2", "127.0.0.3")
    say("a name that is an alias")
    service = hosts.service(server, f"{NAME}.test:{hosts.port_of(pods)}")
    server.set(f"{NAME} 0 CNAME blue", *a("blue", pods[0].name), *a("green", pods[1].name))
    async with balancing(service, hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, pods[:1], "→ blue")
        blue = await fleet.connect_many(balancer, 4, lanes=1)
        server.set(f"{NAME} 0 CNAME green", *a("blue", pods[0].name), *a("green", pods[1].name))
        await hosts.wait_for_pods(balancer, pods[1:], "→ green")
        green = await fleet.connect_many(balancer, 4, lanes=1)
        check(
            fleet.sessions_by_pod(green) == {pods[1].name: 4},
            f"new sessions: {fleet.sessions_by_pod(green)}",
        )
        check(all([await one.talks() for one in blue]), "sessions on blue echo")
    fleet.stop(*pods)


async def show_services(server):
    say("SRV: different ports, and priorities")
    # Two ports on one host, and a third pod on another host.
    first, second, third = [
        await fleet.Pod(name).start(0, host)
        for name, host in (
            ("one", "127.0.0.2"),
            ("two", "127.0.0.2"),
            ("spare", "127.0.0.3"),
        )
    ]
    ports = [pod.address.rpartition(":")[2] for pod in (first, second, third)]
    addresses = [*a("a", "127.0.0.2"), *a("b", "127.0.0.3")]

    def srv(*records):
        server.set(*addresses, *(f"{SERVICE} 0 SRV {record}" for record in records))

    both = f"10 1 {ports[0]} a", f"10 1 {ports[1]} a"
    spare = f"20 1 {ports[2]} b"
    srv(*both, spare)
    async with balancing(hosts.service(server, f"{SERVICE}.test", "srv"), hosts.QUICK) as balancer:
        await hosts.wait_for_pods(balancer, [first, second], "the lowest priority's")
        clients = await fleet.connect_many(balancer, 10, lanes=1)
        hosts.even(clients, [first, second], "10 clients")
        srv(both[0], spare)
        await hosts.wait_for_pods(balancer, [first], "one of them leaves")
        more = await fleet.connect_many(balancer, 4, lanes=1)
        check(
            fleet.sessions_by_pod(more) == {"one": 4}, f"4 clients: {fleet.sessions_by_pod(more)}"
        )
        srv(spare)
        await hosts.wait_for_pods(balancer, [third], "only the next priority is left")
        rest = await fleet.connect_many(balancer, 4, lanes=1)
        check(
            fleet.sessions_by_pod(rest) == {"spare": 4}, f"4 clients: {fleet.sessions_by_pod(rest)}"
        )
        check(all([await one.talks() for one in clients + more]), "sessions on the other pods echo")
        srv(*both, spare)
        await hosts.wait_for_pods(balancer, [first, second], "the lowest priority is back")
        server.set(
            *a("b", "127.0.0.3"), *(f"{SERVICE} 0 SRV {record}" for record in (both[0], spare))
        )
        say(f"         a target without an address: {await settled(server, balancer)}")
    fleet.stop(first, second, third)


async def settled(server, balancer):
    """Returns the states after a few more lookups."""
    asked = server.count("SRV")
    await eventually(lambda: server.count("SRV") > asked + 4)
    return hosts.states(balancer)
