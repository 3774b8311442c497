"""Thousands of clients and pods without a task for each: how their sessions start and end."""

import asyncio
import collections
import json

from evidence import scripted
from evidence.checks import check, say

HOST = "chat.example.org"
TEXT, CLOSE = 1, 8
RESTART, AWAY, NORMAL = 1012, 1001, 1000
SHUTDOWN = (RESTART, "balancer is shutting down")
MOVED = (RESTART, "moved to another pod")
LANES = 64  # concurrent handshakes
PATIENCE = 60  # seconds to wait for something that must happen


class Peer(asyncio.Protocol):
    """One side of a connection: it reads heads until it is `inside` a session, and frames after
    that.
    """

    mask = None

    def __init__(self):
        self.transport = None
        self.buffer = b""
        self.inside = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        while not self.inside and b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            self.take_head(scripted.Head(head))
        while self.inside and (frame := self.cut_frame()):
            self.take_frame(*frame)

    def cut_frame(self):
        """Returns the next complete frame, or None. All frames are short here."""
        if len(self.buffer) < 2:
            return None
        start = 6 if self.buffer[1] & 0x80 else 2
        end = start + (self.buffer[1] & 0x7F)
        if len(self.buffer) < end:
            return None
        opcode = self.buffer[0] & 0x0F
        payload = scripted.masked(self.buffer[start:end], self.buffer[2:start] or bytes(4))
        self.buffer = self.buffer[end:]
        return opcode, payload

    def send(self, opcode, payload):
        self.transport.write(scripted.frame(opcode, payload, mask=self.mask))


def parse_close(payload):
    """Returns code and reason of a Close."""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()


class Client(Peer):
    """A client. `status` is the answer to its handshake (0: none), `close` is the first Close it
    received.
    """

    mask = b"mask"

    def __init__(self, request, polite=True):
        super().__init__()
        self.request = request
        self.polite = polite  # whether it answers a Close, and a FIN
        self.loop = asyncio.get_running_loop()
        self.answered, self.ended = self.loop.create_future(), self.loop.create_future()
        self.status, self.answer, self.pod = 0, None, None
        self.close = self.closed_at = self.error = None
        self.leaving = False
        self.behind = 0  # frames after a Close
        self.hear = None  # called with each text message

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.write(self.request)

    def take_head(self, head):
        if self.answered.done():
            return  # part of the body
        self.answer, self.status, self.pod = head, head.status, head.get("x-pod")
        self.inside = self.status == 101
        self.answered.set_result(None)
        if not self.inside:
            self.transport.close()

    def take_frame(self, opcode, payload):
        if self.close:
            self.behind += 1
        elif opcode == CLOSE:
            self.close, self.closed_at = parse_close(payload), self.loop.time()
            if self.polite and not self.leaving:
                self.send(CLOSE, payload)
        elif self.hear:
            self.hear(payload)

    def eof_received(self):
        return not self.polite

    def connection_lost(self, error):
        self.error = error
        self.inside = False
        for future in (self.answered, self.ended):
            if not future.done():
                future.set_result(None)

    def send_close(self):
        """Starts the closing handshake."""
        self.leaving = True
        self.send(CLOSE, NORMAL.to_bytes(2, "big"))

    def leave(self):
        """Disconnects without a Close."""
        if self.transport:
            self.transport.abort()

    async def talks(self):
        """Returns whether the session echoes."""
        if not self.inside:
            return False
        heard = self.loop.create_future()
        self.hear = lambda payload: heard.done() or heard.set_result(payload)
        self.send(TEXT, b"here")
        await asyncio.wait(
            [heard, self.ended], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
        )
        self.hear = None
        return heard.done() and heard.result() == b"here"

    def ending(self):
        """Describes how the session ended."""
        if self.status != 101:
            return f"status {self.status}" if self.status else "no answer"
        if self.close:
            return "Close {} {!r}".format(*self.close)
        return "a reset" if self.error else "the end without a Close"


