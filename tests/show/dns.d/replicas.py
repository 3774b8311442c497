"""`replicas = "dns:NAME"`: the number of addresses of a name is the number of balancers that share
the pods.
"""

from evidence import fleet
from evidence.checks import check, say
from evidence.fleet import balancing
from evidence.scripted import eventually
from zone import a

NAME = "balancers"


async def show(server):
    """Without a report, the estimate is the number of own sessions times the number of replicas."""
    say('replicas = "dns:balancers.test"; one pod without a metric route, 4 sessions')
    pod = await fleet.Pod("pod").start()
    settings = (
        f'metric_path = "none"\nreplicas = "dns:{NAME}.test"\nnameservers = ["{server.address}"]\n'
        'discovery_min_ttl = "100ms"\ndiscovery_max_ttl = "200ms"\n'
    )
    server.set(*a(NAME, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
    async with balancing([pod], settings) as balancer:
        clients = await fleet.connect_many(balancer, 4, lanes=1)

        async def counted(wanted, what):
            found = await eventually(
                lambda: fleet.metrics_entry(balancer, pod)["connections"] == 4 * wanted
            )
            now = fleet.metrics_entry(balancer, pod)
            check(
                found,
                f"{what}: {now['connections']} connections estimated from {now['own']} own "
                "sessions",
            )

        await counted(3, "three addresses")
        server.set(*a(NAME, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"))
        await counted(5, "five")
        said = len(balancer.lines)
        failed = server.count("SERVFAIL")
        server.fail()
        await eventually(lambda: server.count("SERVFAIL") > failed + 3)
        await counted(5, "SERVFAIL: the last count is kept")
        lines = [text for text in balancer.lines[said:] if f"{NAME}.test" in text]
        check(bool(lines), f"the log reports it: {lines}")
        server.set(*a(NAME, "10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"))
        await counted(2, "two, each with an address of either kind")
        server.set()
        denied = server.count("NXDOMAIN")
        await eventually(lambda: server.count("NXDOMAIN") > denied + 6)
        await counted(1, "none: one at least, this one")
        check(all([await client.talks() for client in clients]), "the sessions echo all the time")
    async with balancing([pod], 'metric_path = "none"\nreplicas = 1\n') as balancer:
        await fleet.connect_many(balancer, 4, lanes=1)
        check(
            fleet.metrics_entry(balancer, pod)["connections"] == 4,
            "control, replicas = 1: 4 connections",
        )
    fleet.stop(pod)
