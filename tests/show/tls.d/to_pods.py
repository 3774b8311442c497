"""TLS to pods: which certificates are trusted, and how refusals are reported."""

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
# Error texts of rustls and webpki.
WRONG_NAME = r"invalid peer certificate: .*(not valid for name|NotValidForName)"
EXPIRED = r"invalid peer certificate: .*[eE]xpired"
UNKNOWN = r"invalid peer certificate: .*Unknown ?[iI]ssuer"
NO_TLS = r"received corrupt message of type InvalidContentType"
NO_CERTIFICATE = r"received fatal alert: .*(Certificate ?Required|Handshake ?Failure)"
SESSIONS = 30


@dataclass
class Outcome:
    """The results of a handshake, a plain request and the polls."""

    statuses: list
    body: bytes
    state: str
    reported: int
    error: str

    def is_served(self):
        return self.statuses == [101, 200] and (self.state, self.reported) == ("up", REPORT)

    def is_refused(self):
        is_explained = b"the pod could not be reached" in self.body
        return (
            self.statuses == [502, 502]
            and is_explained
            and self.state != "up"
            and self.reported is None
        )


@dataclass
class Case:
    """A pod with TLS settings, and a pattern of the error if the pod must be refused."""

    label: str
    pod: object
    settings: dict = field(default_factory=dict)
    refused: str = ""

    async def run(self):
        settings = {f"BALANCER__TLS_{key}": value for key, value in self.settings.items()}
        self.balancer = peers.Balancer(self.pod, **settings)
        address = self.balancer.address
        upgraded, _ = await peers.ask(address, scripted.handshake("/", HOST))
        plain, body = await peers.ask(address, scripted.request("/", HOST))
        poll_result = await eventually(
            lambda: (pod := self.poll_result()) and ("error" in pod or pod["state"] == "up") and pod
        )
        statuses = [head and head.status for head in (upgraded, plain)]
        reported = self.balancer.pods()[0].get("reported")
        outcome = Outcome(
            statuses, body, poll_result["state"], reported, poll_result.get("error", "")
        )
        line = (
            await self.balancer.find_log_line(warning_pattern(self.pod, self.refused))
            if self.refused
            else ""
        )
        report = (
            f"{reported} reported"
            if not self.refused
            else line and line.partition(" WARN ")[2].lstrip("] ")
        )
        say(
            COLUMNS.format(
                self.label,
                *map(str, statuses),
                outcome.state,
                report or outcome.error or "no error",
            )
        )
        if self.refused:
            polls = "the same" if re.search(self.refused, outcome.error) else outcome.error
            check(
                outcome.is_refused() and line,
                f"{self.label}: refused, and the reason is logged; error of the polls: {polls}",
            )
        else:
            check(outcome.is_served(), f"{self.label}: served and polled")
        return outcome

    def poll_result(self):
        return next(iter(self.balancer.metrics()["podMetrics"].values()))[0]

    def stop(self):
        self.balancer.stop()


def warning_pattern(pod, reason=""):
    """Returns a pattern for warnings about requests to a pod, but not about its polls."""
    port = pod.address.rpartition(":")[2]
    return re.compile(rf"WARN(?!.*: metrics unavailable ).*:{port}\b.*{reason}")


class Plain(scripted.Pod):
    """A pod without TLS. It keeps the first bytes of each connection."""

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


async def start_silent_pod():
    """Starts a pod that accepts connections and sends nothing."""
    pod = await scripted.Pod(lambda connection: connection.ended(scripted.IDLE)).start()
    pod.url = f"https://{pod.address}"
    return pod


