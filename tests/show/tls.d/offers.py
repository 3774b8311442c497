"""What the listener agrees to, asked one by one with OpenSSL's client, and what OpenSSL's server
does beside it.

The server beside it takes whatever OpenSSL still can, so every refusal is the listener's own.
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
from listener import files

# A system's own configuration may forbid what is to be offered here.
ENVIRONMENT = {**os.environ, "OPENSSL_CONF": "/dev/null"}
# Reading the system's authorities would take most of the time.
UNTRUSTING = ["-no-CAfile", "-no-CApath", "-no-CAstore"]
SECRETS = ["-psk", "1234", "-srpuser", "joe", "-srppass", "pass:secret"]
ALL = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"
GOOD = re.compile(r"ECDHE-(ECDSA|RSA)-(AES(128|256)-GCM-SHA(256|384)|CHACHA20-POLY1305)")
SUITES = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
    "TLS_AES_128_CCM_8_SHA256",
]
EXTINCT = {  # OpenSSL itself no longer knows them
    "NULL-MD5, NULL-SHA": [0x0001, 0x0002],
    "EXPORT": [0x0003, 0x0006, 0x0008, 0x0011, 0x0014, 0x0017, 0x0019],
    "RC4": [0x0004, 0x0005, 0xC007, 0xC011],
    "DES, 3DES": [0x0009, 0x000A, 0x0016, 0xC008, 0xC012],
    "anonymous": [0x0018, 0x001A, 0x001B, 0x0034, 0xC015, 0xC018],
}
OLD = ["protocol version", "handshake failure"]  # what answers an old version
COLUMNS = "  {:44} {:36} {:36} {}"


class OpenSslServer(programs.Program):
    """OpenSSL's server with both certificates and everything allowed."""

    def __init__(self, elliptic, rsa):
        certificates = ["-cert", elliptic.certificate, "-key", elliptic.key]
        certificates += ["-dcert", rsa.certificate, "-dkey", rsa.key]
        allowed = [
            "-cipher",
            ALL,
            "-ciphersuites",
            ":".join(SUITES),
            *SECRETS[:2],
            "-client_renegotiation",
        ]
        # It answers every line by the line turned round.
        command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-rev", "-alpn", "h2,http/1.1"]
        super().__init__(*command, *certificates, *allowed, env={"OPENSSL_CONF": "/dev/null"})
        self.address = self.expect(r"^ACCEPT (127\.0\.0\.1:\d+)$").group(1)


class Answer:
    """What OpenSSL's client says of one connection."""

    def __init__(self, address, *arguments, typed=()):
        command = ["openssl", "s_client", "-connect", address, *UNTRUSTING, *arguments]
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
            for text, answered in typed:
                client.stdin.write(text)
                while not re.search(answered, self.text) and (line := client.stdout.readline()):
                    self.text += line
            self.text += client.communicate(timeout=30)[0]
        self.code = client.returncode
        # TLS 1.3 may agree on a cipher and refuse behind it; "(NONE)" is none.
        self.cipher = self.find(r"Cipher is ([A-Z]\S+)") if self.code == 0 else None
        self.alert = self.find(r"(?:sslv3|tlsv1|tlsv13|ssl/tls) alert ([a-z ]+):")

    def find(self, pattern):
        found = re.search(pattern, self.text, re.M)
        return found and found.group(1)

    @property
    def offered(self):
        """Whether this OpenSSL could ask at all."""
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


def rows(ask):
    """What is asked, the words of the answer, and whether they are as they should be of the
    listener.
    """
    for version in ("tls1", "tls1_1"):
        yield version, str(answer := ask(f"-{version}", "-cipher", ALL)), answer.alert in OLD
    for version in ("tls1_2", "tls1_3"):
        yield version, str(answer := ask(f"-{version}")), answer.cipher
    yield "tls1_3, no server name", str(answer := ask("-noservername")), answer.cipher

    two = ask("-tls1_2", "-comp")
    for what, pattern, wanted in (
        ("secure renegotiation", "Secure Renegotiation (IS.*)", "IS supported"),
        ("extended master secret", "Extended master secret: (.*)", "yes"),
        ("compression", "Compression: (.*)", "NONE"),
        ("temporary key", "(?:Server|Peer) Temp Key: (.*)", "X25519, 253 bits"),
    ):
        yield what, (told := str(two.find(pattern))), told == wanted
    # A request first, because some answer no alert before they have something to say.
    again = ask(
        "-tls1_2",
        typed=[("GET / HTTP/1.1\r\nHost: a\r\n\r\n", r"HTTP/1\.1 200|1\.1/PTTH"), ("R\n", "RENEG")],
    )
    _, _, behind = again.text.partition("RENEGOTIATING")
    refused = "no renegotiation" in behind or (again.code != 0 and "depth=" not in behind)
    told = (
        f"refused: {again.error()}"
        if refused
        else "accepted"
        if "depth=" in behind
        else again.text[-100:]
    )
    yield "renegotiation by the client", told, refused and "RENEGOTIATING" in again.text

    offers = {
        "http/1.1": "http/1.1",
        "h2,http/1.1": "http/1.1",
        "h2": None,
        "http/1.0,spdy/3": None,
    }
    for offered, wanted in offers.items():
        for version in ("tls1_2", "tls1_3"):
            answer = ask(f"-{version}", "-alpn", offered)
            chosen = answer.find(r"ALPN protocol: (.*)")
            right = (
                chosen == wanted
                if wanted
                else not answer.cipher and answer.alert == "no application protocol"
            )
            told = chosen or ("no ALPN" if answer.cipher else str(answer))
            yield f"ALPN {offered}, {version}", told, right
    plain = ask()
    yield (
        "no ALPN",
        "accepted" if plain.cipher else str(plain),
        plain.cipher and "No ALPN negotiated" in plain.text,
    )
    for suite in SUITES:
        answer = ask("-tls1_3", "-ciphersuites", suite)
        right = bool(answer.cipher) != ("CCM" in suite)
        yield suite, "accepted" if answer.cipher else str(answer), right


