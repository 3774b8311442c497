"""The parts of a script, chosen by their names on the command line."""

import sys
import time

from evidence.checks import say

SHORT = "--short" in sys.argv


def chosen(parts, options=("--short",)):
    """Returns the names of the chosen parts, all if none is named. Exits after an unknown name."""
    names = [name for name in sys.argv[1:] if name not in options]
    if {*names} - {*parts}:
        flags = "".join(f" [{option}]" for option in options)
        raise SystemExit(f"usage: {sys.argv[0]}{flags} [{'|'.join(parts)}]...")
    return [name for name in parts if name in names or not names]


async def run(parts, *arguments, options=("--short",)):
    """Runs the chosen parts, a dictionary of coroutine functions, and prints how long each took."""
    for name in chosen(parts, options):
        started = time.monotonic()
        await parts[name](*arguments)
        say(f"  {name}: {time.monotonic() - started:.1f} s")