async def run_all(cases):
    for case in cases:
        await case.run()
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
    unknown_client = other.issue("unknown-client", usage="clientAuth")
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
                Case("websockets with at most TLS 1.2", old, trust),
                ("localhost", "http/1.1", "TLSv1.2"),
            ),
            (Case("npm ws, an RSA certificate", node, trust), None),
        ]
    )
    node.stop()
    by_number.url = by_number.url.replace("https:", "wss:")
    await run_all([Case("with a wss:// URL", by_number, trust)])

    plain = await Plain().start()
    named = await pod(wrong_name)
    bad = [
        Case("a certificate for another name", named, trust, WRONG_NAME),
        Case("an expired certificate", await pod(expired), trust, EXPIRED),
        Case("an unknown authority", await pod(unknown), trust, UNKNOWN),
        Case("our authority, but only the system's are trusted", await pod(right), {}, UNKNOWN),
    ]
    await run_all([*bad, Case("no TLS", plain, trust, NO_TLS)])
    check_hello(plain)
    say("  control: with tls_verify = false, every check above that a pod is refused fails")
    for case in bad:
        unverified = Case(case.label, case.pod, {**case.settings, "VERIFY": "false"})
        outcome = await unverified.run()
        check(not outcome.is_refused(), f"control: {case.label}: the check for 502 fails")
        unverified.stop()
    await run_all([Case("no TLS, not verified", plain, {**trust, "VERIFY": "false"}, NO_TLS)])

    say("  tls_server_name")
    named.seen.clear()
    name_settings = {**trust, "SERVER_NAME": "pods.example.internal"}
    await run_all([Case("tls_server_name is the certificate's name", named, name_settings)])
    server_names = {request[1] for request in named.seen}
    check(
        server_names == {"pods.example.internal"},
        f"requests and polls send the server name {server_names}",
    )
    name_settings["SERVER_NAME"] = "else.example.internal"
    await run_all([Case("tls_server_name is another name", named, name_settings, WRONG_NAME)])

    say("  pods that require a client certificate")
    certificate_settings = {"CERT_FILE": client.certificate, "KEY_FILE": client.key}
    unknown_certificate = {"CERT_FILE": unknown_client.certificate, "KEY_FILE": unknown_client.key}
    unknown_authority_error = NO_CERTIFICATE.replace("Required", "Required|Unknown ?CA|Unknown ?Ca")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        name = f"TLS 1.{version - ssl.TLSVersion.TLSv1}"
        strict = await peers.ThreadedPod().start(
            peers.server_context(right, clients=root, newest=version)
        )
        await run_all(
            [
                Case(f"{name}, with a certificate", strict, {**trust, **certificate_settings}),
                Case(f"{name}, without a certificate", strict, trust, NO_CERTIFICATE),
                Case(
                    f"{name}, with a certificate of an unknown authority",
                    strict,
                    {**trust, **unknown_certificate},
                    unknown_authority_error,
                ),
            ]
        )

    say("  failing pods together with a good one")
    failing_pods = {
        "an expired certificate": bad[1].pod,
        "a certificate for another name": named,
        "no TLS": plain,
        "TLS 1.3 that requires a client certificate": strict,
        "no answer": await start_silent_pod(),
    }
    for label, failing in failing_pods.items():
        await show_failover(label, failing, await pod(right), root)


async def show_sessions(cases):
    for case, expected in cases:
        await case.run()
        wrong = await peers.failed_messages(case.balancer.address, case.pod)
        label = (
            f"text, binary, large messages, {peers.PIECES} fragments, close codes {peers.CODES} "
            "in both directions"
        )
        check(not wrong, f"{case.label}: {', '.join(wrong) + ' failed' if wrong else label}")
        if expected:
            seen = {request[1:] for request in case.pod.seen}
            check(seen == {expected}, f"the pod saw name, ALPN, version: {seen}")
            polls = sum(request[0] == "/metric" for request in case.pod.seen)
            check(polls > 0, f"{polls} of {len(case.pod.seen)} requests were polls")
        else:
            seen = {alpn for _, _, alpn in (await case.pod.report())["seen"]}
            check(seen == {"http/1.1"}, f"the pod saw ALPN {seen}, though it prefers h2")
        case.stop()


def check_hello(plain):
    """Checks the ClientHello of requests and polls."""
    offers = []
    for first in plain.first:
        offer = hello.read(first)
        if offer not in offers:
            offers.append(offer)
    say(f"  {len(plain.first)} ClientHello: {offers}")
    check(all(offer["alpn"] == ["http/1.1"] for offer in offers), "ALPN offers only http/1.1")
    check(
        all(sorted(offer["versions"]) == ["1.2", "1.3"] for offer in offers),
        "TLS 1.2 and 1.3 are offered",
    )


async def show_failover(label, failing, good, root):
    settings = {"BALANCER__TLS_CA_FILE": root.file, "BALANCER__CONNECT_TIMEOUT": "300ms"}
    balancer = peers.Balancer(failing, good, **settings)
    count = SESSIONS if label != "no answer" else 5
    refused = await peers.session_errors(balancer.address, count=count)
    heads = [
        (await peers.ask(balancer.address, scripted.request("/", HOST)))[0] for _ in range(count)
    ]
    refused += [head and head.status for head in heads if not head or head.status != 200]
    warnings = [line for line in balancer.lines if warning_pattern(failing).search(line)]
    check(not refused, f"{label}: {2 * count} clients, errors: {refused or 'none'}")
    check(warnings, f"{label}: the failing pod was tried, {len(warnings)} warnings")
    check(
        await balancer.reaches_states("ejected", "up"),
        "the failing pod is ejected, the other is up",
    )
    balancer.stop()
