"""Every state of a pod in /balancer-metrics with its meaning for clients, and the health checks."""

import kinds
from evidence import fleet, metrics_reader, scripted
from evidence.checks import check, say
from evidence.fleet import balancing, check_no_errors, connect_one, metrics_entry, wait_for_state
from evidence.metrics_reader import check_valid
from evidence.scripted import eventually

POLLED = 'poll_interval = "100ms"\npoll_timeout = "500ms"\n'


def print_entry(shown):
    say(f"         {shown}")


def why(balancer, pod):
    """Returns the reason shown for a pod's state, or for its failed poll."""
    return metrics_entry(balancer, pod).get("reason") or balancer.metrics()["podMetrics"][pod.url][
        0
    ].get("error")


async def show():
    await show_reader()
    await show_unreachable()
    await show_stale()
    await show_unknown()
    await show_draining()
    await show_full()
    await show_health()


async def show_reader():
    say("a strict reader of the documented format, derived from the example in docs/operations.md")
    pods = [await fleet.Pod(f"pod-{number}").start() for number in (1, 2)]
    async with balancing(pods, POLLED) as balancer:
        await fleet.connect_many(balancer, 4, lanes=1)
        await eventually(lambda: all("reported" in one for one in balancer.metrics()["services"]))
        check_valid(balancer, "two pods that are up")
        for what, text in metrics_reader.invalid_variants(metrics_reader.fetch(balancer)):
            try:
                metrics_reader.read(text)
                check(False, f"control: it must reject {what}")
            except (metrics_reader.InvalidMetrics, ValueError) as error:
                check(True, f"control: it rejects {what}: {error}")
    fleet.stop(*pods)


async def show_unreachable():
    say("a pod that refuses connections, found by its polls alone")
    healthy = await fleet.Pod("healthy").start()
    pod = await kinds.Refused().start()
    async with balancing([pod, healthy], f'{POLLED}eject_time = "{fleet.LONG}s"\n') as balancer:
        shown = await wait_for_state(balancer, pod, "ejected")
        print_entry(shown)
        check(shown["state"] == "ejected", "it is ejected before any client has connected")
        check("refused" in str(shown.get("reason")), f"with the reason: {shown.get('reason')}")
        left = shown.get("ejectedForMs", -1)
        check(0 < left <= 1200 * fleet.LONG, f"and the time left: {left} ms")
        clients = await fleet.connect_many(balancer, 20)
        check_no_errors(clients, "a pod that is unreachable")
        pods = balancer.metrics()["podMetrics"][pod.url]
        check("refused" in str(pods[0].get("error")), f"podMetrics: {pods}")
        check_valid(balancer, "an unreachable pod")
    fleet.stop(pod, healthy)


async def show_stale():
    say(
        "a pod whose metric route no longer answers, while handshakes still work; cache_ttl = "
        "0s, so stale "
        "after three polls"
    )
    pods = [await fleet.Pod(f"pod-{number}").start() for number in (1, 2)]
    silent, _healthy = pods
    silent.others = 70
    for eject_after in (0, 3):
        silent.mute = False
        async with balancing(
            pods, f'{POLLED}cache_ttl = "0s"\neject_after = {eject_after}\n'
        ) as balancer:
            await eventually(lambda: metrics_entry(balancer, silent).get("reported") == 70)
            silent.mute = True
            wanted = "ejected" if eject_after else "stale"
            shown = await wait_for_state(balancer, silent, wanted)
            print_entry(shown)
            check(
                shown["state"] == wanted,
                f"eject_after = {eject_after}: it becomes {shown['state']}",
            )
            if eject_after == 0:
                await eventually(lambda: why(balancer, silent))
                age = shown.get("reportAgeMs", -1)
                check(age > 300, f"the age of its report: {age} ms")
                check("500ms" in str(why(balancer, silent)), f"its reason: {why(balancer, silent)}")
                check(
                    shown["connections"] == 0,
                    f"its reported 70 are no longer used: {shown['connections']}",
                )
                counts = fleet.sessions_by_pod(await fleet.connect_many(balancer, 20, lanes=1))
                check(counts == {"pod-1": 10, "pod-2": 10}, f"own counts decide: {counts}")
            else:
                check("500ms" in shown.get("reason", ""), f"its reason: {shown.get('reason')}")
            check_valid(balancer, f"a pod that is {wanted}")
    fleet.stop(*pods)


