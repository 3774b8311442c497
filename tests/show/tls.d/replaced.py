"""Certificates that are replaced while sessions chat: nobody is dropped, newcomers see the new
one.
"""

import asyncio
import contextlib
import os
import re
import shutil
from pathlib import Path

import peers
from evidence import programs, scripted
from evidence.certificates import Authority, Pair, replace
from evidence.checks import check, say
from listener import files
from peers import HOST

SESSIONS = 200
PAUSE = 0.2
INTERVAL = "200ms"
MISMATCH = r"tls\.key.*KeyMismatch"
NONE = r"tls\.crt.*no (whole )?certificate"


class Crowd:
    """Sessions that send numbers and expect them back, each in its order."""

    def __init__(self, address, context):
        self.address, self.context = address, context
        self.over = asyncio.Event()
        self.inside = self.echoed = 0
        self.wrong = []

    async def start(self):
        self.tasks = [asyncio.create_task(self._session(number)) for number in range(SESSIONS)]
        await scripted.eventually(lambda: self.inside == SESSIONS or self.wrong, 60)

    async def _session(self, number):
        try:
            async with peers.websocket(self.address, context=self.context) as connection:
                self.inside += 1
                count = 0
                while not self.over.is_set():
                    await connection.send(f"{number}: {count}")
                    got = await asyncio.wait_for(connection.recv(), scripted.DEADLINE)
                    if got != f"{number}: {count}":
                        self.wrong.append(f"session {number}: {got} instead of {count}")
                    count += 1
                    self.echoed += 1
                    await asyncio.sleep(PAUSE)
            if connection.close_code != 1000:
                self.wrong.append(f"session {number} was closed with {connection.close_code}")
        except Exception as error:
            self.wrong.append(f"session {number}: {error!r}")

    async def turn(self):
        """Waits until everybody has had an echo."""
        wanted = self.echoed + SESSIONS
        return await scripted.eventually(lambda: self.echoed >= wanted)

    async def end(self):
        self.over.set()
        await asyncio.gather(*self.tasks)


