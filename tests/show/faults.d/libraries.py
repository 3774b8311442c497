"""The same cases with client libraries: close code, reason, and whether the Close was answered.

Each client is a process of its own. Lines to its input are sent as messages, and the end of its
input sends Close 1000. It is stopped (SIGSTOP) so that it reads nothing, and killed so that it
disconnects.
"""

import asyncio
import dataclasses
import json
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import play
import table
from ends import FLOOD_FRAME, OPEN_MASK, readable
from evidence import install, programs, scripted
from evidence.checks import check, say
from table import (
    ALL,
    ANY,
    DRAIN_CODES,
    FAREWELLS,
    FIRST,
    GONE,
    LONG,
    SILENT,
    STALLED,
    WITHIN,
    WORD,
    Cell,
    close,
    gets,
)

HERE = Path(__file__).parent
TUNGSTENITE = "tungstenite-client"
LANES = 6
NO_CLOSE = ("none", "", False)  # RFC 6455 calls this 1006, which is never sent
FLOOD_FRAME_WHOLE = FLOOD_FRAME + 4  # including its header
TEXT = "a text"
STATUSES = "502", "504"
LAST_WORD = re.compile(r"{|closed|cannot connect|connection lost")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a library reports: code and reason of the received Close, whether it was answered, and
    the lengths of the messages before it.
    """

    code: object
    reason: str
    clean: bool
    messages: object = ()  # ALL or ANY of a flood

    def __str__(self):
        count = (
            self.messages if isinstance(self.messages, str) else f"{len(self.messages)} messages"
        )
        result = f"Close {self.code} {self.reason!r}" if self.code != "none" else "no Close"
        return f"{count}, {result}, {'clean' if self.clean else 'not clean'}"


class Client:
    """A process that connects to `url`."""

    def __init__(self, command, cwd=None):
        self.command, self.cwd = command, cwd
        self.process = None
        self.lines = []

    async def connect(self, url):
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *map(str, self.command),
            url,
            cwd=self.cwd,
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def connected(self):
        """Waits for its first line: connected, or why not."""
        self.lines.append(await self._line())
        return self.lines[0].startswith("connected")

    async def _line(self):
        line = await asyncio.wait_for(self.process.stdout.readline(), play.SETTLE)
        if not line:
            raise RuntimeError(f"the client exited without a report: {self.lines}")
        return line.decode().rstrip("\n")

    def send(self, text):
        self.process.stdin.write(text.encode() + b"\n")

    async def report(self):
        """Returns what it reports at the end of its session."""
        while not LAST_WORD.match(self.lines[-1]):
            self.lines.append(await self._line())
        self.process.stdin.close()
        await self.process.wait()
        return self._parse_report()

    def _parse_report(self):
        sizes = tuple(int(line.split()[1]) for line in self.lines if line.startswith("message "))
        result = json.loads(self.lines[-1])
        if "error" in result:
            return re.search(r"\b\d{3}\b", result["error"])[0]
        return Report(
            *NO_CLOSE
            if result["code"] == 1006
            else (result["code"], result["reason"], result["clean"]),
            sizes,
        )

    async def end(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


class OwnClient(Client):
    """`wsbalancer client`: it prints texts unchanged and the length of other messages, and reports
    no HTTP status.
    """

    def _parse_report(self):
        _, *texts, last = self.lines
        closed = re.fullmatch(r"closed(?:: (\d+) ?(.*))?", last)
        found = (int(closed[1] or 1005), closed[2] or "", True) if closed else NO_CLOSE
        binary = [re.fullmatch(r"\((\d+) binary bytes\)", text) for text in texts]
        return Report(
            *found, tuple(int(size[1]) if size else len(text) for size, text in zip(binary, texts))
        )


class LibraryPlay(play.Play):
    """A case whose client is a library. Its report stands for what the client receives."""

    def __init__(self, cell, number, balancer, pods, client, **more):
        super().__init__(cell, number, balancer, pods, **more)
        self.client = client

    async def run(self):
        try:
            return await super().run()
        finally:
            await self.client.end()

    async def asks(self):
        await self.client.connect(f"ws://{self.balancer.address}{self.path}")

    async def switched(self):
        if not await self.client.connected():
            raise RuntimeError(f"not connected: {self.client.lines}")

    async def refused(self):
        await self.client.connected()

    async def sends(self, text):
        self.client.send(text)

    async def closes(self):
        self.client.process.stdin.close()

    async def pauses(self):
        self.client.process.send_signal(signal.SIGSTOP)

    async def resumes(self):
        self.client.process.send_signal(signal.SIGCONT)

    async def vanishes(self):
        self.client.process.kill()

    async def passes(self, data):
        """Sends data from the pod. Whether they arrive is checked at the end."""
        await self.side["pod"].send(data)

    async def _outcome(self):
        pod = self.side["pod"]
        if not pod.gone:
            await self._see_off(pod)
        report = await self.client.report() if self.cell.client != GONE else GONE
        end = GONE if pod.gone else await pod.last()
        return LibraryOutcome(report, readable(bytes(pod.got), all_masks=True), end, len(pod.flood))


@dataclasses.dataclass
class LibraryOutcome:
    """The outcome of a case."""

    report: object
    got: bytes  # received by the pod
    end: str  # end of the pod's connection
    flood: int  # bytes that the pod sent to the client

    def fits(self, cell):
        pod = cell.pod
        is_pod_right = (
            self.end == GONE
            if pod == GONE
            else (self.got, self.end) == (b"".join(pod.parts), pod.end)
        )
        return is_pod_right and self._is(cell.client)

    def _is(self, expected):
        if isinstance(expected, list):
            return any(map(self._is, expected))
        if not isinstance(self.report, Report) or not isinstance(
            getattr(expected, "messages", None), str
        ):
            return self.report == expected
        count, most = len(self.report.messages), self.flood // FLOOD_FRAME_WHOLE
        is_enough = count == most if expected.messages == ALL else count < most
        is_whole = {*self.report.messages} <= {FLOOD_FRAME}
        return (
            is_enough
            and is_whole
            and dataclasses.replace(self.report, messages=expected.messages) == expected
        )


def cells():
    """The same cases as on raw sockets. `client` is what the library reports."""
    yield from deaths()
    yield from handshakes()
    yield from closes()
    yield from given_up()
    yield from limits()


def deaths():
    lost = 1012, "pod disconnected without a Close frame", True
    word, cut = WORD["pod"], WITHIN["within a frame"]("pod")[0]
    for act, name in (("leaves", "FIN"), ("resets", "RST")):
        row, end = f"the pod disconnects by {name}", (act, "pod")
        for variant, data, report in (
            ("no data", b"", Report(*lost)),
            ("after a message", word, Report(*lost, (15,))),
            ("between two fragments", word + FIRST["pod"], Report(*lost, (15,))),
            ("within a frame", cut, Report(*NO_CLOSE, (15,))),
            ("within a header", word + cut[17:20], Report(*NO_CLOSE, (15,))),
        ):
            yield Cell(row, variant, "calm", (("passes", data), end), client=report, pod=GONE)
    row = "the pod disconnects by FIN"
    steps = ("passes", LONG["pod"] * 4), ("leaves", "pod")
    yield Cell(
        row, "with 1.2 MB in flight", "calm", steps, client=Report(*lost, (307_200,) * 4), pod=GONE
    )
    steps = ("pauses",), ("floods", "pod"), ("leaves", "pod"), ("resumes",)
    yield Cell(row, "the client does not read", "calm", steps, client=Report(*lost, ALL), pod=GONE)
    steps = (("leaves", "pod"),)
    report = Report(4321, "pod disconnected without a Close frame", True)
    yield Cell(row, "close_code_pod_lost = 4321", "custom", steps, client=report, pod=GONE)
    steps = ("sends", TEXT), ("receives", "pod", 1), ("vanishes",)
    last = gets(said(TEXT), FAREWELLS["client"])
    yield Cell("the client dies", "after a message", "calm", steps, client=GONE, pod=last)


def handshakes():
    begin = ("asks",), ("asked",)
    row = "the pod dies during the handshake"
    for act, name in (("leaves", "FIN"), ("resets", "RST")):
        steps = *begin, ("replies", 0.5), (act, "pod"), ("refused",)
        yield Cell(row, f"by {name}", "calm", steps, begun=False, client="502", pod=GONE)
    steps = *begin, ("replies", 0.5), ("refused",)
    row = "the pod falls silent during the handshake"
    yield Cell(
        row,
        "half of the 101 has arrived",
        "handshakes",
        steps,
        begun=False,
        client="504",
        pod=gets(),
    )
    for name, data, report in (
        ("no data", b"", Report(1012, "pod disconnected without a Close frame", True)),
        (
            "between two fragments",
            FIRST["pod"],
            Report(1012, "pod disconnected without a Close frame", True),
        ),
        ("within a frame", WORD["pod"][:5], Report(*NO_CLOSE)),
    ):
        steps = *begin, ("replies", 1, data), ("leaves", "pod"), ("switched",)
        yield Cell(
            "the pod dies right behind its 101",
            name,
            "calm",
            steps,
            begun=False,
            client=report,
            pod=GONE,
        )


def closes():
    """Closes by the peers, and by the balancer's time-outs."""
    for name, payload, code, reason in (
        ("no code", b"", 1005, ""),
        ("1000", b"\x03\xe8", 1000, ""),
        ("1001 with a reason", b"\x03\xe9bye", 1001, "bye"),
        ("4999", b"\x13\x87own", 4999, "own"),
    ):
        goodbye = scripted.frame(8, payload)
        report, answer = Report(code, reason, True), scripted.frame(8, payload, mask=OPEN_MASK)
        row = "the pod sends Close"
        yield Cell(row, name, "calm", (("passes", goodbye),), client=report, pod=gets(answer))
        steps = ("passes", goodbye), ("leaves", "pod")
        yield Cell(
            row, f"{name}, and disconnects by FIN at once", "calm", steps, client=report, pod=GONE
        )
    yield Cell(
        "the client sends Close",
        "1000",
        "calm",
        (("closes",),),
        client=Report(1000, "", True),
        pod=gets(scripted.frame(8, b"\x03\xe8", mask=OPEN_MASK)),
    )
    for row, service, code, reason in (
        ("idle time-out", "idle", 1001, "idle timeout"),
        ("maximum age", "old", 1012, "maximum session age reached"),
    ):
        result = close(code, reason, to="pod")
        for name, data, sizes in (
            ("no data", b"", ()),
            ("after a message", WORD["pod"], (15,)),
            ("between two fragments", FIRST["pod"], ()),
        ):
            report = Report(code, reason, True, sizes)
            yield Cell(row, name, service, (("passes", data),), client=report, pod=gets(result))
        steps = (("passes", WORD["pod"][:5]),)
        report = Report(*NO_CLOSE)
        yield Cell(
            row,
            "within a frame, which never ends",
            f"{service}-brief",
            steps,
            client=report,
            pod=gets(result),
        )