async def show_unknown():
    say("a pod whose metric route answers 500")
    pods = [await fleet.Pod(f"pod-{number}").start() for number in (1, 2)]
    pods[0].status = 500
    async with balancing(pods, POLLED) as balancer:
        await eventually(lambda: "500" in str(why(balancer, pods[0])))
        shown = metrics_entry(balancer, pods[0])
        print_entry(shown)
        check("reported" not in shown, f"it is {shown['state']}, and no count is invented")
        check("500" in str(why(balancer, pods[0])), f"its reason: {why(balancer, pods[0])}")
        clients = await fleet.connect_many(balancer, 20, lanes=1)
        check_no_errors(clients, "a metric route that answers 500")
        say(f"         spread: {fleet.sessions_by_pod(clients)}")
        check_valid(balancer, "a pod without a readable report")
    fleet.stop(*pods)


async def show_draining():
    say("a pod that reports draining: true, and later false")
    pods = [await fleet.Pod(f"pod-{number}").start() for number in (1, 2)]
    draining, other = pods
    async with balancing(pods, POLLED) as balancer:
        before = await fleet.connect_many(balancer, 10, lanes=1)
        draining.extra = {"draining": True}
        shown = await wait_for_state(balancer, draining, "draining")
        print_entry(shown)
        check(shown["state"] == "draining", f"it is {shown['state']}")
        check(bool(shown.get("reason")), f"its reason: {shown.get('reason')}")
        clients = await fleet.connect_many(balancer, 20, lanes=1)
        check_no_errors(clients, "while it drains")
        check(
            fleet.sessions_by_pod(clients) == {other.name: 20},
            f"no new sessions: {fleet.sessions_by_pod(clients)}",
        )
        live = [client for client in before if client.pod == draining.name]
        check(
            len(live) == 5 and all([await client.talks() for client in live]),
            f"its {len(live)} old sessions continue",
        )
        check_valid(balancer, "a draining pod")
        other.extra = {"draining": True}
        await wait_for_state(balancer, other, "draining")
        refused = await connect_one(balancer)
        say(f"         all drain: {refused.status} {refused.body.decode().strip()!r}")
        check(refused.status == 503, "when all of them drain, new clients get 503")
        check(
            all([await client.talks() for client in before + clients]),
            "and the old sessions continue",
        )
        draining.extra = {"draining": False}
        await eventually(lambda: metrics_entry(balancer, draining)["state"] != "draining")
        back = await fleet.connect_many(balancer, 10, lanes=1)
        check(
            fleet.sessions_by_pod(back) == {draining.name: 10},
            f"draining: false puts it back in use: {fleet.sessions_by_pod(back)}",
        )
    fleet.stop(*pods)
    say("  control: draining is a text, which is invalid")
    pods = [await fleet.Pod(f"pod-{number}").start() for number in (1, 2)]
    async with balancing(pods, POLLED) as balancer:
        pods[0].extra = {"draining": "true"}
        await eventually(lambda: why(balancer, pods[0]))
        shown = metrics_entry(balancer, pods[0])
        print_entry(shown)
        check(shown["state"] != "draining", f"it is {shown['state']}: {why(balancer, pods[0])}")
    fleet.stop(*pods)


