"""Checks and the verdict of a script: `PASS`, `FAIL` or `skipped: needs X`."""

import os
import sys

from evidence import programs

failures = []


def say(text):
    print(text, flush=True)


def check(condition, what):
    """Prints whether the condition holds. Failed checks are listed again before the verdict."""
    say(f"  {'ok  ' if condition else 'FAIL'} {what}")
    if not condition:
        failures.append(what)
    return condition


def finish():
    """Stops all child processes, prints the verdict and exits."""
    programs.stop_all()
    for failure in failures:
        say(f"failed: {failure}")
    say("FAIL" if failures else "PASS")
    sys.exit(1 if failures else 0)


def skip(needs):
    """Exits because something is not installed. That is a failure in CI, where everything must
    be.
    """
    programs.stop_all()
    say(f"skipped: needs {needs}")
    sys.exit(1 if os.environ.get("CI") else 0)
