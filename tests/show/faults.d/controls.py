"""Controls: the comparison rejects wrong outcomes, and a case fails if its guard is off."""

import asyncio
import dataclasses

import play
import table
from evidence.checks import check, say
from table import CALM, FAREWELLS, close

GUARDS = {  # row and variant, and the setting that causes the outcome; CALM does not have it
    "idle time-out, after a message": "idle_timeout",
    "idle time-out, neither side answers": "close_timeout",
    "maximum age, after a message": "max_session_age",
    "the client answers no Ping, after a message": "client_ping_interval",
    "the pod answers no Ping, after a message": "pod_ping_interval",
    "the client does not read, after a message": "write_timeout",
    "the pod does not read, after a message": "write_timeout",
    "the client half-closes, and no data follow": "half_closed_timeout",
    "the pod sends Close, and gets no answer": "half_closed_timeout",
    "a frame over the limit, with bytes in flight": "max_frame_size",
    "a message over the limit, in one frame": "max_message_size",
    "messages over the rate, with bytes in flight": "messages_per_second",
    "the pod disconnects by FIN, close_code_pod_lost = 4321": "close_code_pod_lost",
}
PATIENCE = 6  # seconds: longer than any of the cases takes

OTHERS = [  # each of them occurred, and no other
    "the pod disconnects by FIN, after a message",
    "the pod disconnects by FIN, within a frame",
    "the pod disconnects by FIN, within a header",
    "the pod half-closes, after a message",
    "the client disconnects by FIN, after a message",
    "the client disconnects by FIN, within a frame",
    "idle time-out, after a message",
    "idle time-out, between two fragments",
    "maximum age, after a message",
    "DELETE of the session, after a message",
    "the client answers no Ping, after a message",
    "the client does not read, after a message",
    "a frame over the limit, after a message",
]


def show_comparison(outcomes, cells):
    """`outcomes` are by the names of their cases."""
    say("control: the comparison rejects")
    by_name = {str(cell): cell for cell in cells}
    taken = [
        (seen, other)
        for seen in OTHERS
        for other in OTHERS
        if isinstance(outcomes[seen], Exception)
        or (seen != other) != bool(outcomes[seen].differs(by_name[other]))
    ]
    what = (
        f"of {len(OTHERS)} cases, each outcome is rejected for all other cases, and only for those"
    )
    check(not taken, f"{what} {taken or ''}")
    reject_changed(
        outcomes["the pod disconnects by FIN, within a frame"],
        by_name["the pod disconnects by FIN, within a frame"],
        {
            "a Close within a frame": {"more": FAREWELLS["pod"]},
        },
    )
    reject_changed(
        outcomes["the pod disconnects by FIN, after a message"],
        by_name["the pod disconnects by FIN, after a message"],
        {
            "an RST for a FIN": {"end": "RST"},
            "an RST behind a FIN": {"end": "FIN, RST"},
            "no end": {"end": "open"},
            "one byte more": {"more": b"\0"},
            "one byte less": {"cut": 1},
            "another code": {
                "cut": len(FAREWELLS["pod"]),
                "more": close(1011, "pod disconnected without a Close frame"),
            },
            "a second Close": {"more": FAREWELLS["pod"]},
        },
    )
    flooded = "the pod disconnects by FIN, the other does not read"
    reject_changed(
        outcomes[flooded],
        by_name[flooded],
        {
            "a flood that lacks its last frame": {
                "cut": 8196 + len(FAREWELLS["pod"]),
                "more": FAREWELLS["pod"],
            },
            "a Close within a flood": {
                "cut": 100 + len(FAREWELLS["pod"]),
                "more": FAREWELLS["pod"],
            },
        },
    )


def reject_changed(outcome, cell, changes):
    """Checks that changed outcomes of a case are rejected."""
    for name, change in changes.items():
        got, end = outcome.got["client"], change.get("end", outcome.ends["client"])
        changed = got[: len(got) - change.get("cut", 0)] + change.get("more", b"")
        both = {"got": {**outcome.got, "client": changed}, "ends": {**outcome.ends, "client": end}}
        worse = dataclasses.replace(outcome, **both)
        check(worse.differs(cell) == ["client"], f"{name}, in: {cell}")


async def show_guards(pods):
    """Plays cases whose guard is off."""
    say(f"control: the same cases with their guard off, {PATIENCE} s each")
    cells = [
        dataclasses.replace(cell, service="calm") for cell in table.cells() if str(cell) in GUARDS
    ]
    assert len(cells) == len(GUARDS), "a row has another name"
    balancer = play.balance(pods, {"calm": CALM})
    plays = [
        play.play(cell, number, balancer, pods, patience=PATIENCE)
        for number, cell in enumerate(cells)
    ]
    for cell, outcome in zip(cells, await asyncio.gather(*plays)):
        refused = isinstance(outcome, RuntimeError) or (
            isinstance(outcome, play.Outcome) and outcome.differs(cell)
        )
        check(refused, f"without {GUARDS[str(cell)]}, the outcome differs: {cell}; {outcome}")
    await asyncio.to_thread(balancer.stop)
