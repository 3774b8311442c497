"""Plays the cases of the table step by step: two raw sockets around a balancer."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import socket
import urllib.request

from ends import CLOSE, MASK, PING, PONG, End, boundary, payload_of, readable
from evidence import scripted
from table import ALL, ANY, CUT, GONE, OTHER, SERVICES, SIDES, TWO_PODS, WHOLE

HOST = "chat.example.org"
LANES = 16  # concurrent cases
SETTLE = 15  # seconds in which a case must end
SHUTDOWN = 120  # seconds until all cases must be ready for a common step
QUIET = 1.5  # seconds: longer than the interval between Pings
HEAD_END = b"\r\n\r\n"


@dataclasses.dataclass
class Outcome:
    """What each side received, how its connection ended, and the flood that was under way to it."""

    got: dict
    ends: dict
    floods: dict

    def __str__(self):
        return "; ".join(f"{side} {self._describe(side)}" for side in SIDES)

    def _describe(self, side):
        got = self.got[side]
        shown = f"{len(got)} bytes, at last {got[-40:]!r}" if len(got) > 200 else repr(got)
        return f"{shown} {self.ends[side]}" if self.ends[side] != GONE else GONE

    def differs(self, cell):
        """Returns the sides whose outcome is not the expected one."""
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
    """Returns whether `got` consists of these parts. One of them may stand for a part of the
    flood.
    """
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
    """Two listeners. After its request head is read, a connection waits for the case with this
    path.
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
    """Reads a head; data after it stay in the buffer. Returns None if the connection ends before
    it.
    """
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
    """Starts a balancer with a service per name, each with its own path prefix."""
    lines = []
    for name in names:
        lines += [
            f"[services.{name}]",
            f"backends = {json.dumps(pods.urls[: 1 + (name in TWO_PODS)])}",
        ]
        lines += [f"{key} = {json.dumps(value)}" for key, value in SERVICES[name].items()]
        lines += ["[[routes]]", f'path_prefix = "/{name}"', f'service = "{name}"']
    rules = '[balancer]\nmetric_path = "none"\neject_after = 0\n'
    return scripted.ConfiguredBalancer(
        rules + "\n".join(lines) + "\n", **{"SERVER__SHUTDOWN_TIMEOUT": "30s", **settings}
    )


class Together:
    """A step that cases take at the same time: `act` runs when all are ready."""

    def __init__(self, count, act):
        self.act = act
        self.barrier = asyncio.Barrier(count)

    async def __call__(self):
        async with asyncio.timeout(SHUTDOWN):
            if await self.barrier.wait() == 0:
                await self.act()
            await self.barrier.wait()


def ask(balancer, method, path):
    """Sends a request to the admin listener. Returns the JSON answer, or None."""
    request = urllib.request.Request(f"http://{balancer.admin}{path}", method=method)
    with urllib.request.urlopen(request, timeout=scripted.DEADLINE) as answer:
        return json.loads(answer.read() or "null")


def is_ready(balancer):
    """Returns whether /readyz answers 200."""
    try:
        urllib.request.urlopen(f"http://{balancer.admin}/readyz", timeout=scripted.DEADLINE).close()
        return True
    except OSError:  # HTTPError is a subclass
        return False


class Play:
    """Plays one case. Its methods are the steps of the table."""

    def __init__(self, cell, number, balancer, pods, together=None, patience=SETTLE):
        self.cell, self.balancer, self.pods, self.together = cell, balancer, pods, together
        self.patience = patience  # seconds to wait for an expected event
        self.path = f"/{cell.service}/{number}"
        self.address = f"127.1.{number // 250}.{number % 250 + 1}"  # used by this client only
        self.side = {}

    async def run(self):
        """Plays the case from its handshake to its end."""
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
                lambda: end.end or payload_of(end.got, CLOSE) is not None, self.patience
            ):
                return
            payload = payload_of(end.got, CLOSE)
            if payload is not None and payload_of(end.said, CLOSE) is None and boundary(end.said):
                with contextlib.suppress(ConnectionError):  # the connection is closed already
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
        """Sends the pod's 101, or its first part, with `more` in the same segment."""
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
                f"the data of the {side} do not arrive: {bytes(other.got)!r}, {other.end}"
            )

    async def writes(self, side, data):
        await self.side[side].send(data)

    async def taken(self, side):
        if not await self.side[side].taken():
            raise RuntimeError(f"the data of the {side} are not read")

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

    async def receives(self, side, opcode):
        end = self.side[side]
        if not await end.until(lambda: payload_of(end.got, opcode) is not None, self.patience):
            raise RuntimeError(
                f"the {side} receives no frame {opcode}: {bytes(end.got[-200:])!r}, {end.end}"
            )

    async def ended(self, side):
        end = self.side[side]
        await end.until(lambda: end.end, self.patience)

    async def quiet(self, side):
        end = self.side[side]
        known = len(end.got)
        if await end.until(lambda: end.end or len(end.got) > known, QUIET):
            raise RuntimeError(
                f"the {side} receives something unexpected: {bytes(end.got)!r}, {end.end}"
            )

    async def pongs(self, side):
        """Answers the balancer's Ping."""
        end = self.side[side]
        await end.send(
            scripted.frame(PONG, payload_of(end.got, PING), mask=MASK if side == "client" else None)
        )

    async def forgotten(self):
        """Waits until the balancer no longer counts the only session of this service."""
        name = self.cell.service

        def own():
            return next(
                one["own"] for one in self.balancer.metrics()["services"] if one["name"] == name
            )

        if not await scripted.eventually(lambda: own() == 0):
            raise RuntimeError("the session does not end")

    async def deleted(self):
        """Closes this session by an operator's request."""

        async def listed():
            sessions = await asyncio.to_thread(ask, self.balancer, "GET", "/api/sessions")
            return next((one["id"] for one in sessions if one["client"] == self.address), None)

        async with asyncio.timeout(scripted.DEADLINE):
            while (number := await listed()) is None:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(ask, self.balancer, "DELETE", f"/api/sessions/{number}")


async def play(cell, *more, lanes=None, kind=Play, **rest):
    """Plays a case. Returns its outcome, or the exception."""
    async with lanes or contextlib.nullcontext():
        try:
            return await kind(cell, *more, **rest).run()
        except Exception as error:
            return error
