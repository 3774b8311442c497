"""An echo server on Python's `websockets`."""

import asyncio
import logging

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

logging.getLogger("websockets").setLevel(
    logging.CRITICAL
)  # the suite violates the protocol on purpose


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass


async def main():
    # No Pings of its own: cases that last longer than the interval would receive unexpected frames.
    async with serve(
        echo, "127.0.0.1", 0, max_size=None, ping_interval=None, compression="deflate"
    ) as server:
        print("listening on", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
