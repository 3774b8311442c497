"""Pods that fail in one way each, while `ill` is set."""

import socket
import time

from evidence import scripted
from evidence.fleet import Pod

GARBAGE = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n"
WRONG_ACCEPT = "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA="


class Failing(Pod):
    """A pod whose metric route works. `waits`: its handshakes end with a time-out."""

    ill = True
    waits = False

    async def handshake(self, connection, head):
        if self.ill:
            await self.fail(connection, head)
        else:
            await super().handshake(connection, head)


class Silent(Failing):
    """accepts and never answers"""

    waits = True

    async def fail(self, connection, _):
        await connection.ended(scripted.IDLE)


class Unavailable(Failing):
    """answers 503"""

    async def fail(self, connection, _):
        await connection.send(scripted.answer(503, body=b"not now\n"))


class Closing(Failing):
    """closes at once"""

    async def talk(self, connection):
        if not self.ill:
            return await super().talk(connection)
        self.attempts.append(time.monotonic())


class Garbage(Failing):
    """answers garbage"""

    async def fail(self, connection, _):
        await connection.send(GARBAGE)
        await connection.ended(scripted.IDLE)


class WrongAccept(Failing):
    """sends a wrong Sec-WebSocket-Accept"""

    async def fail(self, connection, head):
        lines = scripted.switch(head).split("\r\n")
        wrong = [
            WRONG_ACCEPT if line.startswith("Sec-WebSocket-Accept") else line for line in lines
        ]
        await connection.send("\r\n".join(wrong))
        await connection.ended(scripted.IDLE)


class Refused:
    """refuses connections: its port is bound, but not listening"""

    ill = True
    waits = False
    name = "refusing"

    async def start(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.socket.getsockname())
        self.url = f"http://{self.address}"
        return self

    def stop(self):
        self.socket.close()


class Unreached(Refused):
    """does not accept connections: its backlog is full, and the kernel drops new ones"""

    name = "unreached"
    waits = True

    async def start(self):
        await super().start()
        self.socket.listen(0)
        self.fillers = [socket.socket() for _ in range(4)]
        for filler in self.fillers:
            filler.setblocking(False)
            filler.connect_ex(self.socket.getsockname())
        return self

    def stop(self):
        for filler in self.fillers:
            filler.close()
        super().stop()
