"""Pods that answer 101 and then end the session. A client must notice that, so it may happen to few
clients only.
"""

import asyncio

from backoff import rounds
from evidence import fleet, scripted
from evidence.checks import check, say
from evidence.fleet import balancing, check_no_errors, metrics_entry
from evidence.scripted import eventually

HEALTHY = 9
ARRIVALS = 1000
RATE = 150
EJECT_AFTER = 3
MOMENT = 0.005
# Seconds: arrivals at a pod that are further apart have an ejection between them (0.8 s or more).
QUIET = 0.7
POLLED = 'poll_interval = "200ms"\n'


class Dying(fleet.Pod):
    """A pod whose sessions end within milliseconds. It reports 0 sessions and no error."""

    def __init__(self, name, end):
        super().__init__(name)
        self.end = end

    async def handshake(self, connection, head):
        await connection.send(scripted.switch(head, f"X-Pod: {self.name}"))
        await asyncio.sleep(MOMENT)
        await self.end(connection)


async def ends(connection):
    """ends the connection"""
    connection.close()


async def resets(connection):
    """resets the connection"""
    connection.reset()


async def closes(connection):
    """sends Close 1011, as libraries do for an application that throws"""
    await connection.send(scripted.frame(8, b"\x03\xf3broken"))
    await connection.ended()


async def turns_away(connection):
    """sends Close 4401"""
    await connection.send(scripted.frame(8, b"\x11\x31who are you?"))
    await connection.ended()


class Watch:
    """Records what clients see after their 101: which pod ended their session, and how."""

    def __init__(self):
        self.ended = []
        self.tasks = []

    def add(self, client):
        self.tasks.append(asyncio.create_task(self._look(client)))

    async def _look(self, client):
        try:
            _, opcode, payload = await client.connection.frame(scripted.IDLE)
            code = int.from_bytes(payload[:2], "big")
            self.ended.append((client.pod, f"Close {code}" if opcode == 8 else f"frame {opcode}"))
            client.leave()
        except (asyncio.IncompleteReadError, ConnectionError) as end:
            self.ended.append((client.pod, type(end).__name__))

    async def over(self, pod):
        """Waits until every session of a pod has ended for its client."""
        return await eventually(
            lambda: sum(name == pod.name for name, _ in self.ended) == len(pod.attempts)
        )

    def stop(self):
        for task in self.tasks:
            task.cancel()


async def arrivals(balancer, count, watch, rate=RATE):
    """Like `fleet.paced`, but watches every session from its start."""
    clients = []
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one():
        client = await fleet.connect_one(balancer)
        clients.append(client)
        if client.status == 101:
            watch.add(client)

    tasks = []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return clients


async def show():
    say(
        f"a pod that answers 101, reports 0 and ends the session after {1000 * MOMENT:.0f} ms, "
        "beside "
        f"{HEALTHY} healthy ones"
    )
    say(f"  {ARRIVALS} clients, {RATE}/s, eject_after = {EJECT_AFTER}")
    healthy = [await fleet.Pod(f"healthy-{number}").start() for number in range(HEALTHY)]
    for end in (ends, resets, closes):
        guarded = await show_one(healthy, end, EJECT_AFTER)
        if end is ends:
            unguarded = await show_one(healthy, end, 0)
            check(
                unguarded >= 3 * guarded,
                f"control, eject_after = 0: {unguarded} clients are affected instead of {guarded}",
            )
    await show_storm(healthy)
    await show_turned_away(healthy)
    await show_back(healthy)
    await show_leaving(healthy)
    fleet.stop(*healthy)


