"""`wsbalancer check` on invalid certificates and keys: it names setting, file and error."""

import os
import re
import subprocess

from evidence import programs
from evidence.certificates import openssl
from evidence.checks import check, say

SERVICE = "https://127.0.0.1:3001"
USAGE = 64
# Patterns for the errors: one of the words must occur.
ABSENT = "No such file|not found"
MISFIT = "match|fit|belong|go with"
ALONE = "no file|both|without|missing|need|required|together|alone"
UNREADABLE = "certificate|PEM|base64"


def toml(values):
    """Returns a configuration with these settings and one service, named `chat` if needed."""
    sections = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(f'{name} = "{value}"')
    if "services.chat" in sections:
        sections["services.chat"].append(f'backends = ["{SERVICE}"]')
        lines = []
    else:
        lines = [f'services = ["{SERVICE}"]']
    for section, settings in sections.items():
        lines += [f"[{section}]", *settings]
    return "\n".join([*lines, ""])


def run(command, values, folder):
    """Runs a command with these settings. Returns its exit code and output."""
    file = folder / "settings.toml"
    file.write_text(toml(values))
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("WSBALANCER")
    }
    result = subprocess.run(
        [programs.BINARY, command, "--config", file],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return result.returncode, result.stdout + result.stderr


async def show(folder, npm, root, other):
    say("`wsbalancer check` on invalid certificates and keys")
    good, second = (
        root.issue("good", "DNS:localhost"),
        root.issue("second", "DNS:localhost", key="rsa"),
    )
    for name, content in {
        "garbage.pem": "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n",
        "noise.pem": os.urandom(500),
        "garbled.pem": "-----BEGIN CERTIFICATE-----\naGVsbG8gd29ybGQ=\n-----END CERTIFICATE-----\n",
        "broken.key": "-----BEGIN PRIVATE KEY-----\naGVsbG8gd29ybGQ=\n-----END PRIVATE KEY-----\n",
        "empty.pem": "",
    }.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    locked = folder / "locked.key"
    openssl("pkey", "-in", good.key, "-aes128", "-passout", "pass:secret", "-out", locked)
    missing = folder / "missing.pem"

    def pair(section, certificate=good.certificate, key=good.key):
        values = {f"{section}.tls_cert_file": certificate, f"{section}.tls_key_file": key}
        return {name: value for name, value in values.items() if value}

    rows = []  # description, settings, expected configuration key, file, and pattern of the error
    for section in ("server", "balancer", "services.chat"):
        certificate, key = f"{section}.tls_cert_file", f"{section}.tls_key_file"
        rows += [
            ("a missing certificate", pair(section, missing), certificate, missing, ABSENT),
            ("a missing key", pair(section, key=missing), key, missing, ABSENT),
            (
                "a key of another certificate",
                pair(section, key=second.key),
                key,
                second.key,
                MISFIT,
            ),
            ("a certificate alone", pair(section, key=None), key, "", ALONE),
            ("a key alone", pair(section, None), certificate, "", ALONE),
        ]
    certificate, key = "server.tls_cert_file", "server.tls_key_file"
    for label in ("garbage.pem", "noise.pem", "garbled.pem", "empty.pem"):
        file = folder / label
        rows.append(
            (f"{label} as certificate", pair("server", file), certificate, file, UNREADABLE)
        )
    rows += [
        ("a key as certificate", pair("server", good.key), certificate, good.key, "certificate"),
        (
            "a folder as certificate",
            pair("server", folder),
            certificate,
            folder,
            "directory|folder|not a file",
        ),
    ]
    keys = {
        "broken.key": folder / "broken.key",
        "empty.pem": folder / "empty.pem",
        "an encrypted key": locked,
        "a certificate": good.certificate,
    }
    for label, file in keys.items():
        rows.append((f"{label} as key", pair("server", key=file), key, file, r"\bkey\b"))
    for section in ("balancer", "services.chat"):
        authorities = f"{section}.tls_ca_file"
        rows.append(("missing authorities", {authorities: missing}, authorities, missing, ABSENT))
        for label in ("garbage.pem", "noise.pem", "garbled.pem", "empty.pem"):
            file = folder / label
            rows.append(
                (f"{label} as authorities", {authorities: file}, authorities, file, UNREADABLE)
            )
        rows.append(
            ("a key as authorities", {authorities: good.key}, authorities, good.key, "certificate")
        )
    say("  each of these settings is refused with exit code 64:")
    for label, values, key, file, pattern in rows:
        code, output = run("check", values, folder)
        line = next((line for line in output.splitlines() if key in line and str(file) in line), "")
        # The names of configuration key and file may contain words of the pattern.
        reason = re.search(pattern, line.replace(str(file), "").replace(key, ""), re.I)
        is_refused = code == USAGE and line and reason
        message = (line or f"{code}: {output.strip()}").replace(str(folder), "…").strip()
        check(is_refused, f"{key.rpartition('.')[0]}, {label}: {message}")
    code, output = run("run", pair("server", missing), folder)
    check(
        code == USAGE and str(missing) in output,
        f"`run` with a missing certificate ends with exit code {code}",
    )
    for values in (
        {},
        pair("server"),
        pair("balancer"),
        {"balancer.tls_ca_file": root.file},
        pair("services.chat"),
        {"services.chat.tls_ca_file": root.file},
        pair("server", second.certificate, second.key),
    ):
        code, output = run("check", values, folder)
        check(
            code == 0,
            f"control: {', '.join(values) or 'no TLS settings'}, with valid files: exit code "
            f"{code}",
        )
        if code:
            say(output)
