"""Child processes of a script: the balancer, its pods and their peers."""

import atexit
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WORK = ROOT / "target" / "show"
BINARY = Path(os.environ.get("WSBALANCER_BIN", ROOT / "target" / "release" / "wsbalancer"))

_children = []


def build():
    """Builds the release binary unless WSBALANCER_BIN names one. Returns its path."""
    if "WSBALANCER_BIN" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    return BINARY


class Program:
    """A child process whose output is kept. It ends at the latest with the script."""

    def __init__(self, *command, env=None, cwd=None, name=None, pass_fds=()):
        self.name = name or Path(str(command[0])).name
        self.lines = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=pass_fds,
        )
        _children.append(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self):
        return self.process.pid

    @property
    def output(self):
        return "\n".join(self.lines)

    def expect(self, pattern, timeout=60):
        """Waits for a line that matches, and returns the match."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    found = re.search(pattern, line)
                    if found:
                        return found
                seen = len(self.lines)
                left = deadline - time.monotonic()
                ended = not self._reader.is_alive()
                if left <= 0 or ended:
                    raise RuntimeError(
                        f"{self.name}: no line matched {pattern!r} "
                        f"({'the process ended' if ended else 'time is up'}):\n{self.output}"
                    )
                self._changed.wait(min(left, 0.5))

    def stop(self, sig=signal.SIGTERM, timeout=30):
        """Sends a signal, waits for the end, and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(5)
        return code

    def rss_kib(self):
        """Returns the resident memory in KiB (/proc/PID/smaps_rollup)."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Rss:\s+(\d+)", text, re.M).group(1))


def stop_all():
    while _children:
        _children.pop().stop(timeout=10)


atexit.register(stop_all)
for _sig in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_sig, lambda *_: sys.exit(1))


class Pod(Program):
    """A sample pod (`wsbalancer pod`): `/ws` echoes, `/metric` reports."""

    def __init__(self, name):
        super().__init__(
            BINARY, "pod", "--listen", "127.0.0.1:0", env={"POD_NAME": name}, name=name
        )
        self.address = self.expect(r"listening on (127\.0\.0\.1:\d+)").group(1)
        self.url = f"http://{self.address}"


class EchoPod(Program):
    """The pod of `echo_pod.py`. The script must have entered an environment with `websockets`."""

    def __init__(self, name, **env):
        env = {"POD_NAME": name, **env}
        super().__init__(
            sys.executable, Path(__file__).with_name("echo_pod.py"), env=env, name=name
        )
        self.address = self.expect(r"listening on (127\.0\.0\.1:\d+)").group(1)
        self.url = f"http://{self.address}"

    def report(self):
        with urllib.request.urlopen(f"{self.url}/metric", timeout=10) as answer:
            return json.load(answer)


class Balancer(Program):
    """`wsbalancer run` on free ports. `settings` are WSBALANCER__… variables without the prefix."""

    def __init__(self, services, **settings):
        env = {
            "WSBALANCER_SERVICES": ",".join(services),
            "WSBALANCER__SERVER__LISTEN": "127.0.0.1:0",
            "WSBALANCER__ADMIN__LISTEN": "127.0.0.1:0",
            # Only scripts about draining need these delays.
            "WSBALANCER__SERVER__DRAIN_DELAY": "0s",
            "WSBALANCER__SERVER__DRAIN_TIME": "0s",
        }
        env.update({f"WSBALANCER__{key}": str(value) for key, value in settings.items()})
        super().__init__(BINARY, "run", env=env, name="wsbalancer")
        found = self.expect(r"traffic on (127\.0\.0\.1:\d+), admin on (127\.0\.0\.1:\d+)")
        self.address, self.admin = found.groups()

    def metrics(self):
        with urllib.request.urlopen(
            f"http://{self.admin}/balancer-metrics?format=json", timeout=10
        ) as answer:
            return json.load(answer)


def eventually(probe, timeout=30, pause=0.2):
    """Calls `probe` until the result is truthy or the time is up. Returns the last result."""
    deadline = time.monotonic() + timeout
    while not (answer := probe()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer


def free_port():
    """Returns a free port, for peers that cannot bind port 0 themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scratch(name):
    """Creates an empty folder under target/show for this run."""
    WORK.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=WORK))
