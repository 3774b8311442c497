"""The TLS protocols, ciphers and options that the listener accepts, tested with OpenSSL.

As a control, OpenSSL's server gets the same tests with everything enabled that OpenSSL supports:
so a refusal is a decision of the listener.
"""

import asyncio
import concurrent.futures
import functools
import os
import re
import subprocess
import textwrap

import hello
import peers
from evidence import programs, scripted
from evidence.certificates import openssl
from evidence.checks import check, say
from listener import tls_settings

# The system's configuration may disable protocols and ciphers that are offered here.
ENVIRONMENT = {**os.environ, "OPENSSL_CONF": "/dev/null"}
# Loading the system's authorities would take most of the time.
NO_AUTHORITIES = ["-no-CAfile", "-no-CApath", "-no-CAstore"]
PSK_AND_SRP = ["-psk", "1234", "-srpuser", "joe", "-srppass", "pass:secret"]
ALL = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"
GOOD = re.compile(r"ECDHE-(ECDSA|RSA)-(AES(128|256)-GCM-SHA(256|384)|CHACHA20-POLY1305)")
SUITES = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
    "TLS_AES_128_CCM_8_SHA256",
]
EXTINCT = {  # ciphers that OpenSSL no longer supports
    "NULL-MD5, NULL-SHA": [0x0001, 0x0002],
    "EXPORT": [0x0003, 0x0006, 0x0008, 0x0011, 0x0014, 0x0017, 0x0019],
    "RC4": [0x0004, 0x0005, 0xC007, 0xC011],
    "DES, 3DES": [0x0009, 0x000A, 0x0016, 0xC008, 0xC012],
    "anonymous": [0x0018, 0x001A, 0x001B, 0x0034, 0xC015, 0xC018],
}
OLD = ["protocol version", "handshake failure"]  # alerts for an old version
COLUMNS = "  {:44} {:36} {:36} {}"


class OpenSslServer(programs.Program):
    """OpenSSL's server with both certificates and everything enabled."""

    def __init__(self, elliptic, rsa):
        certificates = ["-cert", elliptic.certificate, "-key", elliptic.key]
        certificates += ["-dcert", rsa.certificate, "-dkey", rsa.key]
        allowed = [
            "-cipher",
            ALL,
            "-ciphersuites",
            ":".join(SUITES),
            *PSK_AND_SRP[:2],
            "-client_renegotiation",
        ]
        # It answers every line with the reversed line.
        command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-rev", "-alpn", "h2,http/1.1"]
        super().__init__(*command, *certificates, *allowed, env={"OPENSSL_CONF": "/dev/null"})
        self.address = self.expect(r"^ACCEPT (127\.0\.0\.1:\d+)$").group(1)


class Answer:
    """The output of OpenSSL's client for one connection."""

    def __init__(self, address, *arguments, typed=()):
        command = ["openssl", "s_client", "-connect", address, *NO_AUTHORITIES, *arguments]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=0,
            env=ENVIRONMENT,
        ) as client:
            self.text = ""
            for text, expected in typed:
                client.stdin.write(text)
                while not re.search(expected, self.text) and (line := client.stdout.readline()):
                    self.text += line
            self.text += client.communicate(timeout=30)[0]
        self.code = client.returncode
        # With TLS 1.3, a cipher may be selected and the connection refused afterwards. "(NONE)" is
        # no cipher.
        self.cipher = self.find(r"Cipher is ([A-Z]\S+)") if self.code == 0 else None
        self.alert = self.find(r"(?:sslv3|tlsv1|tlsv13|ssl/tls) alert ([a-z ]+):")

    def find(self, pattern):
        found = re.search(pattern, self.text, re.M)
        return found and found.group(1)

    @property
    def is_supported(self):
        """Returns whether this OpenSSL supports the tested option."""
        return not re.search(
            r"no cipher match|no ciphers available|no protocols available", self.text
        )

    def __str__(self):
        protocol = self.find(r"(?:Protocol  *: |New, )(TLSv1\.3)") or self.find(
            r"^ *Protocol  *: (\S+)"
        )
        return (
            f"{protocol}, {self.cipher}"
            if self.cipher
            else f"refused: {self.alert or self.error()}"
        )

    def error(self):
        return self.find(r"error:[0-9A-F]+:[^:]*:[^:]*:([^:]+)") or self.text.strip()[-60:]


