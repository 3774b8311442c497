"""The controls: settings that change by a restart instead of a reload, and echoes that are not in
order.
"""

import asyncio
import contextlib

import twenty
from evidence import chats, fleet, programs, sessions
from evidence.checks import check, say
from evidence.scripted import eventually


async def show(count):
    await show_restart(count // 5)
    await show_disorder(count // 50)


@contextlib.asynccontextmanager
async def ground(count):
    """Pods, the settings that a balancer has begun with, their file, and so many sessions that
    chat.
    """
    pods = await sessions.start(twenty.PODS)
    file = programs.scratch("reloads") / "balancer.toml"
    settings = twenty.settings(pods)
    file.write_text(chats.toml(settings))
    balancer = chats.Balancer(file)
    chatting = chats.Crowd()
    await chatting.join(balancer.address, count)
    await chatting.turn()
    same = await eventually(lambda: sum(balancer.own().values()) == count)
    check(
        same and chatting.stay(),
        "all stay until now, hear what they said in order, and are counted",
    )
    yield pods, settings, file, balancer, chatting
    fleet.stop(*pods)


async def show_restart(count):
    say(f"control: {count} sessions chat, the balancer is restarted for its new settings instead")
    async with ground(count) as (_, settings, file, balancer, chatting):
        settings["server"]["max_sessions"] = 1
        file.write_text(chats.toml(settings))
        await chats.stop(balancer)
        restarted = chats.Balancer(file)
        check(
            'server.max_sessions = "1"' in await twenty.config(restarted), "the new settings hold"
        )
        check(not chatting.stay(), f"sessions are dropped: {sessions.ends(chatting.dropped())}")
        check(restarted.own() == {}, f"and none is counted any more: {restarted.own()}")
        await chats.stop(restarted)


async def show_disorder(count):
    say(f"control: {count} sessions chat, pods answer later messages before earlier ones")
    async with ground(count) as (pods, _, _, balancer, chatting):
        for thinks in (1.5 * chats.PERIOD, 0):
            for pod in pods:
                pod.thinks = thinks
            await asyncio.sleep(chats.PERIOD)
        wrong = await eventually(lambda: [what for chat in chatting.chats for what in chat.wrong])
        check(wrong, f"{len(wrong)} echoes are noticed, such as {wrong[:1]}")
        await chats.stop(balancer)
