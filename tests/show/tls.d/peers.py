"""Pods and clients over TLS, and the balancer between them, for every part of the show."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import ssl
import threading
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync import server as threaded

from evidence import install, programs, scripted

HERE = Path(__file__).parent
REPORT = 7  # what pods report, whatever they hold
LARGE = 8 << 20
PIECES = 300
CODES = [1000, 1001, 1008, 1011, 3000, 4999]
HOST = "chat.example.org"


def server_context(pair, clients=None, newest=None):
    """A pod's side; `clients` is the authority that a client's certificate must be of."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    # HTTP/2 comes first: whoever offers it gets it.
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.sni_callback = remember_name
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.file)
    if newest:
        context.maximum_version = newest
    return context


def remember_name(connection, name, _):
    connection.asked_for = name


def client_context(authority):
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Pod:
    """Python's `websockets` on this loop. `/close?code=…` closes, anything else echoes.

    `seen` has path, SNI, ALPN and version of every request, `closed` how sessions ended.
    """

    def __init__(self, host="127.0.0.1"):
        self.host = host
        self.seen, self.closed = [], []

    async def start(self, context=None):
        self.server = await serve(
            self._session,
            "127.0.0.1",
            0,
            ssl=context,
            process_request=self._request,
            compression=None,
            max_size=None,
            ping_interval=None,
        )
        port = self.server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.url = f"{'https' if context else 'http'}://{self.host}:{port}"
        return self

    def _request(self, connection, request):
        tls = self._tls(connection)
        agreed = (
            (getattr(tls, "asked_for", None), tls.selected_alpn_protocol(), tls.version())
            if tls
            else ()
        )
        self.seen.append((request.path, *agreed))
        if "Upgrade" in request.headers:
            return None
        answer = connection.respond(
            HTTPStatus.OK, json.dumps({"agentsConnections": REPORT, "podName": "websockets"})
        )
        del answer.headers["Content-Type"]
        answer.headers["Content-Type"] = "application/json"
        return answer

    def _tls(self, connection):
        return connection.transport.get_extra_info("ssl_object")

    async def _session(self, connection):
        url = urlsplit(connection.request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            if url.path == "/close":
                await connection.close(int(query["code"]), query["reason"])
            async for message in connection:
                await connection.send(message)
        except ConnectionClosed:
            pass
        self.closed.append([connection.close_code, connection.close_reason])

    async def sessions_closed(self):
        return self.closed


class ThreadedPod(Pod):
    """The same library on threads, echoing only. Unlike asyncio, it tells peers by an alert why it
    leaves.
    """

    async def start(self, context=None):
        logging.getLogger("websockets.server").disabled = True  # its clients fail on purpose
        self.server = threaded.serve(
            self._echo, "127.0.0.1", 0, ssl=context, process_request=self._request, compression=None
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        port = self.server.socket.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.url = f"https://{self.host}:{port}"
        return self

    def _tls(self, connection):
        return connection.socket

    def _echo(self, connection):
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                connection.send(message)


class NodePod(programs.Program):
    """npm `ws`, in a process of its own."""

    def __init__(self, npm, pair=None, authority=None):
        env = {"REPORT": str(REPORT)}
        if pair:
            env.update(TLS_CERT=str(pair.certificate), TLS_KEY=str(pair.key))
        super().__init__(
            install.need("node"), HERE / "node.mjs", "serve", env=env, cwd=npm, name="ws pod"
        )
        self.context = client_context(authority) if authority else None
        self.address = self.expect(r"listening on (127\.0\.0\.1:\d+)").group(1)
        self.url = f"{'https' if pair else 'http'}://{self.address}"

    async def report(self):
        client = await dial(self.address, self.context)
        await client.send(scripted.request("/metric", self.address))
        _, body = await client.answer()
        client.close()
        return json.loads(body)

    async def sessions_closed(self):
        return (await self.report())["closed"]


class Balancer(scripted.Balancer):
    """One that polls its pods, often; addressed by numbers, as everything here."""

    def __init__(self, *pods, **settings):
        super().__init__(
            *pods, BALANCER__METRIC_PATH="/metric", BALANCER__POLL_INTERVAL="200ms", **settings
        )

    def pods(self):
        return self.metrics()["services"]

    async def up(self, *states):
        """Whether the pods come to be in these states."""
        return await scripted.eventually(
            lambda: [pod["state"] for pod in self.pods()] == list(states)
        )

    async def logs(self, pattern, since=0):
        """Waits for a line of the log from `since` on."""

        def found():
            return next((line for line in self.lines[since:] if pattern.search(line)), None)

        return await scripted.eventually(found)


async def dial(address, context=None, name=None):
    """A connection by hand, over TLS with a `context`."""
    host, _, port = address.rpartition(":")
    more = {"ssl": context, "server_hostname": name or host} if context else {}
    opening = asyncio.open_connection(host, int(port), limit=scripted.LONGEST_HEAD, **more)
    return scripted.Connection(*await asyncio.wait_for(opening, scripted.DEADLINE))


async def ask(address, text, context=None):
    """Head and body of the answer to a request."""
    client = await dial(address, context)
    await client.send(text)
    head = await client.head()
    body = b"" if head is None or head.status == 101 else await client.body(head)
    client.close()
    return head, body


def websocket(address, path="/", context=None, **more):
    """A `websockets` client."""
    scheme = "wss" if context else "ws"
    return connect(
        f"{scheme}://{address}{path}",
        ssl=context,
        proxy=None,
        compression=None,
        max_size=None,
        ping_interval=None,
        open_timeout=scripted.DEADLINE,
        **more,
    )


async def echoes(address, context=None, count=1):
    """`count` sessions one after the other, a message each; the statuses of those that were
    refused.
    """
    refused = []
    for number in range(count):
        try:
            async with websocket(address, context=context) as connection:
                await connection.send(f"tick {number}")
                got = await asyncio.wait_for(connection.recv(), scripted.DEADLINE)
                if got != f"tick {number}":
                    refused.append(got)
        except InvalidStatus as error:
            refused.append(error.response.status_code)
        except (TimeoutError, OSError, WebSocketException) as error:
            refused.append(repr(error))
    return refused


async def talk(address, pod, context=None):
    """Everything a session does; what went wrong."""
    wrong = []
    binary, large = os.urandom(100_000), os.urandom(LARGE)
    size = LARGE // PIECES + 1
    async with websocket(address, context=context) as connection:

        async def exchange(what, sent, message):
            await connection.send(sent)
            got = await asyncio.wait_for(connection.recv(), scripted.DEADLINE)
            if type(got) is not type(message) or digest(got) != digest(message):
                wrong.append(what)

        await exchange("text", "Grüße 👋", "Grüße 👋")
        await exchange("binary", binary, binary)
        await exchange("a large text", large.hex(), large.hex())
        await exchange(
            f"{PIECES} fragments", [large[at : at + size] for at in range(0, LARGE, size)], large
        )
    for code in CODES:
        reason = f"wegen {code} ü {os.urandom(3).hex()}"
        async with websocket(address, context=context) as connection:
            await connection.close(code, reason)
        if not await seen(pod, [code, reason]):
            wrong.append(f"the client's close with {code}")
        async with websocket(
            address, f"/close?code={code}&reason={quote(reason)}", context
        ) as connection:
            await asyncio.wait_for(connection.wait_closed(), scripted.DEADLINE)
            if (connection.close_code, connection.close_reason) != (code, reason):
                wrong.append(f"the pod's close with {code}")
    return wrong


async def seen(pod, close, timeout=scripted.DEADLINE):
    """Whether the pod sees a session end like that."""
    deadline = asyncio.get_running_loop().time() + timeout
    while asyncio.get_running_loop().time() < deadline:
        if close in await pod.sessions_closed():
            return True
        await asyncio.sleep(0.02)
    return False


def digest(message):
    return hashlib.sha256(message.encode() if isinstance(message, str) else message).hexdigest()


async def node_client(npm, url, authority):
    """What npm `ws` makes of an echoing pod."""

    def play():
        client = programs.Program(
            install.need("node"), HERE / "node.mjs", "connect", url, authority.file, cwd=npm
        )
        try:
            return json.loads(client.expect(r"^\{.*\}$").group())
        finally:
            client.stop()

    return await asyncio.to_thread(play)
