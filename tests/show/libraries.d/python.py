"""Python's `websockets` as server and as client. It behaves as node.mjs does.

python.py serve                      behaves by path; GET /seen?id=… returns the server's record
python.py connect CASES BASE SERVER  runs the cases of a file on BASE, prints a record for each;
                                     SERVER is asked for the server's record
"""

import asyncio
import hashlib
import json
import os
import re
import sys
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.http11 import Response

ONE_HOP = re.compile(
    r"(x-forwarded-.*|forwarded|x-real-ip|x-request-id|host|connection|keep-alive|upgrade|date"
    r"|sec-websocket-(key|accept))$"
)
DEADLINE = 15


def comparable_fields(headers):
    """Returns the fields that must be equal on both sides of a proxy, repeated ones in order."""
    fields = [[name.lower(), value] for name, value in headers.raw_items()]
    return sorted(
        (field for field in fields if not ONE_HOP.match(field[0])), key=lambda field: field[0]
    )


def digest(message):
    """Returns a short text for a message."""
    if isinstance(message, str) and len(message) < 80:
        return message
    data = message.encode() if isinstance(message, str) else message
    kind = "text" if isinstance(message, str) else "binary"
    return f"{kind} {len(data)} {hashlib.sha256(data).hexdigest()[:16]}"


def chosen(connection):
    return [connection.subprotocol or "", ", ".join(map(str, connection.protocol.extensions))]


async def close(connection, code, reason=""):
    if code is None:  # the library's own close always sends a code
        async with connection.send_context():
            connection.protocol.send_close()
    await connection.close(code or 1000, reason)


class Server:
    def __init__(self):
        self.records = {}

    async def decide(self, connection, request):
        url = urlsplit(request.path)
        query = {
            name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()
        }
        connection.path, connection.query = url.path, query
        if url.path == "/seen":
            return connection.respond(HTTPStatus.OK, json.dumps(self.records.get(query["id"], {})))
        fresh = {"requests": [], "messages": [], "pongs": []}
        connection.record = record = self.records.setdefault(query.get("id"), fresh)
        record["requests"].append([request.path, comparable_fields(request.headers)])
        if url.path in ("/redirect", "/refuse"):
            body = f"pod says {query['status']}\n".encode()
            fields = [
                ("Connection", "close"),
                ("Content-Type", "text/plain"),
                ("Content-Length", str(len(body))),
            ]
            if url.path == "/redirect":
                fields.append(("Location", query["to"]))
            else:
                challenges = [
                    ("WWW-Authenticate", 'Basic realm="pods"'),
                    ("WWW-Authenticate", "Bearer"),
                ]
                fields += [*challenges, ("X-Why", "because")]
            return Response(int(query["status"]), "Reason", Headers(fields), body)
        if url.path == "/think":
            record["state"] = "thinking"
            await connection.wait_closed()
            record["state"] = "disconnected"
        if query.get("deflate") == "off":
            connection.protocol.available_extensions = None
        return None

    def add_headers(self, connection, request, response):
        if connection.path == "/headers" and response.status_code == 101:
            del response.headers["Server"]
            for name, value in (
                ("Set-Cookie", "a=1; Path=/"),
                ("Set-Cookie", "b=2; HttpOnly"),
                ("X-Pod", "one, two"),
                ("Server", "pods/1.0"),
            ):
                response.headers[name] = value

    async def talk(self, connection):
        query, record = connection.query, connection.record
        record["chosen"] = chosen(connection)
        try:
            if connection.path == "/greet":
                for text in ("one", "two", "x" * 1000):
                    await connection.send(text)
            if connection.path == "/close":
                await close(
                    connection,
                    int(query["code"]) if "code" in query else None,
                    query.get("reason", ""),
                )
            if connection.path == "/ping":
                await (await connection.ping("from the pod"))
                record["pongs"].append("from the pod")
            if connection.path == "/fragments":
                await connection.send(["Grüße, ", "", "in drei ", "Stücken"])
            while True:
                parts = [part async for part in connection.recv_streaming()]
                message = (b"" if isinstance(parts[0], bytes) else "").join(parts)
                record["messages"].append(digest(message))
                await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            await connection.wait_closed()
            record["closed"] = [connection.close_code, connection.close_reason]

    async def run(self):
        server = await serve(
            self.talk,
            "127.0.0.1",
            0,
            select_subprotocol=lambda connection, offered: (
                connection.query.get("select")
                if connection.query.get("select") in offered
                else None
            ),
            compression="deflate",
            process_request=self.decide,
            process_response=self.add_headers,
            max_size=None,
            open_timeout=None,
            ping_interval=None,
        )
        print("listening on {}:{}".format(*server.sockets[0].getsockname()), flush=True)
        await server.serve_forever()