def given_up():
    """Pings that a library answers by itself until it is stopped, and a library that does not
    read.
    """
    goodbye = scripted.frame(8, b"\x03\xe8")
    answer = gets(scripted.frame(8, b"\x03\xe8", mask=OPEN_MASK))
    steps = ("quiet", "pod"), ("quiet", "pod"), ("passes", WORD["pod"] + goodbye)
    yield Cell(
        "Pings of the balancer",
        "are answered: it stays, and the pod receives nothing",
        "pings-client",
        steps,
        client=Report(1000, "", True, (15,)),
        pod=answer,
    )
    steps = ("pauses",), ("ended", "pod"), ("resumes",)
    result = gets(SILENT["client"])
    # Its answer to the Close may arrive in time, but the balancer does not wait for it.
    report = [
        Report(1001, "ping timed out: client did not answer", clean) for clean in (True, False)
    ]
    yield Cell(
        "Pings of the balancer",
        "are not answered",
        "pings-client",
        steps,
        client=report,
        pod=result,
    )
    steps = ("pauses",), ("floods", "pod"), ("ended", "pod"), ("resumes",)
    report = Report(*NO_CLOSE, ANY)
    result = gets(STALLED["client"])
    yield Cell(
        "the client does not read", "the pod floods it", "stalls", steps, client=report, pod=result
    )


