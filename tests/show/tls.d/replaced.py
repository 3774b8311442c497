"""Certificates are replaced while sessions are open. New clients get the new certificate."""

import asyncio
import contextlib
import os
import re
import shutil

import peers
from evidence import files, programs, scripted
from evidence.certificates import Authority, Pair, replace
from evidence.checks import check, say
from listener import tls_settings
from peers import HOST

SESSIONS = 200
PAUSE = 0.2
INTERVAL = "200ms"
MISMATCH = r"tls\.key.*KeyMismatch"
NONE = r"tls\.crt.*no (complete )?certificate"


class Crowd:
    """Sessions that send numbers and check that the echoes arrive in order."""

    def __init__(self, address, context):
        self.address, self.context = address, context
        self.finished = asyncio.Event()
        self.open_count = self.echoed = 0
        self.wrong = []

    async def start(self):
        self.tasks = [asyncio.create_task(self._session(number)) for number in range(SESSIONS)]
        await scripted.eventually(lambda: self.open_count == SESSIONS or self.wrong, 60)

    async def _session(self, number):
        try:
            async with peers.websocket(self.address, context=self.context) as connection:
                self.open_count += 1
                count = 0
                while not self.finished.is_set():
                    await connection.send(f"{number}: {count}")
                    got = await asyncio.wait_for(connection.recv(), scripted.DEADLINE)
                    if got != f"{number}: {count}":
                        self.wrong.append(f"session {number}: received {got} instead of {count}")
                    count += 1
                    self.echoed += 1
                    await asyncio.sleep(PAUSE)
            if connection.close_code != 1000:
                self.wrong.append(f"session {number} was closed with {connection.close_code}")
        except Exception as error:  # any error means that the session failed
            self.wrong.append(f"session {number}: {error!r}")

    async def all_echoed(self):
        """Waits until there were as many new echoes as sessions."""
        wanted = self.echoed + SESSIONS
        return await scripted.eventually(lambda: self.echoed >= wanted)

    async def end(self):
        self.finished.set()
        await asyncio.gather(*self.tasks)