async def connect(address, path="/", source=None, polite=True):
    """Connects a client. Returns once it has an answer or has failed."""
    host, _, port = address.rpartition(":")
    client = Client(scripted.handshake(path, HOST).encode(), polite)
    local = (source, 0) if source else None
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: client, host, int(port), local_addr=local
        )
    except OSError as error:
        client.connection_lost(error)
    await asyncio.wait([client.answered], timeout=PATIENCE)
    return client


async def connect_many(balancer, count, **more):
    """Connects `count` clients, a few at a time, and checks that all of them have a session."""
    left, came = iter(range(count)), []

    async def lane():
        for _ in left:
            came.append(await connect(balancer.address, **more))

    await asyncio.gather(*(lane() for _ in range(min(LANES, count))))
    balancer.clients += came
    await wait_until_counted(balancer)
    wrong = [client.ending() for client in came if client.status != 101]
    check(not wrong, f"new sessions: {count}{f', but {len(wrong)}: {wrong[0]}' if wrong else ''}")
    return came


async def wait_until_counted(balancer):
    """Waits until the balancer counts the same sessions. It may notice a start or an end a moment
    later than the client.
    """

    def agrees():
        return balancer.metrics()["ownSessions"] == sum(
            client.inside for client in balancer.clients
        )

    await scripted.eventually(agrees, PATIENCE)


async def wait_until_ended(clients, timeout=PATIENCE):
    """Waits until all these sessions have ended. Returns whether they have."""
    pending = [client.ended for client in clients if not client.ended.done()]
    return not pending or not (await asyncio.wait(pending, timeout=timeout))[1]


async def all_talk(clients):
    return all(await asyncio.gather(*(client.talks() for client in clients)))


def are_undisturbed(clients):
    """Returns whether no client has received a Close or the end of its connection."""
    return not any(client.close or client.ended.done() for client in clients)


def count_endings(clients):
    """Counts the clients by how their session ended."""
    return dict(collections.Counter(client.ending() for client in clients))


def check_closes(clients, close, what):
    """Checks that each client received this Close and then the end of the connection, nothing
    else.
    """
    wrong = [client for client in clients if client.close != close or client.error or client.behind]
    details = f", but {len(wrong)}: {count_endings(wrong)}" if wrong else ""
    return check(
        clients and not wrong,
        f"{what}: all {len(clients)} get Close {close[0]} {close[1]!r}, then FIN{details}",
    )


class PodConnection(Peer):
    """The pod's side of one connection: polls, or a session."""

    def __init__(self, pod):
        super().__init__()
        self.pod = pod
        self.is_over = False

    def connection_made(self, transport):
        super().connection_made(transport)
        self.pod.connections.add(self)

    def connection_lost(self, _):
        self.is_over = True
        self.pod.connections.discard(self)

    def take_head(self, head):
        if head.get("sec-websocket-key"):
            self.transport.write(scripted.switch(head, f"X-Pod: {self.pod.name}").encode())
            self.inside = True
        else:
            self.transport.write(scripted.answer(200, body=json.dumps(self.pod.report()).encode()))

    def take_frame(self, opcode, payload):
        if opcode == CLOSE:
            self.is_over = True
            self.pod.closes.append(parse_close(payload))
            self.send(CLOSE, payload)
            self.transport.close()
        elif not self.is_over:
            self.pod.heard.add(payload)
            asyncio.get_running_loop().call_later(self.pod.thinks, self.echo, payload)

    def echo(self, payload):
        if not self.is_over:
            self.pod.said.add(payload)
            self.send(TEXT, payload)


