"""The interval of lookups: the TTL of the records, within discovery_min_ttl and
discovery_max_ttl.
"""

import time

import hosts
from evidence import fleet
from evidence.checks import check, say
from evidence.fleet import balancing
from evidence.scripted import eventually
from zone import a

NAME = "pods"


async def show(server):
    pods = await hosts.start("127.0.0.2", "127.0.0.3")
    service = hosts.service(server, f"{NAME}.test:{hosts.port_of(pods)}")
    say("queries of type A at the name server, for 5 lookups or 4 s")
    for ttl, least, most, expected, what in (
        (0, "1s", "30s", 1, "discovery_min_ttl holds"),
        (0, "100ms", "30s", 0.1, "control, a smaller one"),
        (3600, "100ms", "1s", 1, "discovery_max_ttl holds"),
        (3600, "100ms", "1h", 3600, "control, a greater one"),
        (1, "100ms", "1h", 1, "between them the record's own"),
        (2, "100ms", "1h", 2, "between them the record's own"),
    ):
        await show_rate(server, pods, service, ttl, least, most, expected, what)
    await show_shortened(server, pods, service)
    fleet.stop(*pods)


async def show_rate(server, pods, service, ttl, least, most, expected, what):
    server.set(*a(NAME, pods[0].name, ttl=ttl))
    bounds = f'discovery_min_ttl = "{least}"\ndiscovery_max_ttl = "{most}"\n'
    async with balancing(service, bounds) as balancer:
        await hosts.wait_for_pods(balancer, pods[:1], f"TTL {ttl}, {least} to {most}")
        before, began = server.count("A"), time.monotonic()
        await eventually(lambda: server.count("A") >= before + 5, 4)
        asked, took = server.count("A") - before, time.monotonic() - began
    # One more than fits, because the first may be due at any moment; 20 % are for jitter.
    fits = took / (0.8 * expected) + 1
    enough = asked >= min(1, int(took / (2 * expected)))
    check(
        enough and asked <= fits, f"{what}: {asked} lookups in {took:.1f} s, {expected:g} s apart"
    )


async def show_shortened(server, pods, service):
    """The TTL of the zone changes while the balancer runs."""
    say(
        "the zone's TTL changes: 1 h, then 0; discovery_max_ttl = 1s, so the first change is "
        "seen in time"
    )
    server.set(*a(NAME, pods[0].name, ttl=3600))
    async with balancing(
        service, 'discovery_min_ttl = "100ms"\ndiscovery_max_ttl = "1s"\n'
    ) as balancer:
        await hosts.wait_for_pods(balancer, pods[:1])
        server.set(*a(NAME, pods[1].name, ttl=0))
        await hosts.wait_for_pods(balancer, pods[1:], "a record with a TTL of 1 h is replaced")
        before, began = server.count("A"), time.monotonic()
        await eventually(lambda: server.count("A") >= before + 10)
        took = time.monotonic() - began
        check(server.count("A") >= before + 10, f"then 10 lookups take {took:.1f} s")