class Watcher:
    """Connects repeatedly.

    `serials` are the serial numbers of the received certificates, without repetitions.
    """

    def __init__(self, address, context):
        self.address, self.context = address, context
        self.serials, self.failed, self.count = [], [], 0
        self.task = asyncio.create_task(self._watch())

    async def _watch(self):
        while True:
            try:
                serial = await serial_of(self.address, self.context)
                if serial not in self.serials[-1:]:
                    self.serials.append(serial)
            except Exception as error:  # any error means that the session failed
                self.failed.append(repr(error))
            self.count += 1
            await asyncio.sleep(0.05)

    async def wait_for(self, count=3):
        """Waits for `count` more connections."""
        wanted = self.count + count
        await scripted.eventually(lambda: self.count >= wanted)

    async def is_shown(self, serial):
        return await scripted.eventually(lambda: self.serials[-1:] == [serial])

    async def end(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def serial_of(address, context):
    """Opens a verified connection. Returns the serial number of the certificate."""
    client = await peers.dial(address, context, HOST)
    serial = client.writer.get_extra_info("peercert")["serialNumber"]
    client.close()
    return serial


class Mounted(files.MountedFolder):
    """A mounted folder with a certificate and its key."""

    def __init__(self, folder, pair):
        folder.mkdir()
        super().__init__(folder)
        self.pair = Pair(folder / "tls.crt", folder / "tls.key")
        self.publish_pair(pair)
        for file in (self.pair.certificate, self.pair.key):
            self.link(file.name)

    def publish_pair(self, pair):
        certificate, key = self.pair.certificate.name, self.pair.key.name
        self.publish({certificate: pair.certificate.read_bytes(), key: pair.key.read_bytes()})


async def show(folder, npm, root, other):
    say(
        f"certificates are replaced while {SESSIONS} sessions are open, "
        f"server.tls_reload_interval = {INTERVAL}"
    )
    names = (f"DNS:{HOST}", "IP:127.0.0.1")
    pairs = [root.issue(f"generation-{number}", *names) for number in range(6)]
    pairs.append(Authority(folder, "authority between", root).issue("generation-6", *names))
    mounted = Mounted(folder / "mounted", pairs[0])
    live = mounted.pair
    context = peers.client_context(root)
    pod = programs.EchoPod("echo")
    balancer = peers.Balancer(pod, SERVER__TLS_RELOAD_INTERVAL=INTERVAL, **tls_settings(live))
    slow_reloader = peers.Balancer(pod, SERVER__TLS_RELOAD_INTERVAL="1h", **tls_settings(live))
    crowd, watcher = Crowd(balancer.address, context), Watcher(balancer.address, context)
    await crowd.start()
    check(crowd.open_count == SESSIONS, f"{crowd.open_count} sessions")
    check(await watcher.is_shown(pairs[0].serial), f"new clients get {pairs[0].serial}")

    async def check_replaced(what, pair):
        right = await watcher.is_shown(pair.serial)
        check(
            right,
            f"{what}: new clients get {pair.serial}"
            + ("" if right else f", not {watcher.serials[-1:]}"),
        )
        await crowd.all_echoed()

    async def check_ignored(what, reason, before, change):
        """Makes an invalid change: the log warns, and new clients get the previous certificate."""
        seen = len(balancer.lines)
        change()
        line = await balancer.find_log_line(
            re.compile(f"WARN.*{re.escape(str(mounted.folder))}/{reason}"), seen
        )
        warning = (
            line.partition(" WARN ")[2].replace(str(folder), "…")
            if line
            else f"no {reason} in the log"
        )
        check(line, f"{what}: the log warns, {warning.lstrip('] ')}")
        await watcher.wait_for()
        check(
            watcher.serials[-1:] == [before.serial],
            f"{what}: new clients still get {before.serial}",
        )
        await crowd.all_echoed()

    mounted.publish_pair(pairs[1])
    await check_replaced("a replaced link, as Kubernetes does", pairs[1])
    serial = await serial_of(slow_reloader.address, context)
    check(
        serial == pairs[0].serial,
        "control: with an interval of 1h new clients still get the first certificate",
    )
    slow_reloader.stop()
    mounted.publish_pair(pairs[2])
    await check_replaced("a second replacement", pairs[2])
    mismatched = Pair(pairs[3].certificate, pairs[4].key)
    await check_ignored(
        "the link leads to a key of another certificate",
        MISMATCH,
        pairs[2],
        lambda: mounted.publish_pair(mismatched),
    )
    mounted.publish_pair(pairs[3])
    await check_replaced("the link leads to the right key", pairs[3])

    replace(pairs[4], live.certificate, live.key)
    await check_replaced("files replaced by renames", pairs[4])
    await check_ignored(
        "a key of another certificate",
        MISMATCH,
        pairs[4],
        lambda: replace(mismatched, live.certificate, live.key),
    )
    await check_ignored(
        "random bytes", NONE, pairs[4], lambda: live.certificate.write_bytes(os.urandom(1000))
    )
    await check_ignored(
        "a deleted file", r"tls\.crt.*No such file", pairs[4], live.certificate.unlink
    )
    live.key.write_bytes(b"")
    await check_ignored(
        "an empty key",
        r"tls\.key.*no private key",
        pairs[4],
        lambda: shutil.copy(pairs[4].certificate, live.certificate),
    )
    replace(pairs[5], live.certificate, live.key)
    await check_replaced("valid files again", pairs[5])

    # A certificate and its intermediate, written in three pieces.
    whole = pairs[6].certificate.read_bytes()
    shutil.copy(pairs[6].key, live.key)
    with live.certificate.open("wb", buffering=0) as file:
        quarter = len(whole) // 4
        await check_ignored(
            "half a certificate", NONE, pairs[5], lambda: file.write(whole[:quarter])
        )
        await check_ignored(
            "a whole certificate, half of the next",
            NONE,
            pairs[5],
            lambda: file.write(whole[quarter : 3 * quarter]),
        )
        file.write(whole[3 * quarter :])
    await check_replaced("the rest of the file", pairs[6])

    await watcher.end()
    open_sessions = pod.report()["held"]
    await crowd.end()
    order = [pairs[number].serial for number in (0, 1, 2, 3, 4, 5, 6)]
    check(
        watcher.serials == order,
        f"{watcher.count} new clients got the seven certificates, one after the other",
    )
    check(not watcher.failed, f"errors of new clients: {watcher.failed[:3] or 'none'}")
    check(open_sessions == SESSIONS, f"{open_sessions} of {SESSIONS} sessions are open at the end")
    errors = crowd.wrong[:3] or "none"
    check(
        not crowd.wrong,
        f"{crowd.echoed} echoes in order; sessions dropped or out of order: {errors}",
    )
    check("panic" not in balancer.output, "no panic in the log")
    check(balancer.stop() == 0, "the balancer stops with exit code 0 after SIGTERM")
    pod.stop()
