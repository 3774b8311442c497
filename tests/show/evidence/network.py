"""Network namespaces, each behind a link of its own. A link that is taken down ends connections
without a FIN or RST.
"""

import atexit
import contextlib
import ctypes
import os
import socket
import subprocess

NEW_NETWORK = 0x40000000  # CLONE_NEWNET of unshare(2) and setns(2)

_libc = ctypes.CDLL(None, use_errno=True)


def _system(call, *arguments):
    if call(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ip(*arguments):
    subprocess.run(["ip", *map(str, arguments)], check=True)


def leave_host():
    """Moves this process and its children into a new network namespace. Returns False if that is
    not allowed.
    """
    try:
        _system(_libc.unshare, NEW_NETWORK)
    except PermissionError:
        return False
    ip("link", "set", "lo", "up")
    return True


class Link:
    """A network namespace. Our end of the link has the address `near`, the other end `far`."""

    def __init__(self, number):
        self.name = f"wsbalancer-{os.getpid()}-{number}"
        self.near, self.far = f"10.99.{number}.1", f"10.99.{number}.2"
        ip("netns", "add", self.name)
        atexit.register(ip, "netns", "del", self.name)
        ip(
            "link",
            "add",
            f"near{number}",
            "type",
            "veth",
            "peer",
            "name",
            "far",
            "netns",
            self.name,
        )
        ip("address", "add", f"{self.near}/24", "dev", f"near{number}")
        ip("link", "set", f"near{number}", "up")
        ip("-n", self.name, "address", "add", f"{self.far}/24", "dev", "far")
        self.up()

    def up(self):
        ip("-n", self.name, "link", "set", "far", "up")

    def down(self):
        ip("-n", self.name, "link", "set", "far", "down")

    def socket(self):
        """Returns a socket that belongs to the namespace, whichever thread uses it."""
        with contextlib.ExitStack() as stack:
            here, there = (
                stack.enter_context(open(file))
                for file in ("/proc/thread-self/ns/net", f"/run/netns/{self.name}")
            )
            _system(_libc.setns, there.fileno(), NEW_NETWORK)
            try:
                made = socket.socket()
            finally:
                _system(_libc.setns, here.fileno(), NEW_NETWORK)
        made.setblocking(False)
        return made
