"""Twenty reloads, one a second: what is said of each, what it changes, and that sessions live
on.
"""

import asyncio
import collections
import contextlib
import copy
import dataclasses
import json
import os
import re
import signal
import time
import typing

from evidence import chats, programs, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import all_ended, call

PACE = 1  # seconds from one reload to the next
PODS = 4
SILENT = 10  # sessions that say nothing
WATCHED = 1  # seconds in which a change of a file would have been seen: the watch waits for 0.2
IDLE = (1001, "idle for long")
TOO_BIG = 1009
TOKEN = "an-operators-t0ken"
STATUS = {"applied": 200, "unchanged": 200, "refused": 409, "invalid": 422}


async def show(count):
    say(
        f"{count} sessions say {chats.SIZE} bytes every {chats.PERIOD} s each, {SILENT} others "
        "are silent;"
    )
    say(
        f"  {len(STEPS)} reloads, one every {PACE} s or as soon as the one before has been "
        "looked at"
    )
    ground = Ground(programs.scratch("reloads"), count)
    await ground.start()
    began = time.monotonic()
    for number, step in enumerate(STEPS):
        await asyncio.sleep(max(0.0, began + number * PACE - time.monotonic()))
        say(f"  {number + 1}. {step.by}: {step.what}")
        await take(ground, step)
    say(f"  {len(STEPS)} reloads in {time.monotonic() - began:.1f} s")
    wanted = collections.Counter(step.result for step in STEPS)
    check(
        ground.balancer.reloads() == dict(wanted), f"/telemetry counts {ground.balancer.reloads()}"
    )
    await ground.end()


def settings(pods):
    """What the balancer begins with: one service, which has all requests."""
    return {
        "server": {
            "listen": "127.0.0.1:0",
            "drain_delay": "0s",
            "drain_time": "0s",
            "shutdown_timeout": "1s",
        },
        "admin": {"listen": "127.0.0.1:0"},
        "balancer": {"poll_interval": "200ms", "cold_time": "0s"},
        "log": {"level": "info"},
        "services.chat": {"backends": [pod.url for pod in pods]},
        "routes": [{"service": "chat"}],
    }


async def config(balancer):
    """The settings that hold, as it says."""
    return (await call(balancer.admin, "GET", "/api/config"))[2].decode()


def told(balancer):
    """What it says of the last reload."""
    return balancer.metrics().get("reload", {"result": None, "problems": None})


def has_line(pattern, lines):
    return any(re.search(pattern, line) for line in lines)


class Pod(sessions.Pod):
    """One that remembers what was asked for last."""

    last = None

    @property
    def protocol(self):
        return AtPod


class AtPod(sessions.AtPod):
    def take_head(self, head):
        if head.get("sec-websocket-key"):
            self.pod.last = head
        super().take_head(head)


