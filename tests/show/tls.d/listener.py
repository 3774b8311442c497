"""TLS from clients: ordinary clients, invalid bytes, slow readers, and silent clients."""

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
SILENT_CLIENTS = 200
TIMEOUT = 2


def tls_settings(pair):
    """Returns the settings of a listener with this certificate and key."""
    return {"SERVER__TLS_CERT_FILE": pair.certificate, "SERVER__TLS_KEY_FILE": pair.key}


async def show(folder, npm, root, other):
    # Clients trust only the root, so the listener must send the whole chain.
    between = Authority(folder, "intermediate authority", root)
    pair = between.issue("listener", f"DNS:{HOST}", "DNS:localhost", "IP:127.0.0.1")
    context = peers.client_context(root)
    say("clients over TLS, pods without")
    node = peers.NodePod(npm)
    pod = await peers.Pod().start()
    for name, one in (("websockets", pod), ("npm ws", node)):
        await show_clients(name, one, tls_settings(pair), context, npm, root)
    await show_curl(node, tls_settings(pair), folder, root)
    await show_close_notify(node, tls_settings(pair), context)
    await show_forwarded(node, tls_settings(pair), context)
    node.stop()
    await show_invalid_bytes(tls_settings(pair), context)
    await show_bulk(tls_settings(pair), context)
    await show_slow_reader(tls_settings(pair), context)
    await show_silent(tls_settings(pair), context)


async def show_clients(name, pod, settings, context, npm, root):
    balancer = peers.Balancer(pod, **settings)
    wrong = await peers.failed_messages(balancer.address, pod, context)
    check(
        not wrong,
        f"websockets → {name}: {wrong or 'text, binary, large messages, fragments, close codes'}",
    )
    results = await peers.node_client(npm, f"wss://{balancer.address}/", root)
    check(
        results["trusted"] and results["echoed"] and results["closed"] == [4321, "tschüß"],
        f"npm ws → {name}: {results}",
    )
    check(
        await peers.has_seen_close(pod, [4321, "tschüß"]), "its close code and reason reach the pod"
    )
    try:
        async with peers.websocket(balancer.address, context=ssl.create_default_context()):
            check(
                False,
                "control: a client that does not trust the authority must refuse the balancer",
            )
    except ssl.SSLCertVerificationError as error:
        check(
            True,
            "control: a client that does not trust the authority refuses the certificate: "
            f"{error.verify_message}",
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
            install.require("curl"),
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
        result = f"{curl.output}, {len(body)} bytes {'echoed' if same else 'are not echoed'}"
        check(curl.output == "200 1.1 0" and same, f"curl, TLS {newest} at most: {result}")
        got.unlink(missing_ok=True)
    balancer.stop()


async def show_close_notify(pod, settings, context):
    """Checks that connections end with a close_notify: a cut answer must not look complete."""
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
    for label, text in asked.items():
        try:
            await asyncio.to_thread(read_to_end, text)
            check(True, f"{label}: the connection ends by a close_notify")
        except ssl.SSLError as error:
            check(False, f"{label}: the connection ends by {error}")
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
        say(f"  what the pod learns from a listener {'with' if tls else 'without'} TLS")
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
                answers = [[one.get(name) for name in names] for one in (plain, upgraded)]
                right = answers == [[proto, expected]] * 2
                right &= all(
                    one["forwarded"].endswith(f";proto={proto}") for one in (plain, upgraded)
                )
                label = f"Host: {host}{', a client that forges the fields' if fields else ''}"
                check(
                    right,
                    f"{label}: {answers[0] if answers[0] == answers[1] else answers}, "
                    f"{upgraded['forwarded']}",
                )
        balancer.stop()


async def show_invalid_bytes(settings, context):
    say("  bytes that are not TLS")
    pod = await peers.Pod().start()
    balancer = peers.Balancer(pod, **settings)
    real_hello = hello.openssl_hello()
    cases = {
        "plain HTTP": scripted.request("/", HOST).encode(),
        "a plain handshake": scripted.handshake("/", HOST).encode(),
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "random bytes": b"\xff" + os.urandom(4095),
        "zeros": bytes(4096),
        "a record of 65535 bytes": b"\x16\x03\x01\xff\xff" + bytes(70_000),
        "application data first": b"\x17\x03\x03\x00\x10" + os.urandom(16),
        "a ClientHello with a random end": real_hello[:60] + os.urandom(len(real_hello) - 60),
        "a ClientHello twice": real_hello * 2,
    }
    before = balancer.refusals()
    async with peers.websocket(balancer.address, context=context) as chatting:
        for label, sent in cases.items():
            client = await scripted.dial(balancer.address)
            # The connection may be closed before all bytes are sent.
            with contextlib.suppress(OSError):
                await client.send(sent)
            ended = await client.ended()
            client.close()
            await chatting.send(label)
            check(
                ended and await chatting.recv() == label,
                f"{label}: closed, another session is not affected",
            )
        for label, sent in (("nothing", b""), ("half a ClientHello", real_hello[:100])):
            client = await scripted.dial(balancer.address)
            await client.send(sent)
            client.reset()
            await chatting.send(label)
            check(
                await chatting.recv() == label,
                f"{label}, then a reset: another session is not affected",
            )
        await scripted.eventually(lambda: balancer.refusals(before).get("bad_tls", 0) >= len(cases))
        counted = balancer.refusals(before)
        check(
            set(counted) == {"bad_tls"} and counted["bad_tls"] >= len(cases),
            f"counted in /telemetry: {counted}",
        )
    refused = await peers.session_errors(balancer.address, context, 3)
    check(not refused, f"the next clients: {refused or 'served'}")
    sessions = sum(path != "/metric" for path, *_ in pod.seen)
    check(sessions == 4, f"the pod has received only {sessions} sessions and polls")
    check("panic" not in balancer.output, "no panic in the log")
    balancer.stop()


async def session(address, context, seed, total):
    async with peers.websocket(address, f"/flow?seed={seed}&bytes={total}", context) as connection:
        return await echo_pod.exchange(connection, seed, total)


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
    check(up == down == SESSIONS * total, "no byte is missing or duplicated")
    check(all(one[1] and one[3] for one in ended), f"{2 * SESSIONS} checksums are right")
    check("panic" not in balancer.output, "no panic in the log")
    check(balancer.stop() == 0, "the balancer stops with exit code 0 after SIGTERM")
    pod.stop()


class FloodingPod(scripted.Pod):
    """A pod that sends numbered blocks of random bytes as fast as possible."""

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
    """Opens a session over TLS that is not read."""
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
    """Reads the whole flood.

    Returns the number of payload bytes and their checksum, or an error.
    """
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


async def show_slow_reader(settings, context):
    say(f"  a client that stops reading while its pod sends {FLOOD >> 20} MiB")
    pod = await FloodingPod().start()
    balancer = scripted.Balancer(pod, SERVER__WORKERS=1, **settings)
    for _ in range(10):  # one-time allocations of TLS are not caused by the slow reader
        await peers.ask(balancer.address, scripted.request("/", HOST), context)
    before = balancer.rss_kib()
    client = await asyncio.to_thread(stalled_client, balancer.address, context)
    sent = await scripted.settled(lambda: pod.sent)
    growth = balancer.rss_kib() - before
    say(f"  the pod sent {sent / 2**20:.1f} MiB (into the kernel's buffers), then blocks")
    check(sent < FLOOD, "the pod is blocked by backpressure")
    check(growth < GROWTH, f"RSS {before} KiB before, {growth:+d} KiB with the stalled session")
    samples, started = [], time.monotonic()
    count, digest = await asyncio.to_thread(
        read_all, client, lambda: samples.append(balancer.rss_kib() - before)
    )
    took = time.monotonic() - started
    check(
        (count, digest) == (FLOOD, pod.digest.hexdigest()),
        f"the client finally reads {count} bytes, checksum {digest[:16]}…",
    )
    say(f"  {took:.1f} s, {FLOOD / took / 1e6:.0f} MB/s")
    check(
        max(samples, default=0) < GROWTH,
        f"RSS {max(samples, default=0):+d} KiB at most in {len(samples)} samples",
    )
    client.close()
    balancer.stop()


async def unfinished_handshake(address, number):
    """Starts a TLS handshake and does not finish it, in one of four ways.

    Returns the seconds until the connection ended, and whether it did.
    """
    real_hello = hello.openssl_hello()
    client = await scripted.dial(address)
    started = time.monotonic()
    if number % 4 == 1:
        await client.send(real_hello[:100])
    elif number % 4 == 2:
        await client.send(real_hello)  # and no answer to the ServerHello
    elif number % 4 == 3:
        drip = asyncio.create_task(send_slowly(client, real_hello))
    ended = await client.ended(3 * TIMEOUT)
    if number % 4 == 3:
        drip.cancel()
    client.close()
    return time.monotonic() - started, ended


async def send_slowly(client, data):
    """Sends one byte every 100 ms."""
    try:
        for byte in data:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.1)
    except OSError:
        pass


