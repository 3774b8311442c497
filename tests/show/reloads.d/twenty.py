"""Twenty reloads, one per second: the result of each, its effect, and that all sessions stay."""

import asyncio
import collections
import contextlib
import copy
import dataclasses
import json
import re
import signal
import time
import typing

from evidence import chats, files, programs, sessions
from evidence.checks import check, say
from evidence.scripted import eventually
from evidence.sessions import call, wait_until_ended

STEP_SECONDS = 1  # seconds from one reload to the next
PODS = 4
SILENT = 10  # sessions that send nothing
WATCH_SECONDS = (
    1  # seconds in which a change of the file would have been noticed; the watcher waits for 0.2
)
IDLE = (1001, "idle timeout")
TOO_BIG = 1009
TOKEN = "an-operators-t0ken"
FILE_CHANGES = {
    "written": "overwritten",
    "renamed": "replaced by a rename",
    "swapped": "swapped by its folder's link",
    "linked": "replaced by a link",
}
STATUS = {"applied": 200, "unchanged": 200, "refused": 409, "invalid": 422}


async def show(count):
    say(
        f"{count} sessions send {chats.SIZE} bytes every {chats.PERIOD} s each, {SILENT} others "
        "send nothing;"
    )
    say(
        f"  {len(STEPS)} reloads, one every {STEP_SECONDS} s or as soon as the previous one is "
        "checked"
    )
    environment = Environment(programs.scratch("reloads"), count)
    await environment.start()
    began = time.monotonic()
    for number, step in enumerate(STEPS):
        await asyncio.sleep(max(0.0, began + number * STEP_SECONDS - time.monotonic()))
        say(f"  {number + 1}. {step.by}: {step.what}")
        await run_step(environment, step)
    say(f"  {len(STEPS)} reloads in {time.monotonic() - began:.1f} s")
    expected = collections.Counter(step.result for step in STEPS)
    check(
        environment.balancer.reloads() == dict(expected),
        f"/telemetry counts {environment.balancer.reloads()}",
    )
    await environment.end()


def settings(pods):
    """Returns the initial settings: one service for all requests."""
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
    """Returns the answer of `GET /api/config`, the settings in effect."""
    return (await call(balancer.admin, "GET", "/api/config"))[2].decode()


def last_reload(balancer):
    """Returns the last reload in /balancer-metrics."""
    return balancer.metrics().get("reload", {"result": None, "problems": None})


def has_line(pattern, lines):
    return any(re.search(pattern, line) for line in lines)


class Pod(sessions.Pod):
    """A pod that keeps the last handshake."""

    last = None

    @property
    def protocol(self):
        return AtPod


class AtPod(sessions.PodConnection):
    def take_head(self, head):
        if head.get("sec-websocket-key"):
            self.pod.last = head
        super().take_head(head)


class File:
    """The configuration file, with the ways in which tools change files."""

    def __init__(self, folder):
        self.path = folder / "balancer.toml"
        self.mounted = files.MountedFolder(folder)

    def written(self, text):
        """Overwrites the file in place."""
        self.path.write_text(text)

    def renamed(self, text):
        """Renames a new file over the old one, as editors do."""
        files.replace_file(self.path, text)

    def swapped(self, text):
        """Points `..data` to a new folder, as Kubernetes does when it updates a ConfigMap."""
        self.mounted.publish({self.path.name: text})

    def linked(self, text):
        """Replaces the file by a link through `..data`."""
        self.swapped(text)
        self.mounted.link(self.path.name)


class Environment:
    """The pods, the balancer, and the sessions that are open during all reloads."""

    def __init__(self, folder, count):
        self.file, self.count = File(folder), count
        self.crowd, self.silent = chats.Crowd(), []
        self.token = None  # the token that admin calls must carry

    async def start(self):
        self.pods = [await Pod(f"pod-{number}").start() for number in range(PODS)]
        self.added_pod, self.video = await Pod("more").start(), await Pod("video").start()
        self.settings = settings(self.pods)
        self.file.written(chats.toml(self.settings))
        self.balancer = chats.Balancer(self.file.path)
        await self.crowd.open_sessions(self.balancer.address, self.count)
        self.silent = [
            await chats.connect(self.balancer.address, chats.new_client()) for _ in range(SILENT)
        ]
        self.counts = self.balancer.own()
        check(
            sum(self.counts.values()) == self.count + SILENT,
            f"the balancer's session counts: {self.counts}",
        )

    @contextlib.asynccontextmanager
    async def new_clients(self, count=1, path="/"):
        """Opens sessions, and ends them when the block is left."""
        clients = [
            await chats.connect(self.balancer.address, chats.Chat("new", path))
            for _ in range(count)
        ]
        yield clients
        for client in clients:
            if client.inside:
                client.send_close()
        await wait_until_ended(clients)

    async def keep_open(self, client):
        """Adds a client whose session must stay open to the end."""
        self.silent.append(client)
        await eventually(lambda: sum(self.balancer.own().values()) == self.count + len(self.silent))
        self.counts = self.balancer.own()

    def state(self, pod):
        entry = next(
            (one for one in self.balancer.metrics()["services"] if one["url"] == pod.url), {}
        )
        return entry.get("state")

    async def admin(self, method, path, token=None):
        fields = [f"Authorization: Bearer {token}"] if token else []
        status, _, body = await call(self.balancer.admin, method, path, *fields)
        return status, json.loads(body)

    async def end(self):
        await self.crowd.all_echoed()
        await self.crowd.finish()
        check(
            sessions.are_undisturbed(self.silent) and await sessions.all_talk(self.silent),
            f"the {len(self.silent)} silent sessions have received nothing, and still echo",
        )
        await self.crowd.leave()
        for client in self.silent:
            client.send_close()
        check(
            await eventually(lambda: self.balancer.own() == {}),
            f"session counts at the end: {self.balancer.own()}",
        )
        await chats.stop(self.balancer)
        for pod in [*self.pods, self.added_pod, self.video]:
            pod.stop()


