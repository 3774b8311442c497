"""Sessions that chat all the time, and a balancer that has its settings from a file alone."""

import asyncio
import json
import re
import resource

from evidence import programs, scripted, sessions
from evidence.checks import check
from evidence.scripted import eventually

PERIOD = 1  # seconds from one message of a session to its next
SIZE = 100  # bytes of a message


def allow_descriptors():
    """Each session takes two in the balancer, which inherits this, and two in the script."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def toml(settings):
    """Settings as a file has them: `{section: {key: value}}`, and a list of tables as
    `[[section]]`.
    """
    lines = []
    for section, tables in settings.items():
        several = isinstance(tables, list)
        for table in tables if several else [tables]:
            lines.append(f"[[{section}]]" if several else f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join([*lines, ""])


class Balancer(scripted.Configured):
    """`wsbalancer run --config FILE`; `wrapper` is the command in front of it."""

    def __init__(self, file, binary=None, wrapper=(), pass_fds=()):
        command = *wrapper, binary or programs.BINARY, "run", "--config", file
        programs.Program.__init__(self, *command, name="wsbalancer", pass_fds=pass_fds)
        self.address, self.admin = self.expect(None).groups()

    def own(self):
        """Its own sessions, by pod."""
        return {one["url"]: one["own"] for one in self.metrics()["services"] if one["own"]}

    def reloads(self):
        """How many reloads it counts, by what came of them."""
        found = re.findall(
            r'^wsbalancer_reloads_total\{result="([^"]+)"\} (\d+)', self.telemetry(), re.M
        )
        return {result: int(count) for result, count in found}


async def stop(balancer, panics=0):
    """Stops it while the pods and clients of this loop go on; it must have panicked just so
    often.
    """
    code = await asyncio.to_thread(balancer.stop)
    count = balancer.output.count("panicked at")
    check((code, count) == (0, panics), f"exit code {code}, {count or 'no'} panics in its log")


async def enter(address, client, context=None):
    """Lets a client in, over TLS where there is a `context`; it has its answer then, or never
    will.
    """
    host, _, port = address.rpartition(":")
    name = sessions.HOST if context else None
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(
            lambda: client, host, int(port), ssl=context, server_hostname=name
        )
    except OSError as error:
        client.connection_lost(error)
    await asyncio.wait([client.answered], timeout=sessions.LATE)
    return client


def caller(path="/"):
    return sessions.Client(scripted.handshake(path, sessions.HOST).encode())


class Chat(sessions.Client):
    """Says something new each PERIOD, and looks whether the echoes are what it said, in order."""

    def __init__(self, number, path="/"):
        super().__init__(scripted.handshake(path, sessions.HOST).encode())
        self.number = number
        self.said = self.echoed = 0
        self.wrong = []
        self.hear = self.compare
        self.is_over = False

    def message(self, count):
        return f"chat {self.number}, message {count} ".encode().ljust(SIZE, b".")

    def talk(self):
        if self.is_over or not self.inside or self.close:
            return
        self.send(sessions.TEXT, self.message(self.said))
        self.said += 1
        self.loop.call_later(PERIOD, self.talk)

    def compare(self, payload):
        if self.echoed >= self.said or payload != self.message(self.echoed):
            self.wrong.append(f"chat {self.number} hears {payload} as echo {self.echoed}")
        self.echoed += 1


class Crowd:
    """Chats that have begun one after the other, so that somebody talks at any time."""

    def __init__(self):
        self.chats = []

    async def join(self, address, count, path="/", context=None):
        left, came = iter(range(len(self.chats), len(self.chats) + count)), []

        async def lane():
            for number in left:
                chat = await enter(address, Chat(number, path), context)
                came.append(chat)
                chat.loop.call_later(number / count % 1 * PERIOD, chat.talk)

        await asyncio.gather(*(lane() for _ in range(min(sessions.LANES, count))))
        self.chats += came
        wrong = [chat.told() for chat in came if chat.status != 101]
        check(
            not wrong, f"{count} sessions chat{f', but {len(wrong)}: {wrong[0]}' if wrong else ''}"
        )

    def dropped(self):
        return [chat for chat in self.chats if chat.close or chat.ended.done()]

    def stay(self):
        """Whether nobody has been told anything, and every echo so far was the one to come."""
        return not self.dropped() and not any(chat.wrong for chat in self.chats)

    async def turn(self):
        """Waits until everybody has had an echo of what it says from now on; whether that came."""
        wanted = [(chat, chat.said + 1) for chat in self.chats]
        return await eventually(
            lambda: all(chat.echoed >= count for chat, count in wanted), sessions.LATE
        )

    async def end(self):
        """Ends all talk and waits for what is still to come; checks that nothing is missing."""
        for chat in self.chats:
            chat.is_over = True
        await eventually(
            lambda: all(chat.echoed >= chat.said or not chat.inside for chat in self.chats)
        )
        said, echoed = (
            sum(getattr(chat, name) for chat in self.chats) for name in ("said", "echoed")
        )
        wrong = [what for chat in self.chats for what in chat.wrong]
        gone = self.dropped()
        told = f", but {len(gone)}: {sessions.ends(gone)}" if gone else ""
        check(not gone, f"no session of {len(self.chats)} is dropped{told}")
        check(
            said == echoed and not wrong,
            f"{said} messages, {echoed} echoes, each in order{first(wrong)}",
        )

    async def leave(self):
        """All say goodbye."""
        for chat in self.chats:
            if chat.inside:
                chat.says_goodbye()
        check(await sessions.all_ended(self.chats), "all have left with a Close")


def first(found):
    return f", but {len(found)} times such as {found[0]!r}" if found else ""