class Pod:
    """A pod that echoes each message after `thinks` seconds, and reports its sessions."""

    protocol = PodConnection  # class of its connections

    def __init__(self, name, thinks=0.0):
        self.name, self.thinks = name, thinks
        self.extra = {}  # further fields of its report
        self.connections = set()
        self.closes = []  # received Close codes and reasons
        self.heard, self.said = set(), set()

    async def start(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: self.protocol(self), "127.0.0.1", 0, backlog=4096
        )
        self.address = "{}:{}".format(*self.server.sockets[0].getsockname())
        self.url = f"http://{self.address}"
        return self

    def sessions(self):
        return sum(connection.inside for connection in self.connections)

    def report(self):
        return {"agentsConnections": self.sessions(), "podName": self.name, **self.extra}

    def refuse(self):
        """Stops accepting connections, polls included. Open sessions continue."""
        self.server.close()
        for connection in self.connections:
            if not connection.inside:
                connection.transport.close()

    def stop(self):
        self.server.close()
        for connection in self.connections:
            connection.transport.abort()


async def start(count, **more):
    return [await Pod(f"pod-{number}", **more).start() for number in range(1, count + 1)]


async def call(address, method, path, *fields, body=b""):
    """Sends a request on a new connection. Returns status, fields and body; status 0 if there is no
    answer.
    """
    try:
        connection = await scripted.dial(address)
    except OSError:
        return 0, None, b""
    fields = *fields, "Connection: close", f"Content-Length: {len(body)}"
    await connection.send(scripted.request(path, HOST, *fields, method=method), body)
    head, body = await connection.answer()
    connection.close()
    return (head.status, head, body) if head else (0, None, b"")


async def call_admin(balancer, method, path, *fields, body=b""):
    """Sends a request to the admin listener. Returns status and JSON."""
    status, _, text = await call(balancer.admin, method, path, *fields, body=body)
    return status, json.loads(text)


async def readiness(balancer):
    """Returns the status of the readiness probe."""
    return (await call(balancer.admin, "GET", "/readyz"))[0]


async def eventually_async(probe, timeout=PATIENCE, pause=0.02):
    """Awaits `probe` until the result is truthy or the time is up. Returns the last result."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not (found := await probe()) and loop.time() < deadline:
        await asyncio.sleep(pause)
    return found


def unevenness(clients, seconds):
    """Prints how many sessions were closed in each second. Returns the largest deviation from the
    mean, as a share of it.

    The first second starts with the first close. The last one includes everything later.
    """
    times = sorted(client.closed_at for client in clients if client.close)
    counts = [0] * seconds
    for time in times:
        counts[min(int(time - times[0]), seconds - 1)] += 1
    fair = len(times) / seconds
    worst = max(abs(count - fair) for count in counts) / fair
    say(f"         closes per second: {counts}, the worst {worst:.0%} off {fair:g};")
    say(f"         the last one {times[-1] - times[0]:.2f} s after the first")
    return worst


class ReconnectingClient:
    """A client that reconnects whenever it loses its connection. `failures` lists how each session
    ended.
    """

    def __init__(self, address):
        self.address = address  # a function that returns the address to connect to
        self.client = None
        self.failures = []
        self.leaving = False

    async def live(self):
        while not self.leaving:
            self.client = await connect(self.address())
            if self.client.inside:
                await self.stay()
            if not self.leaving:
                self.failures.append(self.client.ending())
            if self.client.status != 101:
                await asyncio.sleep(0.2)  # refused: try again after a pause

    async def stay(self):
        await self.client.ended

    def is_inside(self):
        return self.client is not None and self.client.inside


async def connect_all(regulars):
    """Connects the clients, a few at a time. Returns their tasks."""
    tasks = []
    for number, regular in enumerate(regulars, 1):
        tasks.append(asyncio.create_task(regular.live()))
        if number % LANES == 0:
            await all_connected(regulars[:number])
    inside = await all_connected(regulars)
    check(inside, f"{len(regulars)} clients have a session")
    return tasks


async def all_connected(regulars):
    return await scripted.eventually(lambda: all(one.is_inside() for one in regulars), PATIENCE)
