"""Reloads of TLS certificates and authorities while sessions use TLS on both sides."""

import asyncio
import ssl

import twenty
from evidence import chats, files, programs, sessions
from evidence.certificates import Authority
from evidence.checks import check, say
from evidence.scripted import eventually

PODS = 2


async def show(count):
    count //= 10
    say(
        f"{count} chat sessions over TLS, to pods with https://; certificates and authorities are "
        "replaced"
    )
    environment = Environment(programs.scratch("reloads"))
    await environment.start()
    crowd = chats.Crowd()
    await crowd.open_sessions(environment.balancer.address, count, context=environment.context)
    before = environment.balancer.own()
    check(sum(before.values()) == count, f"the balancer's session counts: {before}")
    for part in (show_certificate, show_mismatched_key, show_authority):
        await part(environment)
        same = await eventually(lambda: environment.balancer.own() == before)
        check(
            same and crowd.is_undisturbed(),
            f"all {count} sessions stay, counts are {environment.balancer.own()}",
        )
    await crowd.all_echoed()
    await crowd.finish()
    await chats.stop(environment.balancer)
    for pod in environment.pods:
        pod.stop()


class Environment:
    """Two authorities, a balancer with a certificate of the first one, and pods with TLS."""

    def __init__(self, folder):
        self.first, self.second = (Authority(folder, name) for name in ("first", "second"))
        self.pairs = [
            self.first.issue(f"front-{number}", f"DNS:{sessions.HOST}") for number in (1, 2)
        ]
        self.context = ssl.create_default_context(cafile=self.first.file)
        self.pod_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.file, self.authorities = folder / "balancer.toml", folder / "authorities.pem"
        self.authorities.write_bytes(self.first.file.read_bytes())

    async def start(self):
        self.use_pod_authority(self.first)
        self.pods = [await Pod(f"pod-{number}").start(self.pod_context) for number in range(PODS)]
        self.write(self.pairs[0])
        self.balancer = chats.Balancer(self.file)

    def use_pod_authority(self, authority):
        """Gives pods a certificate of this authority."""
        pair = authority.issue(f"pod-of-{authority.folder.name}", "IP:127.0.0.1")
        self.pod_context.load_cert_chain(pair.certificate, pair.key)

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

    async def open_session(self):
        """Opens and ends a session.

        Returns the serial number of the balancer's certificate, and the status.
        """
        client = await chats.connect(self.balancer.address, chats.new_client(), self.context)
        serial = client.transport.get_extra_info("peercert")["serialNumber"]
        client.leave()
        await sessions.wait_until_ended([client])
        return serial, client.status

    async def reload_after(self, change, result, named):
        """Changes a file, waits for the reload, and checks its result and the log."""
        count_before = self.balancer.reloads()[result]
        change()
        reloaded_in_time = await eventually(
            lambda: self.balancer.reloads()[result] > count_before, sessions.PATIENCE
        )
        outcome = twenty.last_reload(self.balancer)
        check(
            reloaded_in_time and named in self.balancer.output,
            f"{outcome['result']}: {outcome['problems'] or named}",
        )


class Pod(sessions.Pod):
    """A pod that speaks TLS."""

    async def start(self, context):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: sessions.PodConnection(self), "127.0.0.1", 0, ssl=context
        )
        self.address = "{}:{}".format(*self.server.sockets[0].getsockname())
        self.url = f"https://{self.address}"
        return self


async def show_certificate(environment):
    say("  the configuration names another certificate for the listener")
    old, new = (pair.serial for pair in environment.pairs)
    serial, _ = await environment.open_session()
    check(serial == old, "before the reload, new clients get the old certificate")
    await environment.reload_after(
        lambda: environment.write(environment.pairs[1]), "applied", "server.tls_cert_file: "
    )
    serial, status = await environment.open_session()
    check(
        (serial, status) == (new, 101), f"new clients get the new certificate, and status {status}"
    )


async def show_mismatched_key(environment):
    say("  the configuration names a certificate that does not match its key")
    mismatched = type(environment.pairs[0])(
        environment.pairs[0].certificate, environment.pairs[1].key
    )
    await environment.reload_after(
        lambda: environment.write(mismatched),
        "invalid",
        "reload invalid, no setting changes: server.tls",
    )
    serial, status = await environment.open_session()
    check(
        (serial, status) == (environment.pairs[1].serial, 101),
        f"new clients get the previous certificate, and status {status}",
    )
    await environment.reload_after(
        lambda: environment.write(environment.pairs[1]),
        "unchanged",
        "reload: settings unchanged",
    )


async def show_authority(environment):
    say(
        "  tls_ca_file gets another authority; afterwards the pods get certificates of that "
        "authority"
    )
    _, status = await environment.open_session()
    check(status == 101, f"before the reload, new clients get {status}")

    def replace():
        files.replace_file(environment.authorities, environment.second.file.read_bytes())

    await environment.reload_after(replace, "applied", "service default: renewed TLS files")
    _, status = await environment.open_session()
    check(
        status == 502,
        f"new clients get {status}: the pods' certificates are not trusted, and their TLS "
        "sessions are not resumed",
    )
    environment.use_pod_authority(environment.second)
    _, status = await environment.open_session()
    check(status == 101, f"with the pods' new certificates, new clients get {status}")
