"""A listener that speaks TLS: ordinary clients, those who send something else, slow ones, silent
ones.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
import time

import hello
import peers
from evidence import echo_pod, install, programs, scripted
from evidence.certificates import Authority
from evidence.checks import check, say
from peers import HOST

SESSIONS = 8
MEBIBYTES = 64
FLOOD = 1 << (27 if "--short" in sys.argv else 30)
CHUNK = 1 << 18
HEADER = bytes([0x82, 127]) + CHUNK.to_bytes(8, "big")
GROWTH = 20 << 10  # KiB of resident memory
SILENT = 200
TIMEOUT = 2


def files(pair):
    """The settings of a listener that has this pair."""
    return {"SERVER__TLS_CERT_FILE": pair.certificate, "SERVER__TLS_KEY_FILE": pair.key}


async def show(folder, npm, root, other):
    # Clients know the root only, so that the whole chain must be sent.
    between = Authority(folder, "intermediate authority", root)
    pair = between.issue("listener", f"DNS:{HOST}", "DNS:localhost", "IP:127.0.0.1")
    context = peers.client_context(root)
    say("clients over TLS, pods without")
    node = peers.NodePod(npm)
    pod = await peers.Pod().start()
    for name, one in (("websockets", pod), ("npm ws", node)):
        await show_clients(name, one, files(pair), context, npm, root)
    await show_curl(node, files(pair), folder, root)
    await show_ends(node, files(pair), context)
    await show_forwarded(node, files(pair), context)
    node.stop()
    await show_garbage(files(pair), context)
    await show_bulk(files(pair), context)
    await show_slow_reader(files(pair), context)
    await show_silent(files(pair), context)


async def show_clients(name, pod, settings, context, npm, root):
    balancer = peers.Balancer(pod, **settings)
    wrong = await peers.talk(balancer.address, pod, context)
    check(
        not wrong,
        f"websockets → {name}: {wrong or 'text, binary, large ones, fragments, close codes'}",
    )
    told = await peers.node_client(npm, f"wss://{balancer.address}/", root)
    check(
        told["trusted"] and told["echoed"] and told["closed"] == [4321, "tschüß"],
        f"npm ws → {name}: {told}",
    )
    check(await peers.seen(pod, [4321, "tschüß"]), "its close code and reason reached the pod")
    try:
        async with peers.websocket(balancer.address, context=ssl.create_default_context()):
            check(
                False, "control: a client that does not know the authority must refuse the balancer"
            )
    except ssl.SSLCertVerificationError as error:
        check(
            True,
            f"control: a client that does not know the authority leaves: {error.verify_message}",
        )
    balancer.stop()


async def show_curl(pod, settings, folder, root):
    balancer = peers.Balancer(pod, **settings)
    port = balancer.address.rpartition(":")[2]
    body = os.urandom(3 << 20)
    file = folder / "body"
    file.write_bytes(body)
    form = "%{http_code} %{http_version} %{ssl_verify_result}"
    for newest in ("1.2", "1.3"):
        got = folder / "got"
        command = [
            install.need("curl"),
            "--silent",
            "--show-error",
            "--cacert",
            root.file,
            "--tls-max",
            newest,
            "--resolve",
            f"{HOST}:{port}:127.0.0.1",
            "--noproxy",
            "*",
            "--data-binary",
            f"@{file}",
            "--output",
            got,
            "--write-out",
            form,
            f"https://{HOST}:{port}/echo",
        ]
        curl = programs.Program(*command, name="curl")
        await asyncio.to_thread(curl.process.wait, scripted.DEADLINE)
        curl.stop()
        same = got.exists() and got.read_bytes() == body
        told = f"{curl.output}, {len(body)} bytes {'echoed' if same else 'are not echoed'}"
        check(curl.output == "200 1.1 0" and same, f"curl, TLS {newest} at most: {told}")
        got.unlink(missing_ok=True)
    balancer.stop()


async def show_ends(pod, settings, context):
    """No answer may look whole because it was cut: its end is told within TLS, by a
    close_notify.
    """
    balancer = peers.Balancer(pod, **settings)

    def read_to_end(text):
        host, port = balancer.address.split(":")
        client = socket.create_connection((host, int(port)), scripted.DEADLINE)
        with context.wrap_socket(
            client, server_hostname=host, suppress_ragged_eofs=False
        ) as connection:
            connection.sendall(text.encode())
            while connection.recv(1 << 16):
                pass

    asked = {
        "HTTP/1.0": scripted.request("/", HOST, version="HTTP/1.0"),
        "Connection: close": scripted.request("/", HOST, "Connection: close"),
        "no HTTP": "\0\r\n\r\n",
    }
    for what, text in asked.items():
        try:
            await asyncio.to_thread(read_to_end, text)
            check(True, f"{what}: the connection ends by a close_notify")
        except ssl.SSLError as error:
            check(False, f"{what}: the connection ends by {error}")
    balancer.stop()


async def show_forwarded(pod, settings, context):
    forged = [
        "X-Forwarded-Proto: http",
        "X-Forwarded-Port: 80",
        f"Forwarded: for=6.6.6.6;host={HOST};proto=http",
    ]
    names = ["x-forwarded-proto", "x-forwarded-port"]
    for tls in (settings, {}):
        proto, default = ("https", "443") if tls else ("http", "80")
        say(f"  what the pod is told by a listener {'with' if tls else 'without'} TLS")
        balancer = peers.Balancer(pod, **tls)
        port = balancer.address.rpartition(":")[2]
        hosts = {HOST: default, f"{HOST}:8443": "8443", f"127.0.0.1:{port}": port}
        for host, expected in hosts.items():
            for fields in ([], forged):
                client = await peers.dial(balancer.address, tls and context)
                await client.send(scripted.request("/", host, *fields))
                plain = json.loads((await client.answer())[1])
                await client.send(scripted.handshake("/headers", host, *fields))
                await client.head()
                upgraded = json.loads((await client.frame())[2])
                client.close()
                told = [[one.get(name) for name in names] for one in (plain, upgraded)]
                right = told == [[proto, expected]] * 2
                right &= all(
                    one["forwarded"].endswith(f";proto={proto}") for one in (plain, upgraded)
                )
                what = f"Host: {host}{', a client that forges the rest' if fields else ''}"
                check(
                    right,
                    f"{what}: {told[0] if told[0] == told[1] else told}, {upgraded['forwarded']}",
                )
        balancer.stop()


async def show_garbage(settings, context):
    say("  something else than TLS")
    pod = await peers.Pod().start()
    balancer = peers.Balancer(pod, **settings)
    genuine = hello.genuine()
    cases = {
        "plain HTTP": scripted.request("/", HOST).encode(),
        "a plain handshake": scripted.handshake("/", HOST).encode(),
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "random bytes": b"\xff" + os.urandom(4095),
        "zeros": bytes(4096),
        "a record of 65535 bytes": b"\x16\x03\x01\xff\xff" + bytes(70_000),
        "application data at first": b"\x17\x03\x03\x00\x10" + os.urandom(16),
        "a ClientHello with its end garbled": genuine[:60] + os.urandom(len(genuine) - 60),
        "a ClientHello twice": genuine * 2,
    }
    before = balancer.refusals()
    async with peers.websocket(balancer.address, context=context) as chatting:
        for what, sent in cases.items():
            client = await scripted.dial(balancer.address)
            with contextlib.suppress(OSError):  # cut before it was all sent
                await client.send(sent)
            ended = await client.ended()
            client.close()
            await chatting.send(what)
            check(
                ended and await chatting.recv() == what, f"{what}: cut, a session beside it goes on"
            )
        for what, sent in (("nothing", b""), ("half a ClientHello", genuine[:100])):
            client = await scripted.dial(balancer.address)
            await client.send(sent)
            client.reset()
            await chatting.send(what)
            check(
                await chatting.recv() == what, f"{what}, then a reset: a session beside it goes on"
            )
        await scripted.eventually(lambda: balancer.refusals(before).get("bad_tls", 0) >= len(cases))
        counted = balancer.refusals(before)
        check(
            set(counted) == {"bad_tls"} and counted["bad_tls"] >= len(cases),
            f"counted on /telemetry: {counted}",
        )
    refused = await peers.echoes(balancer.address, context, 3)
    check(not refused, f"the next clients: {refused or 'served'}")
    sessions = sum(path != "/metric" for path, *_ in pod.seen)
    check(sessions == 4, f"the pod has seen nothing but {sessions} sessions and polls")
    check("panic" not in balancer.output, "no panic in the log")
    balancer.stop()


async def session(address, context, seed, total):
    async with peers.websocket(address, f"/flow?seed={seed}&bytes={total}", context) as connection:
        sending = echo_pod.stream(connection, f"up{seed}", total)
        _, (down, right_here) = await asyncio.gather(sending, echo_pod.absorb(connection))
        there = json.loads(await connection.recv())
        return there["count"], there["right"], down, right_here


async def show_bulk(settings, context):
    pod = programs.EchoPod("flow")
    balancer = peers.Balancer(pod, **settings)
    total = (MEBIBYTES << 20) // SESSIONS
    started = time.monotonic()
    ended = await asyncio.gather(
        *(session(balancer.address, context, seed, total) for seed in range(SESSIONS))
    )
    took = time.monotonic() - started
    up, down = sum(one[0] for one in ended), sum(one[2] for one in ended)
    say(
        f"  {SESSIONS} sessions: {up / 2**20:.1f} MiB up, {down / 2**20:.1f} MiB down in "
        f"{took:.1f} s"
    )
    check(up == down == SESSIONS * total, "no byte is missing or too many")
    check(all(one[1] and one[3] for one in ended), f"{2 * SESSIONS} checksums are right")
    check("panic" not in balancer.output, "no panic in the log")
    check(balancer.stop() == 0, "SIGTERM ends it with exit code 0")
    pod.stop()


class Pouring(scripted.Pod):
    """A pod that sends blocks of random bytes, each stamped with its number, as fast as it is
    let.
    """

    def __init__(self):
        super().__init__(self._pour)
        self.sent, self.digest = 0, hashlib.sha256()

    async def _pour(self, connection):
        head = await connection.head()
        if not head.get("sec-websocket-key"):
            await connection.send(scripted.answer(200))
            return
        await connection.send(scripted.switch(head))
        base = os.urandom(CHUNK)
        for number in range(FLOOD // CHUNK):
            block = struct.pack(">Q", number) + base[8:]
            self.digest.update(block)
            connection.writer.write(HEADER + block)
            await connection.writer.drain()
            self.sent += CHUNK
        await connection.ended(scripted.IDLE)


def stalled_client(address, context):
    """A TLS connection past its handshake that nobody reads."""
    host, port = address.split(":")
    client = context.wrap_socket(
        socket.create_connection((host, int(port)), scripted.DEADLINE), server_hostname=host
    )
    client.sendall(scripted.handshake("/", address).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return client


def read_all(client, watch):
    """Reads the flood to its end; the number of payload bytes, their checksum, what was wrong."""
    digest, count = hashlib.sha256(), 0
    frame = memoryview(bytearray(len(HEADER) + CHUNK))
    for number in range(FLOOD // CHUNK):
        filled = 0
        while filled < len(frame):
            n = client.recv_into(frame[filled:])
            if n == 0:
                return count, digest.hexdigest()
            filled += n
        if frame[: len(HEADER)] != HEADER:
            return count, f"frame {number} begins with {bytes(frame[:10])!r}"
        digest.update(frame[len(HEADER) :])
        count += CHUNK
        if number % (FLOOD // CHUNK // 16) == 0:
            watch()
    return count, digest.hexdigest()


async def settle(probe):
    """The value of `probe` once it has not changed for a second."""
    values = [probe()]
    while len(values) < 11 or len(set(values[-11:])) > 1:
        await asyncio.sleep(0.1)
        values.append(probe())
    return values[-1]


async def show_slow_reader(settings, context):
    say(f"  a client that stops reading while its pod has {FLOOD >> 20} MiB for it")
    pod = await Pouring().start()
    balancer = scripted.Balancer(pod, SERVER__WORKERS=1, **settings)
    for _ in range(10):  # what TLS takes once is not the slow reader's
        await peers.ask(balancer.address, scripted.request("/", HOST), context)
    before = balancer.rss_kib()
    client = await asyncio.to_thread(stalled_client, balancer.address, context)
    sent = await settle(lambda: pod.sent)
    grown = balancer.rss_kib() - before
    say(f"  the pod got rid of {sent / 2**20:.1f} MiB (the kernel's buffers), then waits")
    check(sent < FLOOD, "the pod sees backpressure")
    check(grown < GROWTH, f"RSS {before} KiB before, {grown:+d} KiB with the stalled session")
    samples, started = [], time.monotonic()
    count, digest = await asyncio.to_thread(
        read_all, client, lambda: samples.append(balancer.rss_kib() - before)
    )
    took = time.monotonic() - started
    check(
        (count, digest) == (FLOOD, pod.digest.hexdigest()),
        f"read at last: {count} bytes, checksum {digest[:16]}…",
    )
    say(f"  {took:.1f} s, {FLOOD / took / 1e6:.0f} MB/s")
    check(
        max(samples, default=0) < GROWTH,
        f"RSS {max(samples, default=0):+d} KiB at most of {len(samples)} samples",
    )
    client.close()
    balancer.stop()


async def silent(address, number):
    """A client that does not finish its TLS handshake, in one of four ways: seconds until it is
    cut.
    """
    genuine = hello.genuine()
    client = await scripted.dial(address)
    started = time.monotonic()
    if number % 4 == 1:
        await client.send(genuine[:100])
    elif number % 4 == 2:
        await client.send(genuine)  # and no answer to what comes
    elif number % 4 == 3:
        drip = asyncio.create_task(dripping(client, genuine))
    ended = await client.ended(3 * TIMEOUT)
    if number % 4 == 3:
        drip.cancel()
    client.close()
    return time.monotonic() - started, ended


async def dripping(client, data):
    """A byte every now and then."""
    try:
        for byte in data:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.1)
    except OSError:
        pass


async def show_silent(settings, context):
    say(
        f"  server.request_timeout = {TIMEOUT}s, {SILENT} clients that never finish their TLS "
        "handshake"
    )
    pod = await peers.Pod().start()
    balancer = peers.Balancer(pod, SERVER__REQUEST_TIMEOUT=f"{TIMEOUT}s", **settings)
    quiet = asyncio.gather(*(silent(balancer.address, number) for number in range(SILENT)))
    refused, served = [], 0
    while not quiet.done():
        refused += await peers.echoes(balancer.address, context)
        served += 1
    cut = await quiet
    times = [took for took, _ in cut]
    say("  they send nothing, half a ClientHello, a whole one, one byte by byte")
    say(f"  cut after {min(times):.2f} to {max(times):.2f} s")
    check(
        not refused,
        f"{served} clients served meanwhile, one after the other, errors: {refused[:5] or 'none'}",
    )
    check(all(ended for _, ended in cut), f"{sum(ended for _, ended in cut)} of {SILENT} are cut")
    check(max(times) < TIMEOUT + 2, "nobody is left 2 s after the time")
    check(min(times) > TIMEOUT - 0.5, "nobody is cut before")
    client = await peers.dial(balancer.address, context)
    check(await client.ended(2 * TIMEOUT + 2), "so is one that finishes it and then says nothing")
    client.close()
    say("  control: server.request_timeout = 1m")
    balancer.stop()
    balancer = peers.Balancer(pod, SERVER__REQUEST_TIMEOUT="1m", **settings)
    clients = [asyncio.create_task(silent(balancer.address, number)) for number in range(20)]
    await asyncio.wait(clients, timeout=TIMEOUT + 1)
    left = sum(not task.done() for task in clients)
    check(
        left == len(clients),
        f"control: {left} of {len(clients)} are still there {TIMEOUT + 1} s later",
    )
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    balancer.stop()
