"""Sessions that exchange messages all the time, and a balancer configured by a file only."""

import asyncio
import json
import re
import resource

from evidence import programs, scripted, sessions
from evidence.checks import check
from evidence.scripted import eventually

PERIOD = 1  # seconds between the messages of a session
SIZE = 100  # bytes of a message


def allow_descriptors():
    """Raises the limit of open files. A session needs two in this script and two in the balancer,
    which inherits the limit.
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def toml(settings):
    """Returns `{section: {key: value}}` as TOML. A list of tables becomes `[[section]]` tables."""
    lines = []
    for section, tables in settings.items():
        several = isinstance(tables, list)
        for table in tables if several else [tables]:
            lines.append(f"[[{section}]]" if several else f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join([*lines, ""])


class Balancer(scripted.ConfiguredBalancer):
    """`wsbalancer run --config FILE`, started by the command `wrapper` if there is one."""

    def __init__(self, file, binary=None, wrapper=(), pass_fds=()):
        command = *wrapper, binary or programs.BINARY, "run", "--config", file
        programs.Program.__init__(self, *command, name="wsbalancer", pass_fds=pass_fds)
        self.address, self.admin = self.expect(None).groups()

    def own(self):
        """Returns the number of its own sessions by pod."""
        return {one["url"]: one["own"] for one in self.metrics()["services"] if one["own"]}

    def reloads(self):
        """Returns the counted reloads by result."""
        problems = re.findall(
            r'^wsbalancer_reloads_total\{result="([^"]+)"\} (\d+)', self.telemetry(), re.M
        )
        return {result: int(count) for result, count in problems}


async def stop(balancer, panics=0):
    """Stops the balancer while pods and clients on this loop run on, and checks its panics."""
    code = await asyncio.to_thread(balancer.stop)
    count = balancer.output.count("panicked at")
    check(
        (code, count) == (0, panics),
        f"the balancer stops with exit code {code}, {count or 'no'} panics in its log",
    )


async def connect(address, client, context=None):
    """Connects a client, over TLS if there is a `context`, and waits until it is answered."""
    host, _, port = address.rpartition(":")
    name = sessions.HOST if context else None
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(
            lambda: client, host, int(port), ssl=context, server_hostname=name
        )
    except OSError as error:
        client.connection_lost(error)
    await asyncio.wait([client.answered], timeout=sessions.PATIENCE)
    return client


def new_client(path="/"):
    return sessions.Client(scripted.handshake(path, sessions.HOST).encode())


class Chat(sessions.Client):
    """A client that sends a message every PERIOD, and checks that echoes arrive in order."""

    def __init__(self, number, path="/"):
        super().__init__(scripted.handshake(path, sessions.HOST).encode())
        self.number = number
        self.sent = self.echoed = 0
        self.wrong = []
        self.hear = self.check_echo
        self.is_finished = False

    def message(self, count):
        return f"chat {self.number}, message {count} ".encode().ljust(SIZE, b".")

    def talk(self):
        if self.is_finished or not self.inside or self.close:
            return
        self.send(sessions.TEXT, self.message(self.sent))
        self.sent += 1
        self.loop.call_later(PERIOD, self.talk)

    def check_echo(self, payload):
        if self.echoed >= self.sent or payload != self.message(self.echoed):
            self.wrong.append(f"chat {self.number} received {payload} as echo {self.echoed}")
        self.echoed += 1


class Crowd:
    """Chats with staggered starts, so that messages are sent at any time."""

    def __init__(self):
        self.chats = []

    async def open_sessions(self, address, count, path="/", context=None):
        left, joined = iter(range(len(self.chats), len(self.chats) + count)), []

        async def lane():
            for number in left:
                chat = await connect(address, Chat(number, path), context)
                joined.append(chat)
                chat.loop.call_later(number / count % 1 * PERIOD, chat.talk)

        await asyncio.gather(*(lane() for _ in range(min(sessions.LANES, count))))
        self.chats += joined
        wrong = [chat.ending() for chat in joined if chat.status != 101]
        check(
            not wrong,
            f"{count} sessions opened{f', except {len(wrong)}: {wrong[0]}' if wrong else ''}",
        )

    def dropped(self):
        return [chat for chat in self.chats if chat.close or chat.ended.done()]

    def is_undisturbed(self):
        """Returns whether all sessions are open without a Close, and all echoes were right."""
        return not self.dropped() and not any(chat.wrong for chat in self.chats)

    async def all_echoed(self):
        """Waits until every chat has received the echo of a message that it sends from now on."""
        wanted = [(chat, chat.sent + 1) for chat in self.chats]
        return await eventually(
            lambda: all(chat.echoed >= count for chat, count in wanted), sessions.PATIENCE
        )

    async def finish(self):
        """Stops sending, waits for the remaining echoes, and checks that none is missing."""
        for chat in self.chats:
            chat.is_finished = True
        await eventually(
            lambda: all(chat.echoed >= chat.sent or not chat.inside for chat in self.chats)
        )
        sent, echoed = (
            sum(getattr(chat, name) for chat in self.chats) for name in ("sent", "echoed")
        )
        wrong = [error for chat in self.chats for error in chat.wrong]
        dropped_chats = self.dropped()
        note = (
            f", but {len(dropped_chats)} were: {sessions.count_endings(dropped_chats)}"
            if dropped_chats
            else ""
        )
        check(not dropped_chats, f"none of {len(self.chats)} sessions is dropped{note}")
        check(
            sent == echoed and not wrong,
            f"{sent} messages, {echoed} echoes, all in order{example_of(wrong)}",
        )

    async def leave(self):
        """Ends all sessions with a Close."""
        for chat in self.chats:
            if chat.inside:
                chat.send_close()
        check(await sessions.wait_until_ended(self.chats), "all sessions end with a Close")


def example_of(problems):
    return f", but {len(problems)} are not, such as {problems[0]!r}" if problems else ""
