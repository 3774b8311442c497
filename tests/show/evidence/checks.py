"""What a script checks, and its verdict: `PASS`, `FAIL` or `skipped: needs X`."""

import os
import sys

from evidence import programs

failures = []


def say(text):
    print(text, flush=True)


def check(condition, what):
    """Asserts one fact; every failed one is listed before the verdict."""
    say(f"  {'ok  ' if condition else 'FAIL'} {what}")
    if not condition:
        failures.append(what)
    return condition


def finish():
    """Stops what was started, prints the verdict, exits."""
    programs.stop_all()
    for failure in failures:
        say(f"failed: {failure}")
    say("FAIL" if failures else "PASS")
    sys.exit(1 if failures else 0)


def skip(needs):
    """A peer is missing: a skip here, a failure where everything is meant to be installed."""
    programs.stop_all()
    say(f"skipped: needs {needs}")
    sys.exit(1 if os.environ.get("CI") else 0)