@dataclasses.dataclass
class Step:
    """One reload."""

    what: str
    file: str | None  # how the file is changed: the name of a method of File
    how: str  # what triggers the reload: the file watcher ("itself"), SIGHUP or POST
    result: str
    change: typing.Callable = None  # changes the settings, or returns the text of the file
    says: str | None = None  # a pattern for the log line, and for each problem of a failed reload
    effect: typing.Callable = None

    @property
    def by(self):
        return f"the file is {FILE_CHANGES[self.file]}" if self.how == "itself" else self.how


async def run_step(environment, step):
    """Runs one reload and checks its result, its effect, and that no session is dropped."""
    balancer = environment.balancer
    before, count_before, lines = await config(balancer), balancer.reloads(), len(balancer.lines)
    text = new_text(environment, step)
    if step.file:
        getattr(environment.file, step.file)(text)
    await trigger(environment, step)
    expected = {**count_before, step.result: count_before[step.result] + 1}
    await eventually(
        lambda: balancer.reloads() == expected and last_reload(balancer)["result"] == step.result
    )
    outcome = last_reload(balancer)
    logged = not step.says or await eventually(lambda: has_line(step.says, balancer.lines[lines:]))
    check(
        balancer.reloads() == expected and outcome["result"] == step.result and logged,
        f"{step.result}, according to /balancer-metrics, "
        f"/telemetry{' and the log' if step.says else ''}",
    )
    for problem in outcome["problems"]:
        say(f"         {problem}")
    bad = step.result in ("refused", "invalid")
    names_all = bool(outcome["problems"]) == bad and all(
        re.search(step.says, one) for one in outcome["problems"]
    )
    changes = (await config(balancer) != before) == (step.result == "applied")
    check(
        names_all and changes,
        f"/api/config {'has changed' if step.result == 'applied' else 'is unchanged'}",
    )
    if step.effect:
        await step.effect(environment)
    is_unchanged = await eventually(lambda: balancer.own() == environment.counts)
    check(
        is_unchanged
        and environment.crowd.is_undisturbed()
        and sessions.are_undisturbed(environment.silent),
        "no session is dropped, session counts are as "
        f"before{'' if is_unchanged else f': {balancer.own()}'}",
    )


def new_text(environment, step):
    """Returns the new text of the file. Applied settings are the base of the next step."""
    changed = copy.deepcopy(environment.settings)
    text = step.change(changed, environment) if step.change else None
    if step.result == "applied":
        environment.settings = changed
    return chats.toml(changed) if text is None else text


async def trigger(environment, step):
    if step.how == "SIGHUP":
        environment.balancer.process.send_signal(signal.SIGHUP)
    elif step.how == "POST":
        status, answer = await environment.admin("POST", "/api/reload", environment.token)
        entry = last_reload(environment.balancer)
        check(
            status == STATUS[step.result] and answer == entry,
            f"POST /api/reload: {status} {answer}",
        )


def set_keys(section, **values):
    """Returns a change that sets keys of a section."""

    def change(settings, _):
        settings.setdefault(section, {}).update(values)

    return change


def limit_sessions(settings, environment):
    settings["server"]["max_sessions"] = environment.count + SILENT


def add_pod(settings, environment):
    settings["services.chat"]["backends"].append(environment.added_pod.url)


def remove_pod(settings, environment):
    settings["services.chat"]["backends"].remove(environment.pods[0].url)


def restore_pod(settings, environment):
    settings["services.chat"]["backends"].append(environment.pods[0].url)
    settings["log"]["level"] = "debug"