class NoRedirect(connect):
    """A connection that does not follow redirects."""

    def process_redirect(self, exc):
        return exc


async def record(server, identity, ready):
    def ask():
        with urllib.request.urlopen(f"http://{server}/seen?id={identity}", timeout=5) as answer:
            return json.load(answer)

    deadline = time.monotonic() + 5
    while not ready(seen := await asyncio.to_thread(ask)) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return seen


async def talk(case, connection, outcome):
    outcome["chosen"] = chosen(connection)
    outcome["headers"] = comparable_fields(connection.response.headers)
    for parts in case.get("send", []):
        await connection.send(
            b"0123456789abcdef" * (parts // 16) if isinstance(parts, int) else parts
        )
    if "ping" in case:
        await (await connection.ping(case["ping"]))
        outcome["pong"] = case["ping"]
    remaining = case.get("receive", len(case.get("send", [])))
    if "ping" in case or case["path"].startswith("/ping"):
        remaining -= 1  # pings and pongs are not received as messages
    for _ in range(remaining):
        outcome["received"].append(digest(await connection.recv()))
    if case["path"].startswith("/ping"):
        # The library answers pings itself: after this pong, the server's ping has been answered
        # too.
        await (await connection.ping("over"))
    if not case["path"].startswith("/close"):
        code, reason = case.get("close", [1000, ""]) or (None, "")
        await close(connection, code, reason)
    await connection.wait_closed()
    outcome["closed"] = [connection.close_code, connection.close_reason]


async def play(case, base, server, identity):
    """Runs one case. Returns the client's record, with the server's record in it."""
    outcome = {"received": []}
    offer = case.get("deflate")
    opening = (connect if case.get("follow") else NoRedirect)(
        f"ws://{base}{case['path'].replace('ID', identity)}",
        proxy=None,
        compression=None,
        extensions=None if offer is None else [ClientPerMessageDeflateFactory(**offer)],
        subprotocols=case.get("protocols"),
        additional_headers=case.get("headers"),
        ping_interval=None,
        max_size=None,
    )
    if case.get("abort"):

        async def attempt():
            await opening

        task = asyncio.create_task(attempt())
        await record(server, identity, lambda seen: seen.get("state") == "thinking")
        task.cancel()
        seen = await record(server, identity, lambda seen: seen.get("state") == "disconnected")
        return {"state": seen.get("state")}
    try:
        async with asyncio.timeout(DEADLINE):
            connection = await opening
            await talk(case, connection, outcome)
    except InvalidStatus as refusal:
        response = refusal.response
        outcome["status"], outcome["body"] = response.status_code, (response.body or b"").decode()
        outcome["headers"] = comparable_fields(response.headers)
    except (WebSocketException, OSError, TimeoutError) as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    # A client may have failed a session that its server considers open.
    outcome["server"] = await record(
        server,
        identity,
        lambda seen: "closed" in seen or not ("chosen" in outcome or "chosen" in seen),
    )
    return outcome


async def connect_all(file, base, server):
    for number, case in enumerate(json.loads(Path(file).read_text())):
        identity = f"id{os.getpid()}n{number}e"
        outcome = json.dumps(await play(case, base, server, identity), ensure_ascii=False)
        print("OUTCOME", outcome.replace(identity, "ID"), flush=True)


if __name__ == "__main__":
    asyncio.run(Server().run() if sys.argv[1] == "serve" else connect_all(*sys.argv[2:]))