class Watcher:
    """Connects again and again; `serials` has what it was shown, repetitions left out."""

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
            except Exception as error:
                self.failed.append(repr(error))
            self.count += 1
            await asyncio.sleep(0.05)

    async def more(self, count=3):
        """Waits for further connections."""
        wanted = self.count + count
        await scripted.eventually(lambda: self.count >= wanted)

    async def shown(self, serial):
        return await scripted.eventually(lambda: self.serials[-1:] == [serial])

    async def end(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def serial_of(address, context):
    """The serial number of the certificate that a new connection sees, verified."""
    client = await peers.dial(address, context, HOST)
    serial = client.writer.get_extra_info("peercert")["serialNumber"]
    client.close()
    return serial


class Mounted:
    """A folder as Kubernetes mounts secrets: the files are links through `..data`, which is
    swapped.
    """

    def __init__(self, folder, pair):
        self.folder = folder
        folder.mkdir()
        self.swap("..first", pair)
        self.pair = Pair(folder / "tls.crt", folder / "tls.key")
        for file in (self.pair.certificate, self.pair.key):
            file.symlink_to(Path("..data") / file.name)

    def swap(self, name, pair):
        data = self.folder / "..data"
        before = self.folder / os.readlink(data) if data.is_symlink() else None
        version = self.folder / name
        version.mkdir()
        shutil.copy(pair.certificate, version / "tls.crt")
        shutil.copy(pair.key, version / "tls.key")
        beside = self.folder / "..data_tmp"
        beside.symlink_to(name)
        os.replace(beside, data)
        if before:
            shutil.rmtree(before)


async def show(folder, npm, root, other):
    say(
        f"certificates replaced under {SESSIONS} chatting sessions, server.tls_reload_interval = "
        f"{INTERVAL}"
    )
    names = (f"DNS:{HOST}", "IP:127.0.0.1")
    pairs = [root.issue(f"generation-{number}", *names) for number in range(6)]
    pairs.append(Authority(folder, "authority between", root).issue("generation-6", *names))
    mounted = Mounted(folder / "mounted", pairs[0])
    live = mounted.pair
    context = peers.client_context(root)
    pod = programs.EchoPod("echo")
    balancer = peers.Balancer(pod, SERVER__TLS_RELOAD_INTERVAL=INTERVAL, **files(live))
    lazy = peers.Balancer(pod, SERVER__TLS_RELOAD_INTERVAL="1h", **files(live))
    crowd, watcher = Crowd(balancer.address, context), Watcher(balancer.address, context)
    await crowd.start()
    check(crowd.inside == SESSIONS, f"{crowd.inside} sessions")
    check(await watcher.shown(pairs[0].serial), f"newcomers see {pairs[0].serial}")

    async def taken_over(what, pair):
        right = await watcher.shown(pair.serial)
        check(
            right,
            f"{what}: newcomers see {pair.serial}"
            + ("" if right else f", not {watcher.serials[-1:]}"),
        )
        await crowd.turn()

    async def ignored(what, reason, before, change):
        """A change that is no good: warned about, and newcomers see what they saw."""
        seen = len(balancer.lines)
        change()
        line = await balancer.logs(
            re.compile(f"WARN.*{re.escape(str(mounted.folder))}/{reason}"), seen
        )
        told = (
            line.partition(" WARN ")[2].replace(str(folder), "…")
            if line
            else f"no {reason} in the log"
        )
        check(line, f"{what}: warned about, {told.lstrip('] ')}")
        await watcher.more()
        check(
            watcher.serials[-1:] == [before.serial], f"{what}: newcomers still see {before.serial}"
        )
        await crowd.turn()

    mounted.swap("..second", pairs[1])
    await taken_over("a swapped link, as Kubernetes does", pairs[1])
    serial = await serial_of(lazy.address, context)
    check(
        serial == pairs[0].serial,
        "control: with an interval of 1h newcomers still see the first one",
    )
    lazy.stop()
    mounted.swap("..third", pairs[2])
    await taken_over("another one", pairs[2])
    strange = Pair(pairs[3].certificate, pairs[4].key)
    await ignored(
        "a swap to a key of another certificate",
        MISMATCH,
        pairs[2],
        lambda: mounted.swap("..strange", strange),
    )
    mounted.swap("..fourth", pairs[3])
    await taken_over("a swap to the right key", pairs[3])

    replace(pairs[4], live.certificate, live.key)
    await taken_over("files renamed over the old ones", pairs[4])
    await ignored(
        "a key of another certificate",
        MISMATCH,
        pairs[4],
        lambda: replace(strange, live.certificate, live.key),
    )
    await ignored("garbage", NONE, pairs[4], lambda: live.certificate.write_bytes(os.urandom(1000)))
    await ignored(
        "a file that is gone", r"tls\.crt.*No such file", pairs[4], live.certificate.unlink
    )
    live.key.write_bytes(b"")
    await ignored(
        "an empty key",
        r"tls\.key.*no private key",
        pairs[4],
        lambda: shutil.copy(pairs[4].certificate, live.certificate),
    )
    replace(pairs[5], live.certificate, live.key)
    await taken_over("right again", pairs[5])

    # A certificate and the intermediate one, written in three pieces.
    whole = pairs[6].certificate.read_bytes()
    shutil.copy(pairs[6].key, live.key)
    with live.certificate.open("wb", buffering=0) as file:
        quarter = len(whole) // 4
        await ignored("half a certificate", NONE, pairs[5], lambda: file.write(whole[:quarter]))
        await ignored(
            "a whole one, half of the next",
            NONE,
            pairs[5],
            lambda: file.write(whole[quarter : 3 * quarter]),
        )
        file.write(whole[3 * quarter :])
    await taken_over("the rest of it", pairs[6])

    await watcher.end()
    held = pod.report()["held"]
    await crowd.end()
    order = [pairs[number].serial for number in (0, 1, 2, 3, 4, 5, 6)]
    check(
        watcher.serials == order,
        f"{watcher.count} newcomers saw seven serial numbers, one after the other",
    )
    check(not watcher.failed, f"errors of newcomers: {watcher.failed[:3] or 'none'}")
    check(held == SESSIONS, f"{held} of {SESSIONS} sessions until the end")
    harmed = crowd.wrong[:3] or "none"
    check(
        not crowd.wrong,
        f"{crowd.echoed} echoes, each in its order; sessions dropped or out of order: {harmed}",
    )
    check("panic" not in balancer.output, "no panic in the log")
    check(balancer.stop() == 0, "SIGTERM ends it with exit code 0")
    pod.stop()
