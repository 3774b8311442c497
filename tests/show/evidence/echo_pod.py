"""A pod on Python's `websockets`, with compression and the subprotocol `echo.example`.

The path decides what a connection does: `/flow` streams random bytes in both directions and
compares checksums, `/flood` sends zeros as fast as the peer reads, and any other path echoes.
`/metric` reports the open connections; the variable `REPORT` fixes the reported count.
"""

import asyncio
import hashlib
import json
import os
import random
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

NAME = os.environ.get("POD_NAME", "pod")
FROZEN = os.environ.get("REPORT")
SUBPROTOCOL = "echo.example"

flooded = {"bytes": 0}  # sent on the latest /flood connection


def messages(seed, total, largest=4 << 20):
    """Yields `total` random bytes in messages of 1 byte to 4 MiB, small and large ones mixed."""
    seeded = random.Random(seed)
    while total > 0:
        size = min(total, int(2 ** seeded.uniform(0, largest.bit_length() - 1)))
        yield seeded.randbytes(size)
        total -= size


async def stream(connection, seed, total):
    """Sends the bytes generated from `seed`, then their checksum as text."""
    digest = hashlib.sha256()
    for message in messages(seed, total):
        digest.update(message)
        await connection.send(message)
    await connection.send(digest.hexdigest())


async def absorb(connection):
    """Receives until the checksum. Returns the number of bytes and whether the checksum matches."""
    digest, count = hashlib.sha256(), 0
    async for message in connection:
        if isinstance(message, str):
            return count, message == digest.hexdigest()
        digest.update(message)
        count += len(message)
    return count, False


async def exchange(connection, seed, total):
    """The client's side of `/flow`: sends and receives `total` bytes at the same time.

    Returns the bytes that the pod received and whether their checksum was right, and the same for
    the client.
    """
    sending = stream(connection, f"up{seed}", total)
    _, received = await asyncio.gather(sending, absorb(connection))
    at_pod = json.loads(await connection.recv())
    return at_pod["count"], at_pod["right"], *received


async def serve_one(connection):
    url = urlsplit(connection.request.path)
    query = dict(parse_qsl(url.query))
    try:
        if url.path == "/flow":
            sending = stream(connection, "down" + query["seed"], int(query["bytes"]))
            _, (count, right) = await asyncio.gather(sending, absorb(connection))
            await connection.send(json.dumps({"count": count, "right": right}))
        elif url.path == "/flood":
            flooded["bytes"] = 0
            chunk = bytes(int(query["chunk"]))
            while flooded["bytes"] < int(query["bytes"]):
                await connection.send(chunk)
                flooded["bytes"] += len(chunk)
        else:
            async for message in connection:
                await connection.send(message)
    except ConnectionClosed:
        pass  # some clients disconnect without a Close on purpose


async def main():
    def metric(connection, request):
        if request.path != "/metric":
            return None
        count = len(server.connections) if FROZEN is None else int(FROZEN)
        report = {
            "agentsConnections": count,
            "podName": NAME,
            "held": len(server.connections),
            "flooded": flooded["bytes"],
        }
        answer = connection.respond(HTTPStatus.OK, json.dumps(report))
        del answer.headers["Content-Type"]
        answer.headers["Content-Type"] = "application/json"
        return answer

    server = await serve(
        serve_one,
        "127.0.0.1",
        0,
        # The library's default refuses clients that offer no subprotocol.
        select_subprotocol=lambda _, offered: SUBPROTOCOL if SUBPROTOCOL in offered else None,
        compression="deflate",
        process_request=metric,
        max_size=None,
        ping_interval=None,  # Pings would keep alive a connection that an idle time-out should cut
    )
    host, port = server.sockets[0].getsockname()
    print(f"listening on {host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
