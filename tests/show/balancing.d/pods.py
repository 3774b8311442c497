"""Dozens of stub pods with thousands of sessions: they answer 101, count their sessions, and report
the count.

All pods have the same port and an address each, as pods of a headless service have. A pod that has
not started, or has stopped, refuses connections.
"""

import asyncio
import json
import socket

from evidence import scripted

CLOSE = b"\x88\x00"
GOING_AWAY = b"\x88\x02" + (1001).to_bytes(2, "big")
NORMAL = b"\x88\x80" + bytes(4)  # a client's Close, masked with zeros


class Connection(asyncio.Protocol):
    """The pod's side of one TCP connection: polls, or a session."""

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
        if self.session and self.buffer[:1] == CLOSE[:1]:  # clients send nothing else
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
    """A stub pod. `accepted` are the times of its 101s. With `drops` it ends each session at
    once.
    """

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
        """Stops like a terminated process: refuses new connections and closes all sessions with
        1001 within `over` s.
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
    """Reserves addresses and a common port for pods that start later."""
    while True:
        socks = [socket.socket() for _ in range(count)]
        try:
            port = 0
            for number, sock in enumerate(socks, 1):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((f"127.0.1.{number}", port))
                port = sock.getsockname()[1]
            return [Pod(sock) for sock in socks]
        except OSError:  # another program uses this port at some address: try the next one
            for sock in socks:
                sock.close()


def counts(pods):
    return [len(pod.sessions) for pod in pods]


def unevenness(pods):
    """Returns the largest count divided by the mean."""
    held = counts(pods)
    return max(held) * len(held) / max(1, sum(held))


def worst_second(pod):
    """Returns the largest number of sessions that a pod was given within one second."""
    worst = first = 0
    for last, time in enumerate(pod.accepted):
        while pod.accepted[first] <= time - 1:
            first += 1
        worst = max(worst, last - first + 1)
    return worst
