"""Plays the cells of the table: two raw sockets around a balancer, step by step."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import socket
import urllib.request

from ends import CLOSE, MASK, PING, PONG, End, boundary, heard, readable
from evidence import scripted
from table import ALL, ANY, CUT, GONE, OTHER, SERVICES, SIDES, TWO_PODS, WHOLE

HOST = "chat.example.org"
LANES = 16  # cells at a time
SETTLE = 15  # seconds that a cell may take to end
SHUTDOWN = 120  # the same until many cells are ready for one step
QUIET = 1.5  # seconds: more than the interval between Pings
HEAD_END = b"\r\n\r\n"


@dataclasses.dataclass
class Outcome:
    """What each side has got, how its connection has ended, and the flood that was on its way to
    it.
    """

    got: dict
    ends: dict
    floods: dict

    def __str__(self):
        return "; ".join(f"{side} {self._told(side)}" for side in SIDES)

    def _told(self, side):
        got = self.got[side]
        shown = f"{len(got)} bytes, at last {got[-40:]!r}" if len(got) > 200 else repr(got)
        return f"{shown} {self.ends[side]}" if self.ends[side] != GONE else GONE

    def differs(self, cell):
        """The sides that have got anything but what the cell says."""
        return [side for side in SIDES if not self._is(side, getattr(cell, side))]

    def _is(self, side, expected):
        if expected == GONE or self.ends[side] == GONE:
            return expected == self.ends[side]
        ways = expected if isinstance(expected, list) else [expected]
        return any(
            self.ends[side] == way.end and fits(self.got[side], way.parts, self.floods[side])
            for way in ways
        )


def fits(got, parts, flood):
    """Whether `got` is these parts, one of which may stand for something of the flood."""
    at = next((at for at, part in enumerate(parts) if isinstance(part, str)), None)
    if at is None:
        return got == b"".join(parts)
    before, after = b"".join(parts[:at]), b"".join(parts[at + 1 :])
    size = len(got) - len(before) - len(after)
    middle = got[len(before) : len(before) + size]
    if size < 0 or got != before + middle + after or not flood.startswith(middle):
        return False
    return {ALL: size == len(flood), ANY: True, WHOLE: boundary(middle), CUT: not boundary(middle)}[
        parts[at]
    ]


class Pods:
    """Two listeners. Every connection waits, its request's head read, for the cell whose path it
    asks for.
    """

    async def start(self):
        self.asked = collections.defaultdict(asyncio.Queue)
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(2)]
        self.urls = ["http://{}:{}".format(*one.getsockname()) for one in self.listeners]
        self.tasks = [asyncio.create_task(self._accept(one)) for one in self.listeners]
        return self

    async def _accept(self, listener):
        listener.setblocking(False)
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            self.tasks.append(asyncio.create_task(self._take(End("pod", sock))))

    async def _take(self, end):
        if head := await take_head(end):
            self.asked[head.target].put_nowait((end, head))

    def stop(self):
        for task in self.tasks:
            task.cancel()
        for listener in self.listeners:
            listener.close()


async def take_head(end):
    """The head that an end gets; what is behind it stays with it. None when it ends before."""
    while HEAD_END not in end.got:
        piece = await asyncio.wait_for(
            asyncio.get_running_loop().sock_recv(end.sock, 1 << 16), scripted.DEADLINE
        )
        if not piece:
            return None
        end.got += piece
    size = end.got.index(HEAD_END) + len(HEAD_END)
    head = scripted.Head(bytes(end.got[:size]))
    del end.got[:size]
    return head


def balance(pods, names, **settings):
    """A balancer with a service per name, each below its own path."""
    lines = []
    for name in names:
        lines += [
            f"[services.{name}]",
            f"backends = {json.dumps(pods.urls[: 1 + (name in TWO_PODS)])}",
        ]
        lines += [f"{key} = {json.dumps(value)}" for key, value in SERVICES[name].items()]
        lines += ["[[routes]]", f'path_prefix = "/{name}"', f'service = "{name}"']
    rules = '[balancer]\nmetric_path = "none"\neject_after = 0\n'
    return scripted.Configured(
        rules + "\n".join(lines) + "\n", **{"SERVER__SHUTDOWN_TIMEOUT": "30s", **settings}
    )


class Together:
    """A step that cells take at the same time: `act` when all are ready for it."""

    def __init__(self, count, act):
        self.act = act
        self.barrier = asyncio.Barrier(count)

    async def __call__(self):
        async with asyncio.timeout(SHUTDOWN):
            if await self.barrier.wait() == 0:
                await self.act()
            await self.barrier.wait()


def ask(balancer, method, path):
    """What the admin listener says, as JSON; None without an answer."""
    request = urllib.request.Request(f"http://{balancer.admin}{path}", method=method)
    with urllib.request.urlopen(request, timeout=scripted.DEADLINE) as answer:
        return json.loads(answer.read() or "null")


def is_ready(balancer):
    """Whether /readyz says 200."""
    try:
        urllib.request.urlopen(f"http://{balancer.admin}/readyz", timeout=scripted.DEADLINE).close()
        return True
    except OSError:  # an HTTPError is one
        return False


class Play:
    """One cell; its methods are the steps of the table."""

    def __init__(self, cell, number, balancer, pods, together=None, patience=SETTLE):
        self.cell, self.balancer, self.pods, self.together = cell, balancer, pods, together
        self.patience = patience  # seconds until what is waited for is taken not to come
        self.path = f"/{cell.service}/{number}"
        self.address = f"127.1.{number // 250}.{number % 250 + 1}"  # of this client alone
        self.side = {}

    async def run(self):
        """The cell from its handshake to its end."""
        try:
            await self._act()
            return await self._outcome()
        finally:
            for end in self.side.values():
                await end.leave()

    async def _act(self):
        if self.cell.begun:
            for name in ("asks", "asked", "replies", "switched"):
                await getattr(self, name)()
        for name, *rest in self.cell.steps:
            await getattr(self, name)(*rest)

    async def _outcome(self):
        sides = [
            self.side[name] for name in SIDES if name in self.side and not self.side[name].gone
        ]
        await asyncio.gather(*(self._see_off(end) for end in sides))
        for end in sides:
            end.shut()
        ends = {end.side: await end.last() for end in sides}
        got = {
            name: readable(bytes(self.side[name].got)) if name in ends else b"" for name in SIDES
        }
        floods = {
            name: bytes(self.side[OTHER[name]].flood) if OTHER[name] in self.side else b""
            for name in SIDES
        }
        return Outcome(got, {name: ends.get(name, GONE) for name in SIDES}, floods)

    async def _see_off(self, end):
        """Answers a Close as libraries do, and waits for the end of the connection."""
        end.read()
        if end.side not in self.cell.mute:
            if not await end.until(
                lambda: end.end or heard(end.got, CLOSE) is not None, self.patience
            ):
                return
            payload = heard(end.got, CLOSE)
            if payload is not None and heard(end.said, CLOSE) is None and boundary(end.said):
                with contextlib.suppress(
                    ConnectionError
                ):  # it is closed already: that is seen by its end
                    await end.send(
                        scripted.frame(CLOSE, payload, mask=MASK if end.side == "client" else None)
                    )
            if end.side == "pod" and payload is not None:
                end.shut()  # servers close first (RFC 6455 §7.1.1)
        await end.until(lambda: end.end, self.patience)
        if end.side not in self.cell.mute:
            end.shut()

    async def asks(self, early=b""):
        host, _, port = self.balancer.address.rpartition(":")
        sock = socket.create_connection((host, int(port)), scripted.DEADLINE, (self.address, 0))
        client = self.side["client"] = End("client", sock)
        await client.send(scripted.handshake(self.path, HOST).encode() + early)
        client.said = bytearray(early)

    async def asked(self):
        end, self.request = await asyncio.wait_for(
            self.pods.asked[self.path].get(), scripted.DEADLINE
        )
        self.side["pod"] = end
        self._listen(end)

    async def replies(self, share=1, more=b""):
        """The pod's 101, or the first part of it, and what it says in the same segment."""
        head = scripted.switch(self.request).encode()
        pod = self.side["pod"]
        await pod.send(head[: int(share * len(head))] + more)
        pod.said = bytearray(more)

    async def switched(self):
        head = await take_head(self.side["client"])
        if head is None or head.status != 101:
            raise RuntimeError(f"no 101: {head and head.raw!r}")
        self._listen(self.side["client"])

    def _listen(self, end):
        if end.side not in self.cell.deaf:
            end.read()

    async def says(self, side, data):
        end, other = self.side[side], self.side[OTHER[side]]
        known = len(other.got)
        await end.send(data)
        if not await other.until(lambda: data in other.got[known:]):
            raise RuntimeError(
                f"the {side}'s words do not arrive: {bytes(other.got)!r}, {other.end}"
            )

    async def blurts(self, side, data):
        await self.side[side].send(data)

    async def taken(self, side):
        if not await self.side[side].taken():
            raise RuntimeError(f"the {side}'s words are not read")

    async def floods(self, side):
        await self.side[side].fill()

    async def leaves(self, side):
        await self.side[side].leave()

    async def resets(self, side):
        await self.side[side].leave(reset=True)

    async def shuts(self, side):
        self.side[side].shut()

    async def reads(self, side):
        self.side[side].read()

    async def hears(self, side, opcode):
        end = self.side[side]
        if not await end.until(lambda: heard(end.got, opcode) is not None, self.patience):
            raise RuntimeError(
                f"the {side} hears no frame {opcode}: {bytes(end.got[-200:])!r}, {end.end}"
            )

    async def ended(self, side):
        end = self.side[side]
        await end.until(lambda: end.end, self.patience)

    async def quiet(self, side):
        end = self.side[side]
        known = len(end.got)
        if await end.until(lambda: end.end or len(end.got) > known, QUIET):
            raise RuntimeError(f"the {side} is not left alone: {bytes(end.got)!r}, {end.end}")

    async def pongs(self, side):
        """Answers the balancer's Ping."""
        end = self.side[side]
        await end.send(
            scripted.frame(PONG, heard(end.got, PING), mask=MASK if side == "client" else None)
        )

    async def forgotten(self):
        """Waits until the balancer has given up the only session of this service."""
        name = self.cell.service

        def own():
            return next(
                one["own"] for one in self.balancer.metrics()["services"] if one["name"] == name
            )

        if not await scripted.eventually(lambda: own() == 0):
            raise RuntimeError("the session does not end")

    async def deleted(self):
        """An operator closes this session."""

        async def listed():
            sessions = await asyncio.to_thread(ask, self.balancer, "GET", "/api/sessions")
            return next((one["id"] for one in sessions if one["client"] == self.address), None)

        async with asyncio.timeout(scripted.DEADLINE):
            while (number := await listed()) is None:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(ask, self.balancer, "DELETE", f"/api/sessions/{number}")


async def play(cell, *more, lanes=None, kind=Play, **rest):
    """A cell's outcome, or what went wrong."""
    async with lanes or contextlib.nullcontext():
        try:
            return await kind(cell, *more, **rest).run()
        except Exception as error:
            return error
