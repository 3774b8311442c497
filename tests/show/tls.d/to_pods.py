"""TLS from the balancer to its pods: who is trusted, who is not, and who notices."""

import re
import ssl
from dataclasses import dataclass, field

import hello
import peers
from evidence import scripted
from evidence.checks import check, say
from evidence.scripted import eventually
from peers import HOST, REPORT

COLUMNS = "  {:48} {:>9} {:>5}  {:8} {}"
# The words of rustls, and of webpki in it.
WRONG_NAME = r"invalid peer certificate: .*(not valid for name|NotValidForName)"
EXPIRED = r"invalid peer certificate: .*[eE]xpired"
UNKNOWN = r"invalid peer certificate: .*Unknown ?[iI]ssuer"
NO_TLS = r"received corrupt message of type InvalidContentType"
NO_CERTIFICATE = r"received fatal alert: .*(Certificate ?Required|Handshake ?Failure)"
SESSIONS = 30


@dataclass
class Outcome:
    """What came of a handshake, a plain request and the metric polls."""

    statuses: list
    body: bytes
    state: str
    reported: int
    error: str

    def served(self):
        return self.statuses == [101, 200] and (self.state, self.reported) == ("up", REPORT)

    def refused(self):
        told = b"the pod could not be reached" in self.body
        return self.statuses == [502, 502] and told and self.state != "up" and self.reported is None


@dataclass
class Case:
    """A pod, how it is asked, and the reason it is refused for, if it is."""

    what: str
    pod: object
    settings: dict = field(default_factory=dict)
    refused: str = ""

    async def play(self):
        settings = {f"BALANCER__TLS_{key}": value for key, value in self.settings.items()}
        self.balancer = peers.Balancer(self.pod, **settings)
        address = self.balancer.address
        upgraded, _ = await peers.ask(address, scripted.handshake("/", HOST))
        plain, body = await peers.ask(address, scripted.request("/", HOST))
        polled = await eventually(
            lambda: (pod := self.polled()) and ("error" in pod or pod["state"] == "up") and pod
        )
        statuses = [head and head.status for head in (upgraded, plain)]
        reported = self.balancer.pods()[0].get("reported")
        outcome = Outcome(statuses, body, polled["state"], reported, polled.get("error", ""))
        line = await self.balancer.logs(reason_for(self.pod, self.refused)) if self.refused else ""
        told = (
            f"{reported} reported"
            if not self.refused
            else line and line.partition(" WARN ")[2].lstrip("] ")
        )
        say(
            COLUMNS.format(
                self.what, *map(str, statuses), outcome.state, told or outcome.error or "no reason"
            )
        )
        if self.refused:
            polls = "the same" if re.search(self.refused, outcome.error) else outcome.error
            check(
                outcome.refused() and line,
                f"{self.what}: refused, and the log tells; polls say {polls}",
            )
        else:
            check(outcome.served(), f"{self.what}: served and polled")
        return outcome

    def polled(self):
        return next(iter(self.balancer.metrics()["podMetrics"].values()))[0]

    def stop(self):
        self.balancer.stop()


def reason_for(pod, reason=""):
    """Warnings about a pod that a request met; what polls say is another matter."""
    port = pod.address.rpartition(":")[2]
    return re.compile(rf"WARN(?!.* its count is ).*:{port}\b.*{reason}")


class Plain(scripted.Pod):
    """A pod that speaks no TLS; it keeps what came first on each connection."""

    def __init__(self):
        super().__init__(self._answer)
        self.first = []

    async def start(self):
        await super().start()
        self.url = f"https://localhost:{self.address.rpartition(':')[2]}"
        return self

    async def _answer(self, connection):
        self.first.append(await connection.some())
        await connection.send(
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )


async def silent_pod():
    """A pod that takes connections and says nothing."""
    pod = await scripted.Pod(lambda connection: connection.ended(scripted.IDLE)).start()
    pod.url = f"https://{pod.address}"
    return pod


async def play_all(cases):
    for case in cases:
        await case.play()
        case.stop()


