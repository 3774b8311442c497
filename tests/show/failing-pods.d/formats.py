"""Reports in three formats: each controls where sessions go."""

import json

from evidence import fleet, scripted
from evidence.checks import check, say
from evidence.fleet import balancing, metrics_entry, wait_for_state
from evidence.scripted import eventually

POLLED = 'poll_interval = "100ms"\n'
POINTERS = """
metric_count = "/stats/a~1b/0/open"
metric_max = "/limits/m~0n"
metric_weight = "/weights/mine"
metric_draining = "/state/leaving"
"""
PROMETHEUS = """
metric_format = "prometheus"
metric_name = "chat_connections"
metric_labels = ["app=chat", "kind=websocket"]
"""


async def pods_of(*names, kind=fleet.Pod):
    return [await kind(name).start() for name in names]


async def known(balancer, pods, **wanted):
    """Waits until the metrics have `wanted` for the first pod. A weight of 1 is not shown."""

    def right():
        entry = {"weight": 1, **metrics_entry(balancer, pods[0])}
        return "reported" in entry and all(entry.get(key) == value for key, value in wanted.items())

    found = await eventually(right)
    check(
        found,
        f"read: {wanted}" if found else f"{wanted} to be read: {metrics_entry(balancer, pods[0])}",
    )


async def show():
    await show_weights()
    await show_steering("JSON with pointers to nested fields, ~0 and ~1 in them", Nested, POINTERS)
    await show_steering("Prometheus text, one sample of many", Scraped, PROMETHEUS)
    await show_unreadable()
    await show_agent()


async def show_weights():
    say("weights by report, the default names")
    for weights, wanted in (((3, 1), (60, 20)), ((1, 1), (40, 40)), ((2.5, 0.5), (67, 13))):
        pods = await pods_of("pod-1", "pod-2")
        for pod, weight in zip(pods, weights):
            pod.extra = {"weight": weight}
        async with balancing(pods, POLLED) as balancer:
            await known(balancer, pods, weight=weights[0])
            await known(balancer, pods[1:], weight=weights[1])
            counts = fleet.sessions_by_pod(await fleet.connect_many(balancer, 80, lanes=1))
            got = tuple(counts.get(pod.name, 0) for pod in pods)
            near = all(abs(one - other) <= 1 for one, other in zip(got, wanted))
            what = "control, equal weights" if weights == (1, 1) else f"weights {weights}"
            check(near, f"{what}: 80 sessions go {got}")
        fleet.stop(*pods)


class Nested(fleet.Pod):
    """Reports deep inside a JSON document, with other values where other settings would look."""

    weight = 1

    async def metric(self, connection, _):
        report = {
            "agentsConnections": 9999,
            "weight": 50,
            "draining": True,
            "maxConnections": 0,
            "stats": {
                "a/b": [{"open": self.others + self.sessions}, {"open": 5555}],
                "a": {"b": 7777},
            },
            "weights": {"mine": self.weight},
            "podName": self.name,
            "limits": {"m~n": self.extra.get("maxConnections", 1000)},
            "state": {"leaving": self.extra.get("draining", False)},
        }
        await connection.send(scripted.answer(200, body=json.dumps(report).encode()))


class Scraped(fleet.Pod):
    """Reports like Prometheus exporters: help, types, other labels, other metrics, a histogram."""

    async def metric(self, connection, _):
        count = float(self.others + self.sessions)
        text = f"""# HELP chat_connections Live connections.
# TYPE chat_connections gauge
chat_connections{{app="chat",kind="poll\\"ing, {{odd}}"}} 5555
chat_connections{{app="mail",kind="websocket"}} 7777
chat_connections{{kind="websocket",app="chat",zone="a b"}} {count:e} 1700000000000
chat_connections_total{{app="chat",kind="websocket"}} 9999
# TYPE latency histogram
latency_bucket{{app="chat",kind="websocket",le="+Inf"}} 3
process_start_time_seconds 1.7e+09
"""
        await connection.send(
            scripted.answer(200, "Content-Type: text/plain; version=0.0.4", body=text.encode())
        )


async def show_steering(name, kind, settings):
    say(name)
    pods = await pods_of("pod-1", "pod-2", kind=kind)
    pods[0].others = 20
    async with balancing(pods, POLLED + settings) as balancer:
        await known(balancer, pods, reported=20)
        await known(balancer, pods[1:], reported=0)
        counts = fleet.sessions_by_pod(await fleet.connect_many(balancer, 20, lanes=1))
        check(counts == {"pod-2": 20}, f"one pod reports 20 more sessions: 20 clients go {counts}")
        counts = fleet.sessions_by_pod(await fleet.connect_many(balancer, 20, lanes=1))
        check(counts == {"pod-1": 10, "pod-2": 10}, f"and the next 20 go {counts}")
        if kind is not Nested:
            fleet.stop(*pods)
            return
        pods[0].extra = {"draining": True}
        await wait_for_state(balancer, pods[0], "draining")
        counts = fleet.sessions_by_pod(await fleet.connect_many(balancer, 10, lanes=1))
        check(counts == {"pod-2": 10}, f"it reports draining: 10 clients go {counts}")
        pods[0].extra = {"maxConnections": 35}
        await known(balancer, pods, maxConnections=35)
        counts = fleet.sessions_by_pod(await fleet.connect_many(balancer, 20, lanes=1))
        check(
            counts.get("pod-1") == 5,
            f"it reports a maximum of 35, and has 30: 20 clients go {counts}",
        )
    pods[0].extra, pods[0].others, pods[0].weight = {}, 0, 3
    async with balancing(pods, POLLED + settings) as balancer:
        await known(balancer, pods, weight=3)
        counts = fleet.sessions_by_pod(await fleet.connect_many(balancer, 40, lanes=1))
        check(counts == {"pod-1": 30, "pod-2": 10}, f"weights 3 and 1: 40 clients go {counts}")
    fleet.stop(*pods)