def run_tests(connect):
    """Yields for each test its name, the answer, and whether the listener must answer so."""
    for version in ("tls1", "tls1_1"):
        yield version, str(answer := connect(f"-{version}", "-cipher", ALL)), answer.alert in OLD
    for version in ("tls1_2", "tls1_3"):
        yield version, str(answer := connect(f"-{version}")), answer.cipher
    yield "tls1_3, no server name", str(answer := connect("-noservername")), answer.cipher

    two = connect("-tls1_2", "-comp")
    for label, pattern, wanted in (
        ("secure renegotiation", "Secure Renegotiation (IS.*)", "IS supported"),
        ("extended master secret", "Extended master secret: (.*)", "yes"),
        ("compression", "Compression: (.*)", "NONE"),
        ("temporary key", "(?:Server|Peer) Temp Key: (.*)", "X25519, 253 bits"),
    ):
        yield label, (description := str(two.find(pattern))), description == wanted
    # Send a request first, because some servers send no alert before their first answer.
    second = connect(
        "-tls1_2",
        typed=[("GET / HTTP/1.1\r\nHost: a\r\n\r\n", r"HTTP/1\.1 200|1\.1/PTTH"), ("R\n", "RENEG")],
    )
    _, _, renegotiation = second.text.partition("RENEGOTIATING")
    refused = "no renegotiation" in renegotiation or (
        second.code != 0 and "depth=" not in renegotiation
    )
    description = (
        f"refused: {second.error()}"
        if refused
        else "accepted"
        if "depth=" in renegotiation
        else second.text[-100:]
    )
    yield "renegotiation by the client", description, refused and "RENEGOTIATING" in second.text

    offers = {
        "http/1.1": "http/1.1",
        "h2,http/1.1": "http/1.1",
        "h2": None,
        "http/1.0,spdy/3": None,
    }
    for offered, wanted in offers.items():
        for version in ("tls1_2", "tls1_3"):
            answer = connect(f"-{version}", "-alpn", offered)
            chosen = answer.find(r"ALPN protocol: (.*)")
            right = (
                chosen == wanted
                if wanted
                else not answer.cipher and answer.alert == "no application protocol"
            )
            description = chosen or ("no ALPN" if answer.cipher else str(answer))
            yield f"ALPN {offered}, {version}", description, right
    plain = connect()
    yield (
        "no ALPN",
        "accepted" if plain.cipher else str(plain),
        plain.cipher and "No ALPN negotiated" in plain.text,
    )
    for suite in SUITES:
        answer = connect("-tls1_3", "-ciphersuites", suite)
        right = bool(answer.cipher) != ("CCM" in suite)
        yield suite, "accepted" if answer.cipher else str(answer), right


async def send_handmade(address, record):
    """Sends a handmade ClientHello. Describes the first record of the answer."""
    client = await scripted.dial(address)
    await client.send(record)
    raw = b""
    try:
        raw = await asyncio.wait_for(client.reader.readexactly(5), scripted.DEADLINE)
        raw += await asyncio.wait_for(
            client.reader.readexactly(int.from_bytes(raw[3:5], "big")), scripted.DEADLINE
        )
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        pass
    client.close()
    return hello.describe_answer(raw)


SSL2 = bytes.fromhex(
    "802e0100020015000000100100800200800300800400800500800600400700c0"
) + os.urandom(16)
HANDMADE = {  # the record, and a pattern for the beginning of the answer
    "SSLv2": (SSL2, "closed|alert"),
    "SSLv3": (hello.make(hello.SSL3), "alert (protocol_version|handshake_failure)"),
    "TLS 1.0": (hello.make(hello.TLS10), "alert (protocol_version|handshake_failure)"),
    "TLS 1.1": (hello.make(hello.TLS11), "alert (protocol_version|handshake_failure)"),
    "TLS 1.2": (hello.make(hello.TLS12), "TLS 1.2, .*compression 0"),
    "TLS 1.2, no compression or deflate": (
        hello.make(hello.TLS12, (1, 0)),
        "TLS 1.2, .*compression 0",
    ),
    "TLS 1.2, deflate only": (hello.make(hello.TLS12, (1,)), "alert|closed"),
    **{
        f"TLS 1.2, {name} only": (
            hello.make(hello.TLS12, ciphers=ciphers),
            "alert handshake_failure",
        )
        for name, ciphers in EXTINCT.items()
    },
}


