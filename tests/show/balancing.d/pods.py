"""Stub pods by the dozen, sessions by the thousand: they answer 101, hold, count, and report the
count.

All have one port and an address each, as pods of a headless service have. A pod that has not come
yet, or is gone, refuses connections.
"""

import asyncio
import json
import socket

from evidence import scripted

CLOSE = b"\x88\x00"
GOING_AWAY = b"\x88\x02" + (1001).to_bytes(2, "big")
NORMAL = b"\x88\x80" + bytes(4)  # a client's Close, masked with zeros


class Connection(asyncio.Protocol):
    """What a pod has of one TCP connection: polls, then perhaps a session."""

    def __init__(self, pod):
        self.pod = pod
        self.buffer = b""
        self.session = False

    def connection_made(self, transport):
        self.transport = transport
        self.pod.connections.add(self)

    def connection_lost(self, _):
        self.pod.connections.discard(self)
        self.pod.sessions.discard(self)

    def data_received(self, data):
        self.buffer += data
        while not self.session and b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            self.answer(scripted.Head(head))
        if self.session and self.buffer[:1] == CLOSE[:1]:  # clients here send nothing else
            self.end(CLOSE)

    def answer(self, head):
        if head.get("sec-websocket-key"):
            self.transport.write(scripted.switch(head).encode())
            self.session = True
            self.pod.accept(self)
        else:
            report = json.dumps({"agentsConnections": len(self.pod.sessions)}).encode()
            self.transport.write(
                scripted.answer(200, "Content-Type: application/json", body=report)
            )

    def end(self, frame):
        self.pod.sessions.discard(self)
        self.transport.write(frame)
        self.transport.close()


class Pod:
    """`accepted` are the times at which it said 101; one that `drops` ends each session at once."""

    def __init__(self, sock, drops=False):
        self.sock = sock
        self.drops = drops
        self.address = "{}:{}".format(*sock.getsockname())
        self.url = f"http://{self.address}"
        self.server = None
        self.connections, self.sessions, self.accepted = set(), set(), []

    async def come(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: Connection(self), sock=self.sock, backlog=4096
        )

    def accept(self, connection):
        self.accepted.append(asyncio.get_running_loop().time())
        if self.drops:
            connection.transport.close()
        else:
            self.sessions.add(connection)

    def go(self, over=0.0):
        """As a process that is told to stop: refuses new connections; Close 1001 to everybody
        within `over` s.
        """
        (self.server or self.sock).close()
        sessions = [*self.sessions]
        for connection in self.connections.difference(sessions):
            connection.transport.close()
        for number, connection in enumerate(sessions):
            if over:
                asyncio.get_running_loop().call_later(
                    over * number / len(sessions), connection.end, GOING_AWAY
                )
            else:
                connection.end(GOING_AWAY)


def reserve(count):
    """Pods that have not come yet; only here are their addresses and port taken."""
    while True:
        socks = [socket.socket() for _ in range(count)]
        try:
            port = 0
            for number, sock in enumerate(socks, 1):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((f"127.0.1.{number}", port))
                port = sock.getsockname()[1]
            return [Pod(sock) for sock in socks]
        except OSError:  # some address has another program on this port: another one
            for sock in socks:
                sock.close()


def counts(pods):
    return [len(pod.sessions) for pod in pods]


def unevenness(pods):
    """The largest count over the mean."""
    held = counts(pods)
    return max(held) * len(held) / max(1, sum(held))


def worst_second(pod):
    """The most sessions that a pod was given within any one second."""
    worst = first = 0
    for last, time in enumerate(pod.accepted):
        while pod.accepted[first] <= time - 1:
            first += 1
        worst = max(worst, last - first + 1)
    return worst