async def show_unreadable():
    say("reports that lack the configured value")
    (pod,) = pods = await pods_of("pod-1")
    for settings, what in (
        ('metric_count = "/stats/nothing"\n', "/stats/nothing"),
        ('metric_format = "prometheus"\nmetric_name = "nothing"\n', "nothing"),
        ('metric_format = "agent"\n', ""),
    ):
        async with balancing(pods, POLLED + settings) as balancer:
            error = await eventually(
                lambda: balancer.metrics()["podMetrics"][pod.url][0].get("error")
            )
            entry = metrics_entry(balancer, pod)
            right = "reported" not in entry and entry["connections"] == 0
            check(right, f"{settings.strip()!r}: {entry['state']}, no count")
            check(bool(error) and what in error, f"its reason: {error!r}")
            client = await fleet.connect_one(balancer)
            check(client.status == 101, "a client is served nevertheless")
    fleet.stop(*pods)


class Agent:
    """A pod at its own address, and beside it a server that answers like an agent of HAProxy's
    agent-check.
    """

    def __init__(self, host, port, agent_port):
        self.host, self.port, self.agent_port = host, port, agent_port
        self.line = "up"
        self.stays = False  # whether the connection stays open after the line
        self.asked = 0

    async def start(self):
        self.pod = await fleet.Pod(self.host).start(self.port, self.host)
        self.agent = await scripted.Pod(self.answer_check).start(self.agent_port, self.host)
        self.url = self.pod.url
        return self

    async def answer_check(self, connection):
        self.asked += 1
        await connection.send(f"{self.line}\n")
        if self.stays:
            await connection.ended()

    def stop(self):
        self.agent.server.close()
        self.pod.stop()


async def show_agent():
    say("HAProxy's agent-check over TCP")
    hosts = ["127.0.0.2", "127.0.0.3"]
    port, agent_port = fleet.common_free_port(hosts), fleet.common_free_port(hosts)
    first, second = agents = [await Agent(host, port, agent_port).start() for host in hosts]
    settings = f'{POLLED}metric_format = "agent"\nmetric_port = {agent_port}\ncold_time = "0s"\n'

    async def send_line(line, wanted):
        """Makes the first agent send a line, and waits until the metrics show its meaning."""
        first.line = line
        found = await eventually(lambda: wanted(metrics_entry(balancer, first)))
        check(found, f"{line!r}: {metrics_entry(balancer, first)}")

    async def go(count=30):
        came = await fleet.connect_many(balancer, count, lanes=1)
        counts = {agent.host: sum(client.pod == agent.host for client in came) for agent in agents}
        refused = sum(client.status != 101 for client in came)
        for client in came:
            client.leave()
        await eventually(lambda: balancer.metrics()["ownSessions"] == 0)
        return tuple(counts.values()) + ((f"{refused} refused",) if refused else ())

    for stays in (False, True):
        first.stays = second.stays = stays
        say(f"  the connection {'stays open' if stays else 'ends'} after the line")
        async with balancing(agents, settings) as balancer:
            await send_line("up", lambda one: one["state"] == "up")
            counts = await go()
            check(counts == (15, 15), f"30 clients go {counts}")
            await send_line("50%", lambda one: one.get("weight") == 0.5)
            counts = await go()
            check(counts == (10, 20), f"30 clients go {counts}")
            await send_line("100% maxconn:5", lambda one: one.get("maxConnections") == 5)
            counts = await go()
            check(counts == (5, 25), f"30 clients go {counts}")
            await send_line("drain", lambda one: one["state"] == "draining")
            counts = await go()
            check(counts == (0, 30), f"30 clients go {counts}")
            # As in HAProxy, "up" and "ready" of an agent end the effects of "down" and "drain".
            await send_line("up ready 100% maxconn:1000", lambda one: one["state"] == "up")
            counts = await go()
            check(counts == (15, 15), f"30 clients go {counts}")
            await send_line("down # disk full", lambda one: one["state"] != "up")
            counts = await go()
            check(counts == (0, 30), f"30 clients go {counts}")
            await send_line("up", lambda one: one["state"] == "up")
            counts = await go()
            check(counts == (15, 15), f"30 clients go {counts}")
            await send_line("what?", lambda one: one["state"] == "unknown")
            say(f"         an unreadable line: {(await go())}")
            say(f"         the agents were polled {[agent.asked for agent in agents]} times")
    fleet.stop(*agents)
