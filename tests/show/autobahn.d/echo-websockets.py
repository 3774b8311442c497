"""Echo server on Python `websockets`."""

import asyncio
import logging

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

logging.getLogger("websockets").setLevel(
    logging.CRITICAL
)  # breaking the protocol is what the suite does


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass


async def main():
    # No pings of its own: in a case longer than their interval they would be frames nobody expects.
    async with serve(
        echo, "127.0.0.1", 0, max_size=None, ping_interval=None, compression="deflate"
    ) as server:
        print("listening on", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
