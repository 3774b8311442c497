"""Pods and clients over TLS, and the balancer between them, for all parts of `tls`."""

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
REPORT = 7  # the connection count that pods report
LARGE = 8 << 20
PIECES = 300
CODES = [1000, 1001, 1008, 1011, 3000, 4999]
HOST = "chat.example.org"


def server_context(pair, clients=None, newest=None):
    """Returns the TLS context of a pod.

    With `clients`, client certificates of that authority are required.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    # HTTP/2 is preferred, so that it would be selected if the balancer offered it.
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
    """A pod with Python's `websockets` on this loop. `/close?code=…` closes, all other paths echo.

    `seen` are path, SNI, ALPN and TLS version of every request, `closed` are the codes and reasons
    of Closes.
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
    """A pod with the same library on threads, which only echoes.

    Unlike asyncio, it sends TLS alerts.
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
    """A pod with npm `ws`, in its own process."""

    def __init__(self, npm, pair=None, authority=None):
        env = {"REPORT": str(REPORT)}
        if pair:
            env.update(TLS_CERT=str(pair.certificate), TLS_KEY=str(pair.key))
        super().__init__(
            install.require("node"), HERE / "node.mjs", "serve", env=env, cwd=npm, name="ws pod"
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
    """A balancer that polls its pods frequently."""

    def __init__(self, *pods, **settings):
        super().__init__(
            *pods, BALANCER__METRIC_PATH="/metric", BALANCER__POLL_INTERVAL="200ms", **settings
        )

    def pods(self):
        return self.metrics()["services"]

    async def reaches_states(self, *states):
        """Waits until the pods are in these states. Returns whether they are."""
        return await scripted.eventually(
            lambda: [pod["state"] for pod in self.pods()] == list(states)
        )

    async def find_log_line(self, pattern, since=0):
        """Waits for a log line that matches, starting at line `since`. Returns it."""

        def found():
            return next((line for line in self.lines[since:] if pattern.search(line)), None)

        return await scripted.eventually(found)


async def dial(address, context=None, name=None):
    """Opens a raw connection, over TLS if there is a `context`."""
    host, _, port = address.rpartition(":")
    arguments = {"ssl": context, "server_hostname": name or host} if context else {}
    opening = asyncio.open_connection(host, int(port), limit=scripted.LONGEST_HEAD, **arguments)
    return scripted.Connection(*await asyncio.wait_for(opening, scripted.DEADLINE))


async def ask(address, text, context=None):
    """Sends a request. Returns head and body of the answer."""
    client = await dial(address, context)
    await client.send(text)
    head = await client.head()
    body = b"" if head is None or head.status == 101 else await client.body(head)
    client.close()
    return head, body


def websocket(address, path="/", context=None, **arguments):
    """Returns a `websockets` client connection."""
    scheme = "wss" if context else "ws"
    return connect(
        f"{scheme}://{address}{path}",
        ssl=context,
        proxy=None,
        compression=None,
        max_size=None,
        ping_interval=None,
        open_timeout=scripted.DEADLINE,
        **arguments,
    )


async def session_errors(address, context=None, count=1):
    """Opens `count` sessions one after the other, with a message each. Returns the errors."""
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


async def failed_messages(address, pod, context=None):
    """Tests messages of all kinds and close codes in both directions. Returns the failed ones."""
    failed = []
    binary, large = os.urandom(100_000), os.urandom(LARGE)
    size = LARGE // PIECES + 1
    async with websocket(address, context=context) as connection:

        async def exchange(what, sent, message):
            await connection.send(sent)
            got = await asyncio.wait_for(connection.recv(), scripted.DEADLINE)
            if type(got) is not type(message) or digest(got) != digest(message):
                failed.append(what)

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
        if not await has_seen_close(pod, [code, reason]):
            failed.append(f"the client's close with {code}")
        async with websocket(
            address, f"/close?code={code}&reason={quote(reason)}", context
        ) as connection:
            await asyncio.wait_for(connection.wait_closed(), scripted.DEADLINE)
            if (connection.close_code, connection.close_reason) != (code, reason):
                failed.append(f"the pod's close with {code}")
    return failed


async def has_seen_close(pod, close, timeout=scripted.DEADLINE):
    """Waits until the pod has seen this Close. Returns whether it has."""
    deadline = asyncio.get_running_loop().time() + timeout
    while asyncio.get_running_loop().time() < deadline:
        if close in await pod.sessions_closed():
            return True
        await asyncio.sleep(0.02)
    return False


def digest(message):
    return hashlib.sha256(message.encode() if isinstance(message, str) else message).hexdigest()


async def node_client(npm, url, authority):
    """Runs a client with npm `ws` on an echoing pod. Returns its results."""

    def run_client():
        client = programs.Program(
            install.require("node"), HERE / "node.mjs", "connect", url, authority.file, cwd=npm
        )
        try:
            return json.loads(client.expect(r"^\{.*\}$").group())
        finally:
            client.stop()

    return await asyncio.to_thread(run_client)
