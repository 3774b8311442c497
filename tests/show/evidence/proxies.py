"""HAProxy, nginx and Traefik, which run beside the balancer or in front of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from evidence import install, programs


class Proxy(programs.Program):
    """A proxy that listens at `address`. It does not report when it is ready."""

    address = None

    def is_listening(self):
        host, _, port = self.address.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0


class Haproxy(Proxy):
    """HAProxy with the text of a configuration. Its file is written to `folder`."""

    def __init__(self, configuration, folder=None):
        file = (folder or programs.scratch("haproxy")) / "haproxy.cfg"
        file.write_text(configuration)
        super().__init__(install.require("haproxy"), "-db", "-f", file)


class Nginx(Proxy):
    """nginx with directives of the `http` block. Its files are written to `folder`.

    The variable `$connection_upgrade` is the Connection field for a forwarded WebSocket handshake.
    """

    def __init__(self, http, folder=None):
        folder = folder or programs.scratch("nginx")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "\n".join(f"  {kind}_temp_path {folder}/{kind};" for kind in kinds)
        # Workers of nginx started by root change to another user, which cannot enter this folder.
        user = "user root;" if os.geteuid() == 0 else ""
        file = folder / "nginx.conf"
        file.write_text(f"""\
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
{temporary}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
{http}
}}
""")
        super().__init__(install.require("nginx"), "-e", folder / "error.log", "-c", file)


class Traefik(Proxy):
    """Traefik with HTTP rules. Needs the environment "traefik", see `install.within`.

    `address` is its entry point "web"; `options` are further command line options.
    """

    def __init__(self, rules, *options):
        file = programs.scratch("traefik") / "rules.yml"
        file.write_text(json.dumps({"http": rules}, indent=2))  # JSON is valid YAML
        self.address = f"127.0.0.1:{programs.free_port()}"
        super().__init__(
            Path(sys.executable).with_name("traefik"),
            f"--entrypoints.web.address={self.address}",
            f"--providers.file.filename={file}",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            "--log.level=INFO",
            *options,
        )


def version(program):
    """Returns the first line of `program -v`."""
    done = subprocess.run(
        [install.require(program), "-v"], check=True, capture_output=True, text=True
    )
    return (done.stdout + done.stderr).splitlines()[0]