async def by_hand(address, record):
    """What answers a ClientHello made by hand; one record of it."""
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
    return hello.answered(raw)


SSL2 = bytes.fromhex(
    "802e0100020015000000100100800200800300800400800500800600400700c0"
) + os.urandom(16)
HANDMADE = {  # the record, and how the answer to it should begin
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
    """Every cipher that OpenSSL knows for TLS 1.2, one by one."""
    names = openssl("ciphers", ALL).strip().split(":")
    names = [name for name in names if not name.startswith("TLS_")]

    def ask(question):
        name, address = question
        return Answer(address, "-tls1_2", "-cipher", f"{name}:@SECLEVEL=0", *SECRETS)

    questions = [(name, address) for name in names for address in addresses.values()]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = dict(zip(questions, threads.map(ask, questions)))
    accepted = {}
    for who, address in addresses.items():
        accepted[who] = [name for name in names if answers[name, address].cipher == name]
    one, two, beside = accepted
    unoffered = [name for name in names if not answers[name, addresses[one]].offered]
    check(
        not unoffered, f"all {len(names)} ciphers of this OpenSSL are offered: {unoffered or 'yes'}"
    )
    table = "  {:32} {:20} {:20} {}"
    say(table.format("accepted of them", *accepted))
    ours = sorted({*accepted[one], *accepted[two]})
    for name in ours:
        say(
            table.format(
                name, *("accepted" if name in them else "" for them in accepted.values())
            ).rstrip()
        )
    good = ours and all(GOOD.fullmatch(name) for name in ours)
    check(good, "each that the listener accepts is ECDHE with AES-GCM or ChaCha20-Poly1305")
    refused = [name for name in names if name not in ours]
    both = [name for name in refused if name in accepted[beside]]
    listed(f"refused by the listener, accepted by {beside}", both)
    listed("refused by both", [name for name in refused if name not in both])
    check(
        len(both) > 50,
        f"control: {len(both)} of the {len(refused)} refused ones are accepted beside it",
    )
    weak = [name for name in both if re.search("NULL|^A(EC)?DH-|PSK|^AES|CBC|-SHA$", name)]
    check(
        weak,
        f"control: {len(weak)} of them without encryption, authentication, forward secrecy or AEAD",
    )


def listed(what, names):
    layout = {"initial_indent": "  ", "subsequent_indent": "    ", "break_on_hyphens": False}
    say(textwrap.fill(f"{what}: {' '.join(names)}", 116, **layout))


async def show(folder, npm, root, other):
    say("what the listener agrees to")
    elliptic, rsa = (
        root.issue(f"offers-{key}", "DNS:localhost", "IP:127.0.0.1", key=key)
        for key in ("ec", "rsa")
    )
    pod = await peers.Pod().start()
    balancers = [scripted.Balancer(pod, **files(pair)) for pair in (elliptic, rsa)]
    beside = OpenSslServer(elliptic, rsa)
    servers = dict(
        zip(("ECDSA certificate", "RSA certificate", "openssl s_server"), (*balancers, beside))
    )
    addresses = {name: server.address for name, server in servers.items()}

    tables = {}
    for name, address in addresses.items():
        tables[name] = await asyncio.to_thread(
            lambda ask: list(rows(ask)), functools.partial(Answer, address)
        )
        tables[name] += [
            (f"by hand, {what}", told := await by_hand(address, record), re.match(wanted, told))
            for what, (record, wanted) in HANDMADE.items()
        ]
    say(COLUMNS.format("", *addresses))
    lax = 0
    for row in zip(*tables.values()):
        what = row[0][0]
        say(COLUMNS.format(what, *(told for _, told, _ in row)).rstrip())
        for name, (_, told, right) in list(zip(addresses, row))[:2]:
            if not right:
                check(False, f"{what}, {name}: {told}")
        lax += not row[2][2]
    wrong = sum(not right for name in list(addresses)[:2] for _, _, right in tables[name])
    total = len(tables["ECDSA certificate"])
    check(not wrong, f"{2 * total - wrong} of {2 * total} answers are right")
    check(lax >= 10, f"control: {lax} of {total} answers of openssl s_server would not be")
    await asyncio.to_thread(show_ciphers, addresses)

    refused = await peers.echoes(balancers[0].address, peers.client_context(root), 2)
    check(not refused, f"the next clients: {refused or 'served'}")
    for balancer in balancers:
        check("panic" not in balancer.output, "no panic in the log")
        balancer.stop()
    beside.stop()
