"""Certificates and authorities that are reloaded under sessions over TLS on both sides."""

import asyncio
import os
import ssl

import twenty
from evidence import chats, programs, sessions
from evidence.certificates import Authority
from evidence.checks import check, say
from evidence.scripted import eventually

PODS = 2


async def show(count):
    count //= 10
    say(
        f"{count} sessions chat over TLS, with pods of https://: certificates and authorities "
        "change"
    )
    ground = Ground(programs.scratch("reloads"))
    await ground.start()
    crowd = chats.Crowd()
    await crowd.join(ground.balancer.address, count, context=ground.context)
    before = ground.balancer.own()
    check(sum(before.values()) == count, f"own counts: {before}")
    for part in (show_certificate, show_mistake, show_authority):
        await part(ground)
        same = await eventually(lambda: ground.balancer.own() == before)
        check(same and crowd.stay(), f"the {count} stay, own counts are {ground.balancer.own()}")
    await crowd.turn()
    await crowd.end()
    await chats.stop(ground.balancer)
    for pod in ground.pods:
        pod.stop()


class Ground:
    """Two authorities, a balancer whose certificate is of the first, and pods that show it
    theirs.
    """

    def __init__(self, folder):
        self.first, self.second = (Authority(folder, name) for name in ("first", "second"))
        self.pairs = [
            self.first.issue(f"front-{number}", f"DNS:{sessions.HOST}") for number in (1, 2)
        ]
        self.context = ssl.create_default_context(cafile=self.first.file)
        self.at_pods = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.file, self.authorities = folder / "balancer.toml", folder / "authorities.pem"
        self.authorities.write_bytes(self.first.file.read_bytes())

    async def start(self):
        self.show_at_pods(self.first)
        self.pods = [await Pod(f"pod-{number}").start(self.at_pods) for number in range(PODS)]
        self.write(self.pairs[0])
        self.balancer = chats.Balancer(self.file)

    def show_at_pods(self, authority):
        """Pods have a certificate of this authority from now on."""
        pair = authority.issue(f"pod-of-{authority.folder.name}", "IP:127.0.0.1")
        self.at_pods.load_cert_chain(pair.certificate, pair.key)

    def write(self, pair):
        self.file.write_text(
            chats.toml(
                {
                    "server": {
                        "listen": "127.0.0.1:0",
                        "drain_delay": "0s",
                        "drain_time": "0s",
                        "shutdown_timeout": "1s",
                        "tls_cert_file": str(pair.certificate),
                        "tls_key_file": str(pair.key),
                    },
                    "admin": {"listen": "127.0.0.1:0"},
                    "balancer": {
                        "metric_path": "none",
                        "eject_after": 0,
                        "tls_ca_file": str(self.authorities),
                    },
                    "services.default": {"backends": [pod.url for pod in self.pods]},
                }
            )
        )

    async def visit(self):
        """Serial number of the certificate that a newcomer is shown, and its status."""
        client = await chats.enter(self.balancer.address, chats.caller(), self.context)
        shown = client.transport.get_extra_info("peercert")["serialNumber"]
        client.leave()
        await sessions.all_ended([client])
        return shown, client.status

    async def reloaded(self, change, result, named):
        """Changes something and waits for the reload that the change of a file leads to."""
        counted = self.balancer.reloads()[result]
        change()
        came = await eventually(lambda: self.balancer.reloads()[result] > counted, sessions.LATE)
        told = twenty.told(self.balancer)
        check(
            came and named in self.balancer.output, f"{told['result']}: {told['problems'] or named}"
        )


class Pod(sessions.Pod):
    """One that speaks TLS."""

    async def start(self, context):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: sessions.AtPod(self), "127.0.0.1", 0, ssl=context
        )
        self.address = "{}:{}".format(*self.server.sockets[0].getsockname())
        self.url = f"https://{self.address}"
        return self


async def show_certificate(ground):
    say("  the file names another certificate for the listener")
    old, new = (pair.serial for pair in ground.pairs)
    shown, _ = await ground.visit()
    check(shown == old, "until then newcomers are shown the old one")
    await ground.reloaded(
        lambda: ground.write(ground.pairs[1]), "applied", "server.tls_cert_file: "
    )
    shown, status = await ground.visit()
    check((shown, status) == (new, 101), f"newcomers are shown the new one, and get {status}")


async def show_mistake(ground):
    say("  the file names a certificate that is not of its key")
    mixed = type(ground.pairs[0])(ground.pairs[0].certificate, ground.pairs[1].key)
    await ground.reloaded(
        lambda: ground.write(mixed), "invalid", "reload invalid, nothing changes: server.tls"
    )
    shown, status = await ground.visit()
    check(
        (shown, status) == (ground.pairs[1].serial, 101),
        f"newcomers are shown the one before, and get {status}",
    )
    await ground.reloaded(
        lambda: ground.write(ground.pairs[1]), "unchanged", "the settings are the same as before"
    )


async def show_authority(ground):
    say("  tls_ca_file holds another authority, and then the pods' certificates are of that one")
    _, status = await ground.visit()
    check(status == 101, f"until then newcomers get {status}")

    def replace():
        beside = ground.authorities.with_name("authorities.new")
        beside.write_bytes(ground.second.file.read_bytes())
        os.replace(beside, ground.authorities)

    await ground.reloaded(replace, "applied", "service default: renewed TLS files")
    _, status = await ground.visit()
    check(
        status == 502,
        f"newcomers get {status}: nobody knows the pods, whose TLS sessions are not resumed either",
    )
    ground.show_at_pods(ground.second)
    _, status = await ground.visit()
    check(status == 101, f"newcomers get {status}")
