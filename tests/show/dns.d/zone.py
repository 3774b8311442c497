"""A name server with the zone `test.`, which can be changed, stopped and suspended."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess

from evidence import install, programs

# One worker of each kind, because the machine is shared. The module counts the queries.
CONFIGURATION = """
server:
    rundir: {folder}
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    tcp-reuseport: off
control:
    listen: knot.sock
database:
    storage: {folder}
log:
  - target: stderr
    any: info
mod-stats:
  - id: all
    request-protocol: on
    query-type: on
    response-code: on
template:
  - id: default
    storage: {folder}
    file: "%s.zone"
    global-module: mod-stats/all
    zonefile-load: whole
    journal-content: none
zone:
  - domain: test
"""
# The negative TTL (the last number) is longer than any test waits.
ZONE = """$ORIGIN test.
@ 3600 SOA ns root {serial} 3600 3600 3600 3600
@ 3600 NS ns
ns 3600 A 127.0.0.1
{records}
"""


def free_port():
    """Returns a port that is free for UDP and TCP."""
    while True:
        port = programs.free_port()
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """Knot DNS in the foreground. `set` replaces the records of the zone."""

    def __init__(self, folder):
        self.folder, self.serial, self.program = folder, 0, None
        self.knotd, self.knotc = install.require("knotd"), install.require("knotc")
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.file = folder / "knot.conf"
        self.file.write_text(CONFIGURATION.format(folder=folder, port=port))
        self.write()
        self.start()

    def version(self):
        return subprocess.run(
            [self.knotd, "--version"], check=True, capture_output=True, text=True
        ).stdout.strip()

    def start(self):
        self.program = programs.Program(self.knotd, "--config", self.file)
        self.program.expect("server started")
        self.program.expect(r"control, binding")

    def stop(self):
        if self.program:
            self.resume()
            self.program.stop()
        self.program = None

    def freeze(self):
        """Suspends the server: queries reach its socket and are never answered."""
        self.program.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.program.process.send_signal(signal.SIGCONT)

    def control(self, *command):
        done = subprocess.run(
            [self.knotc, "--config", self.file, "--blocking", "--force", *command],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stdout

    def write(self, *records):
        self.serial += 1
        lines = "\n".join(records)
        (self.folder / "test.zone").write_text(ZONE.format(serial=self.serial, records=lines))

    def set(self, *records):
        """Replaces the records, given relative to `test.`; also while the server is down."""
        self.write(*records)
        if self.program:
            self.control("zone-reload", "test")

    def fail(self):
        """Makes the server answer SERVFAIL, because the zone file is missing."""
        self.control("zone-purge", "test")

    def counts(self):
        """Returns the number of queries by protocol (udp4, tcp4), by type (A, AAAA, SRV), and of
        answers by code.
        """
        found = re.findall(r"mod-stats\.[\w-]+\[([\w-]+)\] = (\d+)", self.control("stats"))
        return {name: int(count) for name, count in found}

    def count(self, name):
        return self.counts().get(name, 0)


class Relay(asyncio.DatagramProtocol):
    """A relay between the balancer and a server. Queries of the types in `failing` get SERVFAIL."""

    KINDS = {"A": 1, "AAAA": 28}

    def __init__(self, server):
        self.server, self.failing, self.failed = server, set(), 0

    async def start(self):
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.transport.get_extra_info("sockname"))
        return self

    def datagram_received(self, query, client):
        # A header of 12 bytes, the labels of the name, an empty label, and the type (RFC 1035
        # §4.1).
        end = query.index(b"\0", 12)
        kind = int.from_bytes(query[end + 1 : end + 3], "big")
        if kind in {self.KINDS[name] for name in self.failing}:
            self.failed += 1
            flags = bytes([query[2] | 0x80, 2])
            self.transport.sendto(
                query[:2] + flags + query[4:6] + bytes(6) + query[12 : end + 5], client
            )
        else:
            asyncio.get_running_loop().run_in_executor(None, self.forward, query, client)

    def forward(self, query, client):
        host, port = self.server.address.split(":")
        with socket.socket(type=socket.SOCK_DGRAM) as upstream:
            upstream.settimeout(5)
            upstream.sendto(query, (host, int(port)))
            answer = upstream.recv(1 << 16)
        self.transport.sendto(answer, client)


def a(name, *hosts, ttl=0):
    """Returns address records of a name: A or AAAA, depending on the host."""
    return [f"{name} {ttl} {'AAAA' if ':' in host else 'A'} {host}" for host in hosts]