async def show_full():
    say("pods that report maxConnections: 3 and 5")
    pods = [await fleet.Pod(f"pod-{number}").start() for number in (1, 2)]
    for pod, most in zip(pods, (3, 5)):
        pod.extra = {"maxConnections": most}
    async with balancing(pods, POLLED) as balancer:
        await eventually(
            lambda: all("maxConnections" in metrics_entry(balancer, pod) for pod in pods)
        )
        clients = await fleet.connect_many(balancer, 8, lanes=1)
        check_no_errors(clients, "up to the limit")
        check(
            fleet.sessions_by_pod(clients) == {"pod-1": 3, "pod-2": 5},
            f"each is filled: {fleet.sessions_by_pod(clients)}",
        )
        shown = metrics_entry(balancer, pods[0])
        print_entry(shown)
        check(
            shown["state"] == "full" and shown.get("maxConnections") == 3, f"it is {shown['state']}"
        )
        check_valid(balancer, "full pods")
        refused = await connect_one(balancer)
        check(
            refused.status == 503,
            f"the next one: {refused.status} {refused.body.decode().strip()!r}",
        )
        next(client for client in clients if client.pod == "pod-1").leave()
        await eventually(lambda: metrics_entry(balancer, pods[0])["connections"] < 3)
        again = await connect_one(balancer)
        check(
            (again.status, again.pod) == (101, "pod-1"),
            f"one session ends, one new client is accepted: {again.status} at {again.pod}",
        )
    for pod in pods:
        pod.extra = {}
    async with balancing(pods, POLLED) as balancer:
        check_no_errors(await fleet.connect_many(balancer, 30), "control, no maxConnections")
    fleet.stop(*pods)


class Checked(fleet.Pod):
    """A pod with a health route instead of a metric route: it answers 204, or `status`."""

    async def metric(self, connection, head):
        status = 404 if head.target != "/health" else 204 if self.status == 200 else self.status
        await connection.send(
            f"HTTP/1.1 {status} Reason\r\n\r\n" if status == 204 else scripted.answer(status)
        )


async def show_health():
    say('services without a metric route: health_path = "/health", and a TCP connect')
    pods = [await Checked(f"pod-{number}").start() for number in (1, 2)]
    sick, healthy = pods
    sick.status = 500
    without = f'{POLLED}metric_path = "none"\neject_time = "300ms"\neject_time_max = "1s"\n'
    async with balancing(pods, f'{without}health_path = "/health"\n') as balancer:
        shown = await wait_for_state(balancer, sick, "ejected")
        print_entry(shown)
        check(
            shown["state"] == "ejected" and "500" in str(shown.get("reason")),
            "500 ejects it before any client connects",
        )
        clients = await fleet.connect_many(balancer, 10, lanes=1)
        check(
            fleet.sessions_by_pod(clients) == {"pod-2": 10},
            f"no client is sent to it: {fleet.sessions_by_pod(clients)}",
        )
        sick.status = 200
        await eventually(lambda: metrics_entry(balancer, sick)["state"] != "ejected")
        back = await fleet.connect_many(balancer, 10, lanes=1)
        check(
            fleet.sessions_by_pod(back).get("pod-1", 0) > 0,
            f"204 makes it available again: {fleet.sessions_by_pod(back)}",
        )
        check_valid(balancer, "a service without a metric route")
    sick.status = 500
    async with balancing(pods, without) as balancer:
        clients = await fleet.connect_many(balancer, 10, lanes=1)
        counts = fleet.sessions_by_pod(clients)
        check(counts == {"pod-1": 5, "pod-2": 5}, f"control, no health_path: it is used, {counts}")
    dead = await kinds.Refused().start()
    async with balancing([dead, healthy], f"{without}health_tcp = true\n") as balancer:
        shown = await wait_for_state(balancer, dead, "ejected")
        print_entry(shown)
        check(
            shown["state"] == "ejected" and "refused" in str(shown.get("reason")),
            "health_tcp ejects a pod that refuses connections",
        )
        check(
            metrics_entry(balancer, healthy)["state"] != "ejected",
            "and the other pod is not ejected",
        )
    fleet.stop(dead, *pods)