class File:
    """The file with the settings, and the ways in which files change."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "balancer.toml"
        self.versions = 0

    def written(self, text):
        """Over what is there."""
        self.path.write_text(text)

    def renamed(self, text):
        """Another file in its place, as editors do it."""
        beside = self.folder / ".balancer.toml.new"
        beside.write_text(text)
        os.replace(beside, self.path)

    def swapped(self, text):
        """As Kubernetes updates a ConfigMap: the folder is another one to which `..data` leads."""
        data = self.folder / "..data"
        before = self.folder / os.readlink(data) if data.is_symlink() else None
        self.versions += 1
        version = self.folder / f"..version-{self.versions}"
        version.mkdir()
        (version / self.path.name).write_text(text)
        beside = self.folder / "..data_tmp"
        beside.symlink_to(version.name)
        os.replace(beside, data)
        if before:
            (before / self.path.name).unlink()
            before.rmdir()

    def linked(self, text):
        """A link through `..data` takes the place of the file."""
        self.swapped(text)
        beside = self.folder / ".link"
        beside.symlink_to(os.path.join("..data", self.path.name))
        os.replace(beside, self.path)


class Ground:
    """The pods, the balancer, and who is inside from the first reload to the last."""

    def __init__(self, folder, count):
        self.file, self.count = File(folder), count
        self.crowd, self.silent = chats.Crowd(), []
        self.token = None  # that calls must carry

    async def start(self):
        self.pods = [await Pod(f"pod-{number}").start() for number in range(PODS)]
        self.more, self.video = await Pod("more").start(), await Pod("video").start()
        self.settings = settings(self.pods)
        self.file.written(chats.toml(self.settings))
        self.balancer = chats.Balancer(self.file.path)
        await self.crowd.join(self.balancer.address, self.count)
        self.silent = [
            await chats.enter(self.balancer.address, chats.caller()) for _ in range(SILENT)
        ]
        self.inside = self.balancer.own()
        check(sum(self.inside.values()) == self.count + SILENT, f"own counts: {self.inside}")

    @contextlib.asynccontextmanager
    async def newcomers(self, count=1, path="/"):
        """Clients that have come and leave again."""
        came = [
            await chats.enter(self.balancer.address, chats.Chat("new", path)) for _ in range(count)
        ]
        yield came
        for client in came:
            if client.inside:
                client.says_goodbye()
        await all_ended(came)

    async def stay(self, client):
        """One more that stays to the end."""
        self.silent.append(client)
        await eventually(lambda: sum(self.balancer.own().values()) == self.count + len(self.silent))
        self.inside = self.balancer.own()

    def state(self, pod):
        shown = next(
            (one for one in self.balancer.metrics()["services"] if one["url"] == pod.url), {}
        )
        return shown.get("state")

    async def admin(self, method, path, token=None):
        fields = [f"Authorization: Bearer {token}"] if token else []
        status, _, body = await call(self.balancer.admin, method, path, *fields)
        return status, json.loads(body)

    async def end(self):
        await self.crowd.turn()
        await self.crowd.end()
        check(
            sessions.untouched(self.silent) and await sessions.all_talk(self.silent),
            f"the {len(self.silent)} silent ones have been told nothing, and echo",
        )
        await self.crowd.leave()
        for client in self.silent:
            client.says_goodbye()
        check(
            await eventually(lambda: self.balancer.own() == {}),
            f"own counts in the end: {self.balancer.own()}",
        )
        await chats.stop(self.balancer)
        for pod in [*self.pods, self.more, self.video]:
            pod.stop()


@dataclasses.dataclass
class Step:
    """A reload."""

    what: str
    file: str | None  # how the file changes, a method of File
    how: str  # how the balancer hears of it: by itself, SIGHUP, POST
    result: str
    change: typing.Callable = None  # changes the settings, or returns another text
    says: str | None = None  # what the log has, if it may, and each of the problems of mistakes
    effect: typing.Callable = None

    @property
    def by(self):
        return f"the file is {self.file}" if self.how == "itself" else self.how


async def take(ground, step):
    """One reload and what must be so behind it."""
    balancer = ground.balancer
    before, counted, lines = await config(balancer), balancer.reloads(), len(balancer.lines)
    text = proposed(ground, step)
    if step.file:
        getattr(ground.file, step.file)(text)
    await trigger(ground, step)
    wanted = {**counted, step.result: counted[step.result] + 1}
    await eventually(
        lambda: balancer.reloads() == wanted and told(balancer)["result"] == step.result
    )
    outcome = told(balancer)
    logged = not step.says or await eventually(lambda: has_line(step.says, balancer.lines[lines:]))
    check(
        balancer.reloads() == wanted and outcome["result"] == step.result and logged,
        f"{step.result}, say /balancer-metrics, /telemetry and "
        f"{'the log' if step.says else 'no log'}",
    )
    for problem in outcome["problems"]:
        say(f"         {problem}")
    bad = step.result in ("refused", "invalid")
    named = bool(outcome["problems"]) == bad and all(
        re.search(step.says, one) for one in outcome["problems"]
    )
    changes = (await config(balancer) != before) == (step.result == "applied")
    check(
        named and changes,
        f"/api/config {'is another' if step.result == 'applied' else 'is as it was'}",
    )
    if step.effect:
        await step.effect(ground)
    same = await eventually(lambda: balancer.own() == ground.inside)
    check(
        same and ground.crowd.stay() and sessions.untouched(ground.silent),
        f"nobody is dropped, own counts are as before{'' if same else f': {balancer.own()}'}",
    )


def proposed(ground, step):
    """What the file shall hold; good settings are those that the next step begins with."""
    changed = copy.deepcopy(ground.settings)
    text = step.change(changed, ground) if step.change else None
    if step.result == "applied":
        ground.settings = changed
    return chats.toml(changed) if text is None else text


async def trigger(ground, step):
    if step.how == "SIGHUP":
        ground.balancer.process.send_signal(signal.SIGHUP)
    elif step.how == "POST":
        status, answer = await ground.admin("POST", "/api/reload", ground.token)
        shown = told(ground.balancer)
        check(
            status == STATUS[step.result] and answer == shown,
            f"POST /api/reload: {status} {answer}",
        )


def sets(section, **values):
    """A change of some keys."""

    def change(settings, _):
        settings.setdefault(section, {}).update(values)

    return change


def limited(settings, ground):
    settings["server"]["max_sessions"] = ground.count + SILENT


def with_more(settings, ground):
    settings["services.chat"]["backends"].append(ground.more.url)


def without_first(settings, ground):
    settings["services.chat"]["backends"].remove(ground.pods[0].url)


def with_first(settings, ground):
    settings["services.chat"]["backends"].append(ground.pods[0].url)
    settings["log"]["level"] = "debug"


def elsewhere(settings, ground):
    settings["server"]["listen"] = "127.0.0.2:0"
    settings["services.chat"]["backends"] = [ground.video.url]


def with_video(settings, ground):
    settings["services.video"] = {"backends": [ground.video.url]}
    settings["routes"].append(
        {"path_prefix": "/video", "strip_prefix": "/video", "service": "video"}
    )


def with_a_tie(settings, _):
    settings["routes"].append({"service": "video"})


def without_video(settings, _):
    del settings["services.video"]
    settings["routes"].pop()


def moved(settings, _):
    settings["admin"]["listen"] = "127.0.0.2:0"
    settings["server"]["workers"] = 7
    settings["log"]["level"] = "error"


def small(settings, _):
    settings["balancer"]["max_message_size"] = chats.SIZE // 2
    settings["balancer"]["idle_timeout"] = "1h"


def marked(settings, _):
    settings["balancer"]["max_message_size"] = 0
    settings["balancer"]["set_headers"] = ["X-Reloaded: yes"]


def with_token(settings, _):
    settings["admin"]["token"] = TOKEN
    settings["log"]["level"] = "info"


def no_toml(*_):
    return "[server\nmax_sessions = 0\n"


async def is_full(ground):
    async with ground.newcomers() as [client]:
        check(client.status == 503, f"a newcomer gets {client.status}: there is no room")


async def has_room(ground):
    async with ground.newcomers() as [client]:
        check(client.status == 101, f"a newcomer gets {client.status}")


async def goes_to_more(ground):
    async with ground.newcomers(10) as came:
        check(
            {client.pod for client in came} == {"more"},
            f"newcomers are at the new pod, {ground.state(ground.more)}",
        )


async def drains(ground):
    """The pod that is gone takes nobody, though it could be the emptiest, and keeps its
    sessions.
    """
    first = ground.pods[0]
    check(
        ground.state(first) == "draining",
        f"the pod that is gone is {ground.state(first)},"
        f" with {ground.balancer.own().get(first.url)} sessions",
    )
    async with ground.newcomers(10) as came:
        check(
            all(client.status == 101 and client.pod != first.name for client in came),
            "newcomers are at others",
        )


async def is_at_home(ground):
    check(
        ground.state(ground.video) is None and ground.state(ground.more) == "up",
        "its pods are as they were",
    )
    await has_room(ground)


async def is_back(ground):
    check(
        await eventually(lambda: ground.state(ground.pods[0]) == "up"),
        "the pod that was gone is up",
    )
    lines = len(ground.balancer.lines)
    await has_room(ground)
    found = await eventually(lambda: has_level("DEBUG", ground.balancer.lines[lines:]))
    check(found, "the log has DEBUG lines")
    await is_logged(ground)


def has_level(level, lines):
    return has_line(rf"^\[\S+ {level}\b", lines)


async def is_logged(ground):
    """A call that changes something is logged as INFO."""
    lines = len(ground.balancer.lines)
    await ground.admin("DELETE", "/api/sessions/0", ground.token)
    check(
        await eventually(lambda: has_level("INFO", ground.balancer.lines[lines:])), "and INFO lines"
    )


async def is_blind(ground):
    """Nothing happens by itself any more."""
    counted = ground.balancer.reloads()
    ground.file.swapped(no_toml())
    await asyncio.sleep(WATCHED)
    check(
        ground.balancer.reloads() == counted, f"a change of the file does nothing for {WATCHED} s"
    )


async def goes_to_video(ground):
    async with ground.newcomers(2, "/video/watch") as came:
        check(
            {client.pod for client in came} == {"video"} and ground.video.last.target == "/watch",
            "newcomers at /video/watch are at the pod of the new service, which sees "
            f"{ground.video.last.target}",
        )
    async with ground.newcomers() as [client]:
        check(client.pod != "video", f"others are at {client.pod}")
    await ground.stay(await chats.enter(ground.balancer.address, chats.caller("/video")))


async def ends_idle(ground):
    async with ground.newcomers() as [client]:
        ended = await all_ended([client])
        check(
            ended and client.close == IDLE,
            f"a newcomer that says nothing: {client.told()}; the silent ones stay",
        )


async def ends_large(ground):
    async with ground.newcomers() as [client]:
        client.talk()
        ended = await all_ended([client])
        check(
            ended and client.close and client.close[0] == TOO_BIG,
            f"a newcomer that says {chats.SIZE} bytes: {client.told()}; the chats that do go on",
        )


async def is_marked(ground):
    async with ground.newcomers() as [client]:
        client.talk()
        echoed = await eventually(lambda: client.echoed)
        mark = next(pod for pod in [*ground.pods, ground.more] if pod.name == client.pod).last.get(
            "x-reloaded"
        )
        check(
            echoed and mark == "yes",
            f"a newcomer's pod sees X-Reloaded: {mark}, and its {chats.SIZE} bytes pass",
        )


async def is_quiet(ground):
    """What is logged as INFO is not, up to a session that comes and leaves later."""
    lines = len(ground.balancer.lines)
    await ground.admin("DELETE", "/api/sessions/0")
    await has_room(ground)
    check(
        not has_level("INFO", ground.balancer.lines[lines:]), "the log has no INFO lines any more"
    )


async def needs_token(ground):
    status, _ = await ground.admin("POST", "/api/reload")
    ground.token = TOKEN
    check(status == 401, f"POST /api/reload without the token: {status}")
    await is_logged(ground)


async def has_no_video(ground):
    async with ground.newcomers(2, "/video/watch") as came:
        check(
            all(client.status == 101 and client.pod != "video" for client in came),
            "newcomers at /video/watch are at the pods of the other service",
        )


STEPS = [
    Step(
        "server.max_sessions as many as there are",
        "written",
        "itself",
        "applied",
        limited,
        r"reload applied: server\.max_sessions",
        is_full,
    ),
    Step("no TOML", "renamed", "itself", "invalid", no_toml, r"balancer\.toml", is_full),
    Step(
        "no limit",
        "renamed",
        "itself",
        "applied",
        sets("server", max_sessions=0),
        r"reload applied: server\.max_sessions",
        has_room,
    ),
    Step(
        "one more pod",
        "linked",
        "itself",
        "applied",
        with_more,
        r"services\.chat\.backends",
        goes_to_more,
    ),
    Step(
        "one pod less",
        "swapped",
        "itself",
        "applied",
        without_first,
        r"services\.chat\.backends",
        drains,
    ),
    Step(
        "server.listen is another, and all pods are",
        "swapped",
        "itself",
        "refused",
        elsewhere,
        r"server\.listen: .* requires a restart",
        is_at_home,
    ),
    Step(
        "the pod is back; log.level = debug",
        "swapped",
        "itself",
        "applied",
        with_first,
        r"log\.level",
        is_back,
    ),
    Step(
        "admin.watch_config = false",
        "swapped",
        "itself",
        "applied",
        sets("admin", watch_config=False),
        r"admin\.watch_config",
        is_blind,
    ),
    Step(
        "a new service with a route",
        "swapped",
        "SIGHUP",
        "applied",
        with_video,
        r"services\.video",
        goes_to_video,
    ),
    Step(
        "idle_timeout = soon",
        "swapped",
        "SIGHUP",
        "invalid",
        sets("balancer", idle_timeout="soon"),
        r"balancer\.idle_timeout = \"soon\"",
        has_room,
    ),
    Step(
        "idle_timeout = 500ms",
        "renamed",
        "SIGHUP",
        "applied",
        sets("balancer", idle_timeout="500ms"),
        r"balancer\.idle_timeout",
        ends_idle,
    ),
    Step("nothing is different", None, "POST", "unchanged", says="the settings are the same"),
    Step(
        "a limit for messages, idle_timeout = 1h",
        "written",
        "POST",
        "applied",
        small,
        r"balancer\.max_message_size",
        ends_large,
    ),
    Step("two routes that tie", "written", "POST", "invalid", with_a_tie, r"routes", ends_large),
    Step(
        "admin.listen, server.workers and log.level are others",
        "written",
        "POST",
        "refused",
        moved,
        r"(admin\.listen|server\.workers): .* requires a restart",
        ends_large,
    ),
    Step(
        "no limit for messages, one more header for pods",
        "written",
        "POST",
        "applied",
        marked,
        r"balancer\.set_headers",
        is_marked,
    ),
    Step(
        "a key that there is not",
        "renamed",
        "SIGHUP",
        "invalid",
        sets("balancer", idle_timeuot="1s"),
        r"idle_timeuot",
        is_marked,
    ),
    Step(
        "log.level = warn",
        "renamed",
        "SIGHUP",
        "applied",
        sets("log", level="warn"),
        effect=is_quiet,
    ),
    Step(
        "a token for operators, log.level = info",
        "written",
        "POST",
        "applied",
        with_token,
        r"admin\.token: .*\*\*\*",
        needs_token,
    ),
    Step(
        "the service and its route are gone",
        "written",
        "POST",
        "applied",
        without_video,
        r"services\.video",
        has_no_video,
    ),
]
