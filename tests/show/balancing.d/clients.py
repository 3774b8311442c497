"""Clients on raw sockets: they open a session, stay, and leave with a Close."""

import asyncio
import collections

from evidence import scripted
from pods import NORMAL

HOST = "chat.example.org"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = scripted.handshake("/", HOST, key=KEY).encode()


class Client(asyncio.Protocol):
    """One connection. It reports to the crowd how its handshake ended and when it was dropped."""

    def __init__(self, crowd):
        self.crowd = crowd
        self.buffer = b""
        self.inside = self.over = False

    def connection_made(self, transport):
        self.transport = transport
        transport.write(HANDSHAKE)

    def data_received(self, data):
        if self.over:
            return
        self.buffer += data
        if not self.inside and b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            self.begin(head)
        if self.inside and self.buffer[:1] == b"\x88":
            self.transport.write(NORMAL)
            self.transport.close()
            self.dropped()

    def begin(self, head):
        if head.startswith(b"HTTP/1.1 101 ") and ACCEPT in head:
            self.inside = True
            self.crowd.entered(self)
        else:
            self.fail(head.split(b"\r\n")[0].decode("latin-1"))

    def connection_lost(self, _):
        if self.inside:
            self.dropped()
        else:
            self.fail("closed without an answer")

    def fail(self, why):
        if not self.over:
            self.over = True
            self.transport.close()
            self.crowd.failures[why] += 1

    def dropped(self):
        if not self.over:
            self.over = True
            self.crowd.left(self)
            self.crowd.dropped(self)

    def leave(self):
        if not self.over:
            self.over = True
            self.transport.write(NORMAL)
            self.crowd.left(self)


class Crowd:
    """Clients that connect to the replicas in turn. `failures` are handshakes without a 101."""

    def __init__(self, addresses):
        self.addresses = [address.rsplit(":", 1) for address in addresses]
        self.arrivals, self.drops = [], []
        self.failures = collections.Counter()
        self.clients = set()
        self.tasks = set()
        self.stays = True
        self.loop = asyncio.get_running_loop()

    def arrive(self, *about):
        """Opens one more connection, at the next replica."""
        host, port = self.next_address()
        self.arrivals.append(self.loop.time())
        task = self.loop.create_task(self._connect(host, port, about))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def next_address(self):
        return self.addresses[len(self.arrivals) % len(self.addresses)]

    async def _connect(self, host, port, about):
        try:
            await self.loop.create_connection(lambda: self.client(*about), host, int(port))
        except OSError as error:
            self.failures[str(error)] += 1

    def client(self):
        return Client(self)

    async def come(self, count, seconds):
        """Connects `count` clients at an even pace."""
        start = self.loop.time()
        for number in range(count):
            if (pause := start + number * seconds / count - self.loop.time()) > 0:
                await asyncio.sleep(pause)
            self.arrive()

    async def inside(self, count):
        """Waits until `count` clients have a session or have failed finally."""
        await scripted.eventually(lambda: len(self.clients) >= count, 30)
        return len(self.clients) == count

    def entered(self, client):
        self.clients.add(client)

    def left(self, client):
        self.clients.discard(client)

    def dropped(self, _):
        self.drops.append(self.loop.time())

    def end(self):
        """Disconnects all clients; none reconnects."""
        self.stays = False
        for task in [*self.tasks]:
            task.cancel()
        for client in [*self.clients]:
            client.over = True
            client.transport.abort()
        self.clients.clear()


class PollingCrowd(Crowd):
    """Clients that connect directly to the pod that had the fewest sessions at the last poll."""

    def __init__(self, pods, interval):
        super().__init__([pod.address for pod in pods])
        self.pods, self.interval = pods, interval
        self.asked = self.fewest = None

    def next_address(self):
        now = self.loop.time()
        if self.asked is None or now > self.asked + self.interval:
            self.asked = now
            self.fewest = min(range(len(self.pods)), key=lambda pod: len(self.pods[pod].sessions))
        return self.addresses[self.fewest]


class LimitedCrowd(Crowd):
    """Each client stays for an exponentially distributed time. The next one connects when it
    leaves.
    """

    def __init__(self, addresses, mean_life, seeded):
        super().__init__(addresses)
        self.mean_life, self.seeded = mean_life, seeded

    def entered(self, client):
        super().entered(client)
        self.loop.call_later(self.seeded.expovariate(1 / self.mean_life), self._replace, client)

    def _replace(self, client):
        if self.stays and not client.over:
            client.leave()
            self.arrive()


class ReconnectingCrowd(Crowd):
    """Clients that reconnect at once when they are dropped, up to `most` times each."""

    def __init__(self, addresses, most=float("inf")):
        super().__init__(addresses)
        self.most = most
        self.tired = 0

    def client(self, back=0):
        client = Client(self)
        client.back = back
        return client

    def dropped(self, client):
        super().dropped(client)
        if client.back == self.most:
            self.tired += 1
        elif self.stays:
            self.arrive(client.back + 1)