async def show_one(healthy, end, eject_after):
    pod = await Dying("dying", end).start()
    settings = f'{POLLED}eject_after = {eject_after}\neject_time = "{fleet.LONG}s"\n'
    watch = Watch()
    name = f"{'control, eject_after = 0: ' if eject_after == 0 else ''}it {end.__doc__}"
    async with balancing([pod, *healthy], settings) as balancer:
        await eventually(lambda: all("reported" in one for one in balancer.metrics()["services"]))
        early = await arrivals(balancer, ARRIVALS // 5, watch)
        await watch.over(pod)
        seen_early = len(pod.attempts)
        state = metrics_entry(balancer, pod)
        rest = await arrivals(balancer, ARRIVALS - ARRIVALS // 5, watch)
        await watch.over(pod)
        check_no_errors(early + rest, f"{name}: before the 101")
        seen = len(pod.attempts)
        kinds = sorted({how for name, how in watch.ended if name == pod.name})
        others = [how for name, how in watch.ended if name != pod.name]
        check(not others, f"{name}: no session on a healthy pod ends: {others[:3]}")
        say(f"         {seen} of {ARRIVALS} clients ({seen / ARRIVALS:.1%}) receive {kinds}")
        say(f"         {seen_early} of them are among the first {len(early)}")
        if eject_after:
            under_way = seen_early - eject_after
            say(f"         {under_way} more than eject_after were in progress")
            check(
                seen <= 0.02 * ARRIVALS,
                f"{name}: {seen / ARRIVALS:.1%} of the arrivals, at most 2 %",
            )
            state_and_reason = (
                f"{state['state']}, {state.get('reason')!r}, {state.get('ejectedForMs')} ms left"
            )
            check(state["state"] == "ejected", f"{name}: it is {state_and_reason}")
            check(seen == seen_early, f"{name}: none after its ejection")
        else:
            check(state["state"] != "ejected", f"{name}: it is {state['state']}")
            say(f"         the others hold {sorted(one.sessions for one in healthy)}")
        watch.stop()
    fleet.stop(pod)
    return seen


async def show_storm(healthy):
    """Clients whose handshakes are in progress when the first sessions end have already been
    assigned.
    """
    say("the same pod, 300 clients at once, then 300 more")
    pod = await Dying("dying", ends).start()
    watch = Watch()
    async with balancing([pod, *healthy], f'{POLLED}eject_time = "{fleet.LONG}s"\n') as balancer:
        await eventually(lambda: all("reported" in one for one in balancer.metrics()["services"]))
        check_no_errors(await arrivals(balancer, 300, watch, 1e6), "before the 101")
        await watch.over(pod)
        seen = len(pod.attempts)
        say(
            f"         {seen} are affected, eject_after is {EJECT_AFTER}, the fair share "
            f"{300 / (HEALTHY + 1):g}"
        )
        check_no_errors(await arrivals(balancer, 300, watch), "before the 101")
        check(len(pod.attempts) == seen, f"{len(pod.attempts) - seen} of the next 300 are affected")
        watch.stop()
    fleet.stop(pod)


async def show_turned_away(healthy):
    """An application's own close code may be the client's fault: no reason to eject the pod, or to
    prefer it.
    """
    say(f"a pod that ends every session with Close 4401, {ARRIVALS // 2} clients")
    pod = await Dying("turning away", turns_away).start()
    watch = Watch()
    async with balancing([pod, *healthy], POLLED) as balancer:
        await eventually(lambda: all("reported" in one for one in balancer.metrics()["services"]))
        await arrivals(balancer, ARRIVALS // 2, watch)
        share, fair = len(pod.attempts) / (ARRIVALS // 2), 1 / (HEALTHY + 1)
        state = metrics_entry(balancer, pod)["state"]
        check(state == "up", f"it is {state}")
        check(
            share <= 2 * fair,
            f"it gets {share:.1%} of them, {share / fair:.1f} times its fair share",
        )
        watch.stop()
    fleet.stop(pod)


async def show_back(healthy):
    """After its ejection the pod is tried again with few clients."""
    say("the same pod, eject_time = 1s, 60 clients/s")
    pod = await Dying("dying", ends).start()
    watch = Watch()
    async with balancing([pod, *healthy], f'{POLLED}eject_time = "1s"\n') as balancer:
        await eventually(lambda: all("reported" in one for one in balancer.metrics()["services"]))
        while len(rounds(pod.attempts, QUIET)) < 3 and len(balancer.clients) < 2000:
            await arrivals(balancer, 10, watch, 60)
        # The third ejection has just begun.
        counts = [count for *_, count in rounds(pod.attempts, QUIET)][:2]
        check(
            len(counts) == 2 and max(counts) <= 2 * EJECT_AFTER,
            f"{counts} clients are affected before each of two ejections",
        )
        state = await eventually(
            lambda: (now := metrics_entry(balancer, pod))["state"] == "ejected" and now
        )
        check(bool(state), f"and it is ejected again: {state and state['reason']!r}")
        watch.stop()
    fleet.stop(pod)


async def show_leaving(healthy):
    """Clients that disconnect early are not the pod's fault."""
    say(
        "300 clients that connect and disconnect at once, eject_after = 3: with a Close, "
        "without, with a "
        "reset"
    )
    async with balancing(healthy[:3], POLLED) as balancer:
        clients = []
        for number in range(300):
            client = await fleet.connect_one(balancer)
            clients.append(client)
            if number % 3 == 0:
                await client.connection.send(scripted.frame(8, b"\x03\xe8", mask=b"mask"))
                await client.connection.frame()
                client.leave()
            elif number % 3 == 1:
                client.leave()
            else:
                client.connection.reset()
        check_no_errors(clients, "all of them")
        await eventually(lambda: balancer.metrics()["ownSessions"] == 0)
        states = [one["state"] for one in balancer.metrics()["services"]]
        check(
            "ejected" not in states and "eject" not in balancer.output,
            f"no pod is ejected: {states}",
        )