async def show_silent(settings, context):
    say(
        f"  server.request_timeout = {TIMEOUT}s, {SILENT_CLIENTS} clients that never finish their "
        "TLS handshake"
    )
    pod = await peers.Pod().start()
    balancer = peers.Balancer(pod, SERVER__REQUEST_TIMEOUT=f"{TIMEOUT}s", **settings)
    quiet = asyncio.gather(
        *(unfinished_handshake(balancer.address, number) for number in range(SILENT_CLIENTS))
    )
    refused, served = [], 0
    while not quiet.done():
        refused += await peers.session_errors(balancer.address, context)
        served += 1
    results = await quiet
    times = [took for took, _ in results]
    say("  they send nothing, half a ClientHello, a whole one, or one byte by byte")
    say(f"  closed after {min(times):.2f} to {max(times):.2f} s")
    check(
        not refused,
        f"{served} clients are served meanwhile, one after the other, errors: "
        f"{refused[:5] or 'none'}",
    )
    check(
        all(ended for _, ended in results),
        f"{sum(ended for _, ended in results)} of {SILENT_CLIENTS} are closed",
    )
    check(max(times) < TIMEOUT + 2, "all are closed within 2 s after the time-out")
    check(min(times) > TIMEOUT - 0.5, "none is closed before the time-out")
    client = await peers.dial(balancer.address, context)
    check(
        await client.ended(2 * TIMEOUT + 2),
        "a client that finishes the handshake and then sends nothing is closed too",
    )
    client.close()
    say("  control: server.request_timeout = 1m")
    balancer.stop()
    balancer = peers.Balancer(pod, SERVER__REQUEST_TIMEOUT="1m", **settings)
    clients = [
        asyncio.create_task(unfinished_handshake(balancer.address, number)) for number in range(20)
    ]
    await asyncio.wait(clients, timeout=TIMEOUT + 1)
    connected = sum(not task.done() for task in clients)
    check(
        connected == len(clients),
        f"control: {connected} of {len(clients)} are still connected {TIMEOUT + 1} s later",
    )
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    balancer.stop()
