"""Certificate authorities and certificates, made with the `openssl` command."""

import datetime
import subprocess
from dataclasses import dataclass
from pathlib import Path

from evidence import files

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
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{result.stderr}")
    return result.stdout


@dataclass(frozen=True)
class Pair:
    """A certificate with its intermediates, and its key."""

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
    """Issues certificates.

    With `parent` it is an intermediate, and its certificate is part of the chain.
    """

    def __init__(self, folder, name, parent=None):
        self.folder = folder / name.replace(" ", "-")
        self.folder.mkdir()
        (self.folder / "index.txt").touch()
        (self.folder / "ca.cnf").write_text(CONFIG.format(folder=self.folder))
        authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        self.parent = parent
        if parent:
            self.file, self.key = parent._sign(self.folder / "ca", name, authority)
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
        """Issues a certificate for `names` such as `DNS:localhost` or `IP:127.0.0.1`.

        Returns it with its key.
        """
        extensions = f"basicConstraints=critical,CA:FALSE\nextendedKeyUsage={usage}\n"
        if names:
            extensions += f"subjectAltName={','.join(names)}\n"
        file, key_file = self._sign(self.folder / name, name, extensions, expired, key)
        if self.parent:
            file.write_text(file.read_text() + self.file.read_text())
        return Pair(file, key_file)

    def _sign(self, base, name, extensions, expired=False, key="ec"):
        request, extension_file, file, key_file = (
            base.with_suffix(end) for end in (".csr", ".ext", ".pem", ".key")
        )
        extension_file.write_text(extensions)
        openssl(
            "req",
            "-newkey",
            *KEYS[key],
            "-nodes",
            "-keyout",
            key_file,
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
            extension_file,
            "-startdate",
            f"{start:%Y%m%d%H%M%SZ}",
            "-enddate",
            f"{end:%Y%m%d%H%M%SZ}",
        )
        return file, key_file


def replace(pair, certificate, key):
    """Replaces certificate and key by those of `pair`, each file by a rename."""
    files.replace_file(certificate, pair.certificate.read_bytes())
    files.replace_file(key, pair.key.read_bytes())
