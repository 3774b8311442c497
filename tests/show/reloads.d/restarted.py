"""The controls of `reloads`: a restart drops sessions, and echoes out of order are noticed."""

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
async def running_chats(count):
    """Starts pods and a balancer, and opens `count` chat sessions."""
    pods = await sessions.start(twenty.PODS)
    file = programs.scratch("reloads") / "balancer.toml"
    settings = twenty.settings(pods)
    file.write_text(chats.toml(settings))
    balancer = chats.Balancer(file)
    chatters = chats.Crowd()
    await chatters.open_sessions(balancer.address, count)
    await chatters.all_echoed()
    same = await eventually(lambda: sum(balancer.own().values()) == count)
    check(
        same and chatters.is_undisturbed(),
        "all sessions are open, their echoes arrive in order, and the balancer counts them",
    )
    yield pods, settings, file, balancer, chatters
    fleet.stop(*pods)


async def show_restart(count):
    say(
        f"control: {count} chat sessions, the balancer is restarted with new settings instead of "
        "reloaded"
    )
    async with running_chats(count) as (_, settings, file, balancer, chatters):
        settings["server"]["max_sessions"] = 1
        file.write_text(chats.toml(settings))
        await chats.stop(balancer)
        restarted = chats.Balancer(file)
        check(
            'server.max_sessions = "1"' in await twenty.config(restarted),
            "the new settings are in effect",
        )
        check(
            not chatters.is_undisturbed(),
            f"sessions are dropped: {sessions.count_endings(chatters.dropped())}",
        )
        check(restarted.own() == {}, f"the new process counts none: {restarted.own()}")
        await chats.stop(restarted)


async def show_disorder(count):
    say(f"control: {count} chat sessions, pods answer later messages before earlier ones")
    async with running_chats(count) as (pods, _, _, balancer, chatters):
        for delay in (1.5 * chats.PERIOD, 0):
            for pod in pods:
                pod.thinks = delay
            await asyncio.sleep(chats.PERIOD)
        wrong = await eventually(lambda: [error for chat in chatters.chats for error in chat.wrong])
        check(wrong, f"{len(wrong)} wrong echoes are noticed, such as {wrong[:1]}")
        await chats.stop(balancer)
