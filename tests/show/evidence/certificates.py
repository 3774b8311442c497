"""Authorities and certificates, made with the `openssl` command."""

import datetime
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

CONFIG = """\
[ca]
default_ca = this
[this]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
[any]
commonName = supplied
"""
KEYS = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["rsa:2048"]}


def openssl(*arguments):
    command = ["openssl", *map(str, arguments)]
    told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if told.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{told.stderr}")
    return told.stdout


@dataclass(frozen=True)
class Pair:
    """A certificate with what it takes to verify it, and its key."""

    certificate: Path
    key: Path

    @property
    def serial(self):
        return (
            openssl("x509", "-in", self.certificate, "-noout", "-serial")
            .strip()
            .removeprefix("serial=")
        )


class Authority:
    """Issues certificates; one with an `above` is an intermediate, whose certificate goes along."""

    def __init__(self, folder, name, above=None):
        self.folder = folder / name.replace(" ", "-")
        self.folder.mkdir()
        (self.folder / "index.txt").touch()
        (self.folder / "ca.cnf").write_text(CONFIG.format(folder=self.folder))
        authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        self.above = above
        if above:
            self.file, self.key = above._sign(self.folder / "ca", name, authority)
        else:
            self.file, self.key = self.folder / "ca.pem", self.folder / "ca.key"
            extensions = [part for line in authority.split() for part in ("-addext", line)]
            openssl(
                "req",
                "-x509",
                "-newkey",
                *KEYS["ec"],
                "-nodes",
                "-keyout",
                self.key,
                "-out",
                self.file,
                "-subj",
                f"/CN={name}",
                "-days",
                "2",
                *extensions,
            )

    def issue(self, name, *names, expired=False, usage="serverAuth", key="ec"):
        """A pair for `names`, as in `DNS:localhost` or `IP:127.0.0.1`."""
        extensions = f"basicConstraints=critical,CA:FALSE\nextendedKeyUsage={usage}\n"
        if names:
            extensions += f"subjectAltName={','.join(names)}\n"
        file, secret = self._sign(self.folder / name, name, extensions, expired, key)
        if self.above:
            file.write_text(file.read_text() + self.file.read_text())
        return Pair(file, secret)

    def _sign(self, base, name, extensions, expired=False, key="ec"):
        request, wanted, file, secret = (
            base.with_suffix(end) for end in (".csr", ".ext", ".pem", ".key")
        )
        wanted.write_text(extensions)
        openssl(
            "req",
            "-newkey",
            *KEYS[key],
            "-nodes",
            "-keyout",
            secret,
            "-out",
            request,
            "-subj",
            f"/CN={name}",
        )
        today = datetime.datetime.now(datetime.UTC)
        start, end = (
            today + datetime.timedelta(days=days) for days in ((-9, -1) if expired else (-1, 2))
        )
        openssl(
            "ca",
            "-batch",
            "-notext",
            "-config",
            self.folder / "ca.cnf",
            "-in",
            request,
            "-out",
            file,
            "-cert",
            self.file,
            "-keyfile",
            self.key,
            "-extfile",
            wanted,
            "-startdate",
            f"{start:%Y%m%d%H%M%SZ}",
            "-enddate",
            f"{end:%Y%m%d%H%M%SZ}",
        )
        return file, secret


def replace(pair, certificate, key):
    """Puts a pair where another was, each file by a rename."""
    for source, target in ((pair.certificate, certificate), (pair.key, key)):
        beside = target.with_name(f".{target.name}.new")
        beside.write_bytes(source.read_bytes())
        os.replace(beside, target)