def change_listener(settings, environment):
    settings["server"]["listen"] = "127.0.0.2:0"
    settings["services.chat"]["backends"] = [environment.video.url]


def add_service(settings, environment):
    settings["services.video"] = {"backends": [environment.video.url]}
    settings["routes"].append(
        {"path_prefix": "/video", "strip_prefix": "/video", "service": "video"}
    )


def add_tied_route(settings, _):
    settings["routes"].append({"service": "video"})


def remove_service(settings, _):
    del settings["services.video"]
    settings["routes"].pop()


def change_admin_listener(settings, _):
    settings["admin"]["listen"] = "127.0.0.2:0"
    settings["server"]["workers"] = 7
    settings["log"]["level"] = "error"


def limit_messages(settings, _):
    settings["balancer"]["max_message_size"] = chats.SIZE // 2
    settings["balancer"]["idle_timeout"] = "1h"


def set_header(settings, _):
    settings["balancer"]["max_message_size"] = 0
    settings["balancer"]["set_headers"] = ["X-Reloaded: yes"]


def set_token(settings, _):
    settings["admin"]["token"] = TOKEN
    settings["log"]["level"] = "info"


def invalid_toml(*_):
    return "[server\nmax_sessions = 0\n"


async def check_full(environment):
    async with environment.new_clients() as [client]:
        check(client.status == 503, f"a new client gets {client.status}: the limit is reached")


async def check_accepted(environment):
    async with environment.new_clients() as [client]:
        check(client.status == 101, f"a new client gets {client.status}")


async def check_added_pod(environment):
    async with environment.new_clients(10) as clients:
        check(
            {client.pod for client in clients} == {"more"},
            f"new sessions go to the new pod, which is {environment.state(environment.added_pod)}",
        )


async def check_draining(environment):
    """Checks that the removed pod keeps its sessions and gets no new ones."""
    first = environment.pods[0]
    check(
        environment.state(first) == "draining",
        f"the removed pod is {environment.state(first)},"
        f" with {environment.balancer.own().get(first.url)} sessions",
    )
    async with environment.new_clients(10) as clients:
        check(
            all(client.status == 101 and client.pod != first.name for client in clients),
            "new sessions go to other pods",
        )


async def check_unchanged(environment):
    check(
        environment.state(environment.video) is None
        and environment.state(environment.added_pod) == "up",
        "the pods are unchanged",
    )
    await check_accepted(environment)


async def check_restored(environment):
    check(
        await eventually(lambda: environment.state(environment.pods[0]) == "up"),
        "the pod that was removed is up again",
    )
    lines = len(environment.balancer.lines)
    await check_accepted(environment)
    found = await eventually(lambda: has_level("DEBUG", environment.balancer.lines[lines:]))
    check(found, "the log has DEBUG lines")
    await check_logged(environment)


def has_level(level, lines):
    return has_line(rf"^\[\S+ {level}\b", lines)


async def check_logged(environment):
    """Checks that an admin call that changes something is logged as INFO."""
    lines = len(environment.balancer.lines)
    await environment.admin("DELETE", "/api/sessions/0", environment.token)
    check(
        await eventually(lambda: has_level("INFO", environment.balancer.lines[lines:])),
        "the log has INFO lines",
    )


async def check_unwatched(environment):
    """Checks that the file is not watched any more."""
    count_before = environment.balancer.reloads()
    environment.file.swapped(invalid_toml())
    await asyncio.sleep(WATCH_SECONDS)
    check(
        environment.balancer.reloads() == count_before,
        f"a change of the file has no effect within {WATCH_SECONDS} s",
    )


async def check_new_service(environment):
    async with environment.new_clients(2, "/video/watch") as clients:
        check(
            {client.pod for client in clients} == {"video"}
            and environment.video.last.target == "/watch",
            "new sessions at /video/watch go to the pod of the new service, which sees "
            f"{environment.video.last.target}",
        )
    async with environment.new_clients() as [client]:
        check(client.pod != "video", f"others go to {client.pod}")
    await environment.keep_open(
        await chats.connect(environment.balancer.address, chats.new_client("/video"))
    )


async def check_idle_timeout(environment):
    async with environment.new_clients() as [client]:
        ended = await wait_until_ended([client])
        check(
            ended and client.close == IDLE,
            f"a new session that sends nothing: {client.ending()}; the older silent sessions stay",
        )


async def check_message_limit(environment):
    async with environment.new_clients() as [client]:
        client.talk()
        ended = await wait_until_ended([client])
        check(
            ended and client.close and client.close[0] == TOO_BIG,
            f"a new session that sends {chats.SIZE} bytes: {client.ending()}; the older sessions "
            "that do so stay",
        )