def limits():
    for row, service, reason in (
        ("a frame over the limit", "frames", "frame too large: 1001 bytes"),
        ("a message over the limit", "messages", "message too large: at least 1001 bytes"),
    ):
        both = {
            "client": Report(1009, reason, True),
            "pod": gets(said(TEXT), close(1001, reason, to="pod")),
        }
        yield Cell(
            row, "after a message", service, (("sends", TEXT), ("sends", "x" * 1001)), **both
        )
    reason = "message rate exceeded"
    both = {
        "client": Report(1008, reason, True),
        "pod": gets(said(TEXT) * 3, close(1001, reason, to="pod")),
    }
    yield Cell("messages over the rate", "five at once", "rate", (("sends", TEXT),) * 5, **both)


def said(text):
    """Returns a message of a library, unmasked."""
    return scripted.frame(1, text.encode(), mask=OPEN_MASK)


async def show(pods):
    npm = install.npm("ws", "ws@8")
    node = json.loads((npm / "node_modules/ws/package.json").read_text())["version"]
    subprocess.run(
        ["cargo", "build", "--quiet", "--example", TUNGSTENITE], cwd=programs.ROOT, check=True
    )
    makers = {
        "tokio-tungstenite": lambda: Client(
            [programs.ROOT / "target/debug/examples" / TUNGSTENITE]
        ),
        f"websockets {version('websockets')}": lambda: Client([sys.executable, HERE / "client.py"]),
        f"npm ws {node}": lambda: Client([install.require("node"), HERE / "client.mjs"], npm),
        "wsbalancer client (awc)": lambda: OwnClient([programs.BINARY, "client"]),
    }
    every = list(cells())
    say(f"{len(every)} cases with each of {', '.join(makers)}")
    balancer = play.balance(pods, table.SERVICES)
    lanes, plays, number = asyncio.Semaphore(LANES), [], 0
    for name, make in makers.items():
        for cell in every:
            client = make()
            if isinstance(client, OwnClient) and cell.client in STATUSES:
                continue  # it reports only that there is no 101
            number += 1
            one = play.play(cell, number, balancer, pods, client, lanes=lanes, kind=LibraryPlay)
            plays.append((name, cell, asyncio.create_task(one)))
    for name, cell, playing in plays:
        judge(name, cell, await playing)
    await show_shutdown(balancer, pods, makers)


async def show_shutdown(balancer, pods, makers):
    reason = "balancer is shutting down"
    result = close(DRAIN_CODES["pod"], reason, to="pod")
    cell = Cell(
        "SIGTERM",
        "after a message",
        "calm",
        (("passes", WORD["pod"]), ("together",)),
        client=Report(DRAIN_CODES["client"], reason, True, (15,)),
        pod=gets(result),
    )

    async def terminate():
        balancer.process.terminate()

    together = play.Together(len(makers), terminate)
    plays = [
        play.play(cell, 1000 + at, balancer, pods, make(), together=together, kind=LibraryPlay)
        for at, make in enumerate(makers.values())
    ]
    for name, outcome in zip(makers, await asyncio.gather(*plays)):
        judge(name, cell, outcome)
    code = await asyncio.to_thread(balancer.stop)
    check(code == 0 and "panic" not in balancer.output, f"exit code {code}, no panic")


def judge(name, cell, outcome):
    right = isinstance(outcome, LibraryOutcome) and outcome.fits(cell)
    what = f"{name}: {cell}: it reports {cell.expected('client')} | pod {cell.expected('pod')}"
    check(right, what if right else f"{what}; instead {type(outcome).__name__}: {outcome}")