async def show(folder, npm, root, other):
    say("TLS to pods")
    say(COLUMNS.format("", "handshake", "plain", "state", ""))
    right = root.issue("right", "DNS:localhost", "IP:127.0.0.1")
    rsa = root.issue("rsa", "IP:127.0.0.1", key="rsa")
    wrong_name = root.issue("wrong-name", "DNS:pods.example.internal")
    expired = root.issue("expired", "DNS:localhost", expired=True)
    unknown = other.issue("unknown", "DNS:localhost")
    client = root.issue("client", usage="clientAuth")
    stranger = other.issue("stranger", usage="clientAuth")
    trust = {"CA_FILE": root.file}

    async def pod(pair, host="localhost", **more):
        return await peers.Pod(host).start(peers.server_context(pair, **more))

    by_number, by_name = await pod(right, "127.0.0.1"), await pod(right)
    old = await pod(right, newest=ssl.TLSVersion.TLSv1_2)
    node = peers.NodePod(npm, rsa, root)
    await show_sessions(
        [
            (Case("websockets, by address", by_number, trust), (None, "http/1.1", "TLSv1.3")),
            (Case("websockets, by name", by_name, trust), ("localhost", "http/1.1", "TLSv1.3")),
            (
                Case("websockets that knows TLS 1.2 at most", old, trust),
                ("localhost", "http/1.1", "TLSv1.2"),
            ),
            (Case("npm ws, an RSA certificate", node, trust), None),
        ]
    )
    node.stop()
    by_number.url = by_number.url.replace("https:", "wss:")
    await play_all([Case("as wss://", by_number, trust)])

    plain = await Plain().start()
    named = await pod(wrong_name)
    bad = [
        Case("a certificate for another name", named, trust, WRONG_NAME),
        Case("an expired certificate", await pod(expired), trust, EXPIRED),
        Case("an unknown authority", await pod(unknown), trust, UNKNOWN),
        Case("our authority, but only the system's are known", await pod(right), {}, UNKNOWN),
    ]
    await play_all([*bad, Case("no TLS", plain, trust, NO_TLS)])
    check_hello(plain)
    say("  control: tls_verify = false, and every check above that a pod is refused fails")
    for case in bad:
        unverified = Case(case.what, case.pod, {**case.settings, "VERIFY": "false"})
        outcome = await unverified.play()
        check(not outcome.refused(), f"control: {case.what}: the check for 502 fails")
        unverified.stop()
    await play_all([Case("no TLS, not verified", plain, {**trust, "VERIFY": "false"}, NO_TLS)])

    say("  tls_server_name")
    named.seen.clear()
    asking = {**trust, "SERVER_NAME": "pods.example.internal"}
    await play_all([Case("the certificate's name is asked for", named, asking)])
    asked = {request[1] for request in named.seen}
    check(
        asked == {"pods.example.internal"}, f"the pod is asked for {asked}, by requests and polls"
    )
    asking["SERVER_NAME"] = "else.example.internal"
    await play_all([Case("another name is asked for", named, asking, WRONG_NAME)])

    say("  pods that want a client certificate")
    shown = {"CERT_FILE": client.certificate, "KEY_FILE": client.key}
    strange = {"CERT_FILE": stranger.certificate, "KEY_FILE": stranger.key}
    foreign = NO_CERTIFICATE.replace("Required", "Required|Unknown ?CA|Unknown ?Ca")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        name = f"TLS 1.{version - ssl.TLSVersion.TLSv1}"
        strict = await peers.ThreadedPod().start(
            peers.server_context(right, clients=root, newest=version)
        )
        await play_all(
            [
                Case(f"{name}, with one", strict, {**trust, **shown}),
                Case(f"{name}, without", strict, trust, NO_CERTIFICATE),
                Case(
                    f"{name}, with one of an unknown authority",
                    strict,
                    {**trust, **strange},
                    foreign,
                ),
            ]
        )

    say("  failing pods beside a good one")
    neighbours = {
        "an expired certificate": bad[1].pod,
        "a certificate for another name": named,
        "no TLS": plain,
        "TLS 1.3 that wants a client certificate": strict,
        "silence": await silent_pod(),
    }
    for what, failing in neighbours.items():
        await show_failover(what, failing, await pod(right), root)


async def show_sessions(cases):
    for case, asked in cases:
        await case.play()
        wrong = await peers.talk(case.balancer.address, case.pod)
        what = (
            f"text, binary, large ones, {peers.PIECES} fragments, close codes {peers.CODES} "
            "both ways"
        )
        check(not wrong, f"{case.what}: {', '.join(wrong) + ' went wrong' if wrong else what}")
        if asked:
            seen = {request[1:] for request in case.pod.seen}
            check(seen == {asked}, f"the pod saw name, ALPN, version: {seen}")
            polls = sum(request[0] == "/metric" for request in case.pod.seen)
            check(polls > 0, f"{polls} of {len(case.pod.seen)} requests were polls")
        else:
            seen = {alpn for _, _, alpn in (await case.pod.report())["seen"]}
            check(seen == {"http/1.1"}, f"the pod saw ALPN {seen}, though it would rather have h2")
        case.stop()


def check_hello(plain):
    """What is offered to pods, requests and polls alike."""
    offers = []
    for first in plain.first:
        offer = hello.read(first)
        if offer not in offers:
            offers.append(offer)
    say(f"  {len(plain.first)} ClientHello: {offers}")
    check(
        all(offer["alpn"] == ["http/1.1"] for offer in offers),
        "ALPN offers http/1.1 and nothing else",
    )
    check(
        all(sorted(offer["versions"]) == ["1.2", "1.3"] for offer in offers),
        "TLS 1.2 and 1.3 are offered",
    )


async def show_failover(what, failing, good, root):
    settings = {"BALANCER__TLS_CA_FILE": root.file, "BALANCER__CONNECT_TIMEOUT": "300ms"}
    balancer = peers.Balancer(failing, good, **settings)
    count = SESSIONS if what != "silence" else 5
    refused = await peers.echoes(balancer.address, count=count)
    heads = [
        (await peers.ask(balancer.address, scripted.request("/", HOST)))[0] for _ in range(count)
    ]
    refused += [head and head.status for head in heads if not head or head.status != 200]
    tries = [line for line in balancer.lines if reason_for(failing).search(line)]
    check(not refused, f"{what}: {2 * count} clients, errors seen by them: {refused or 'none'}")
    check(tries, f"{what}: it was tried, {len(tries)} warnings")
    check(await balancer.up("ejected", "up"), "the failing one is ejected, the other up")
    balancer.stop()