def show_ciphers(addresses):
    """Tests every TLS 1.2 cipher of OpenSSL, one by one."""
    names = openssl("ciphers", ALL).strip().split(":")
    names = [name for name in names if not name.startswith("TLS_")]

    def connect(question):
        name, address = question
        return Answer(address, "-tls1_2", "-cipher", f"{name}:@SECLEVEL=0", *PSK_AND_SRP)

    questions = [(name, address) for name in names for address in addresses.values()]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = dict(zip(questions, threads.map(connect, questions)))
    accepted = {}
    for server, address in addresses.items():
        accepted[server] = [name for name in names if answers[name, address].cipher == name]
    one, two, openssl_server = accepted
    unsupported = [name for name in names if not answers[name, addresses[one]].is_supported]
    check(
        not unsupported,
        f"all {len(names)} ciphers of this OpenSSL can be offered: {unsupported or 'yes'}",
    )
    table = "  {:32} {:20} {:20} {}"
    say(table.format("accepted ciphers", *accepted))
    accepted_by_listener = sorted({*accepted[one], *accepted[two]})
    for name in accepted_by_listener:
        say(
            table.format(
                name, *("accepted" if name in them else "" for them in accepted.values())
            ).rstrip()
        )
    good = accepted_by_listener and all(GOOD.fullmatch(name) for name in accepted_by_listener)
    check(good, "every cipher that the listener accepts is ECDHE with AES-GCM or ChaCha20-Poly1305")
    refused = [name for name in names if name not in accepted_by_listener]
    accepted_by_openssl = [name for name in refused if name in accepted[openssl_server]]
    print_list(f"refused by the listener, accepted by {openssl_server}", accepted_by_openssl)
    print_list("refused by both", [name for name in refused if name not in accepted_by_openssl])
    check(
        len(accepted_by_openssl) > 50,
        f"control: {len(accepted_by_openssl)} of the {len(refused)} refused ones are accepted by "
        "OpenSSL's server",
    )
    weak = [
        name
        for name in accepted_by_openssl
        if re.search("NULL|^A(EC)?DH-|PSK|^AES|CBC|-SHA$", name)
    ]
    check(
        weak,
        f"control: {len(weak)} of them lack encryption, authentication, forward secrecy or AEAD",
    )


def print_list(label, names):
    layout = {"initial_indent": "  ", "subsequent_indent": "    ", "break_on_hyphens": False}
    say(textwrap.fill(f"{label}: {' '.join(names)}", 116, **layout))


async def show(folder, npm, root, other):
    say("protocols, ciphers and options of the listener")
    elliptic, rsa = (
        root.issue(f"offers-{key}", "DNS:localhost", "IP:127.0.0.1", key=key)
        for key in ("ec", "rsa")
    )
    pod = await peers.Pod().start()
    balancers = [scripted.Balancer(pod, **tls_settings(pair)) for pair in (elliptic, rsa)]
    openssl_server = OpenSslServer(elliptic, rsa)
    servers = dict(
        zip(
            ("ECDSA certificate", "RSA certificate", "openssl s_server"),
            (*balancers, openssl_server),
        )
    )
    addresses = {name: server.address for name, server in servers.items()}

    tables = {}
    for name, address in addresses.items():
        tables[name] = await asyncio.to_thread(
            lambda connect: list(run_tests(connect)), functools.partial(Answer, address)
        )
        tables[name] += [
            (
                f"handmade, {label}",
                description := await send_handmade(address, record),
                re.match(wanted, description),
            )
            for label, (record, wanted) in HANDMADE.items()
        ]
    say(COLUMNS.format("", *addresses))
    control_failures = 0
    for row in zip(*tables.values()):
        label = row[0][0]
        say(COLUMNS.format(label, *(description for _, description, _ in row)).rstrip())
        for name, (_, description, right) in list(zip(addresses, row))[:2]:
            if not right:
                check(False, f"{label}, {name}: {description}")
        control_failures += not row[2][2]
    wrong = sum(not right for name in list(addresses)[:2] for _, _, right in tables[name])
    total = len(tables["ECDSA certificate"])
    check(not wrong, f"{2 * total - wrong} of {2 * total} answers are right")
    check(
        control_failures >= 10,
        f"control: {control_failures} of {total} answers of openssl s_server would be wrong",
    )
    await asyncio.to_thread(show_ciphers, addresses)

    refused = await peers.session_errors(balancers[0].address, peers.client_context(root), 2)
    check(not refused, f"the next clients: {refused or 'served'}")
    for balancer in balancers:
        check("panic" not in balancer.output, "no panic in the log")
        balancer.stop()
    openssl_server.stop()