async def check_header(environment):
    async with environment.new_clients() as [client]:
        client.talk()
        echoed = await eventually(lambda: client.echoed)
        header = next(
            pod for pod in [*environment.pods, environment.added_pod] if pod.name == client.pod
        ).last.get("x-reloaded")
        check(
            echoed and header == "yes",
            f"the pod of a new session sees X-Reloaded: {header}, and {chats.SIZE} bytes are "
            "echoed",
        )


async def check_quiet(environment):
    """Checks that INFO lines are not logged any more.

    A later session shows that the log is up to date.
    """
    lines = len(environment.balancer.lines)
    await environment.admin("DELETE", "/api/sessions/0")
    await check_accepted(environment)
    check(
        not has_level("INFO", environment.balancer.lines[lines:]), "the log has no more INFO lines"
    )


async def check_token(environment):
    status, _ = await environment.admin("POST", "/api/reload")
    environment.token = TOKEN
    check(status == 401, f"POST /api/reload without the token: {status}")
    await check_logged(environment)


async def check_removed_service(environment):
    async with environment.new_clients(2, "/video/watch") as clients:
        check(
            all(client.status == 101 and client.pod != "video" for client in clients),
            "new sessions at /video/watch go to the pods of the other service",
        )


STEPS = [
    Step(
        "server.max_sessions = the number of open sessions",
        "written",
        "itself",
        "applied",
        limit_sessions,
        r"reload applied: server\.max_sessions",
        check_full,
    ),
    Step("not TOML", "renamed", "itself", "invalid", invalid_toml, r"balancer\.toml", check_full),
    Step(
        "server.max_sessions = 0",
        "renamed",
        "itself",
        "applied",
        set_keys("server", max_sessions=0),
        r"reload applied: server\.max_sessions",
        check_accepted,
    ),
    Step(
        "a pod is added",
        "linked",
        "itself",
        "applied",
        add_pod,
        r"services\.chat\.backends",
        check_added_pod,
    ),
    Step(
        "a pod is removed",
        "swapped",
        "itself",
        "applied",
        remove_pod,
        r"services\.chat\.backends",
        check_draining,
    ),
    Step(
        "server.listen and all pods are changed",
        "swapped",
        "itself",
        "refused",
        change_listener,
        r"server\.listen: .* requires a restart",
        check_unchanged,
    ),
    Step(
        "the pod is added again; log.level = debug",
        "swapped",
        "itself",
        "applied",
        restore_pod,
        r"log\.level",
        check_restored,
    ),
    Step(
        "admin.watch_config = false",
        "swapped",
        "itself",
        "applied",
        set_keys("admin", watch_config=False),
        r"admin\.watch_config",
        check_unwatched,
    ),
    Step(
        "a service and its route are added",
        "swapped",
        "SIGHUP",
        "applied",
        add_service,
        r"services\.video",
        check_new_service,
    ),
    Step(
        "idle_timeout = soon",
        "swapped",
        "SIGHUP",
        "invalid",
        set_keys("balancer", idle_timeout="soon"),
        r"balancer\.idle_timeout = \"soon\"",
        check_accepted,
    ),
    Step(
        "idle_timeout = 500ms",
        "renamed",
        "SIGHUP",
        "applied",
        set_keys("balancer", idle_timeout="500ms"),
        r"balancer\.idle_timeout",
        check_idle_timeout,
    ),
    Step("nothing is changed", None, "POST", "unchanged", says="settings unchanged"),
    Step(
        "max_message_size is set, idle_timeout = 1h",
        "written",
        "POST",
        "applied",
        limit_messages,
        r"balancer\.max_message_size",
        check_message_limit,
    ),
    Step(
        "two routes with the same rule",
        "written",
        "POST",
        "invalid",
        add_tied_route,
        r"routes",
        check_message_limit,
    ),
    Step(
        "admin.listen, server.workers and log.level are changed",
        "written",
        "POST",
        "refused",
        change_admin_listener,
        r"(admin\.listen|server\.workers): .* requires a restart",
        check_message_limit,
    ),
    Step(
        "max_message_size = 0, set_headers is set",
        "written",
        "POST",
        "applied",
        set_header,
        r"balancer\.set_headers",
        check_header,
    ),
    Step(
        "an unknown key",
        "renamed",
        "SIGHUP",
        "invalid",
        set_keys("balancer", idle_timeuot="1s"),
        r"idle_timeuot",
        check_header,
    ),
    Step(
        "log.level = warn",
        "renamed",
        "SIGHUP",
        "applied",
        set_keys("log", level="warn"),
        effect=check_quiet,
    ),
    Step(
        "admin.token is set, log.level = info",
        "written",
        "POST",
        "applied",
        set_token,
        r"admin\.token: .*\*\*\*",
        check_token,
    ),
    Step(
        "the service and its route are removed",
        "written",
        "POST",
        "applied",
        remove_service,
        r"services\.video",
        check_removed_service,
    ),
]
