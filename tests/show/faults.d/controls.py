"""That the comparison refuses what is wrong, and that without its guard a cell does not come
out.
"""

import asyncio
import dataclasses

import play
import table
from evidence.checks import check, say
from table import CALM, close

GUARDS = {  # row and variant: the setting that makes it happen, which CALM does not have
    "idle time-out, after a message": "idle_timeout",
    "idle time-out, nobody answers": "close_timeout",
    "greatest age, after a message": "max_session_age",
    "the client answers no Ping, after a message": "client_ping_interval",
    "the pod answers no Ping, after a message": "pod_ping_interval",
    "the client takes nothing, after a message": "write_timeout",
    "the pod takes nothing, after a message": "write_timeout",
    "the client half-closes, and nobody says any more": "half_closed_timeout",
    "the pod says Close, and gets no answer": "half_closed_timeout",
    "a frame over the limit, with bytes in flight": "max_frame_size",
    "a message over the limit, in one frame": "max_message_size",
    "messages over the rate, with bytes in flight": "messages_per_second",
    "the pod dies by FIN, close_code_pod_lost = 4321": "close_code_pod_lost",
}
PATIENCE = 6  # seconds: more than any of them takes

OTHERS = [  # each of them was seen, and is no other
    "the pod dies by FIN, after a message",
    "the pod dies by FIN, within a frame",
    "the pod dies by FIN, within a header",
    "the pod half-closes, after a message",
    "the client dies by FIN, after a message",
    "the client dies by FIN, within a frame",
    "idle time-out, after a message",
    "idle time-out, between two fragments",
    "greatest age, after a message",
    "DELETE of the session, after a message",
    "the client answers no Ping, after a message",
    "the client takes nothing, after a message",
    "a frame over the limit, after a message",
]


def show_comparison(outcomes, cells):
    """`outcomes` by the names of their cells."""
    say("control: the comparison refuses")
    by_name = {str(cell): cell for cell in cells}
    taken = [
        (seen, other)
        for seen in OTHERS
        for other in OTHERS
        if isinstance(outcomes[seen], Exception)
        or (seen != other) != bool(outcomes[seen].differs(by_name[other]))
    ]
    what = f"what was seen in each of {len(OTHERS)} cells for all of the others, and only for those"
    check(not taken, f"{what} {taken or ''}")
    doctor(
        outcomes["the pod dies by FIN, within a frame"],
        by_name["the pod dies by FIN, within a frame"],
        {
            "a Close within a frame": {"more": close(1012, "the pod is gone")},
        },
    )
    doctor(
        outcomes["the pod dies by FIN, after a message"],
        by_name["the pod dies by FIN, after a message"],
        {
            "an RST for a FIN": {"end": "RST"},
            "an RST behind a FIN": {"end": "FIN, RST"},
            "no end": {"end": "open"},
            "one byte more": {"more": b"\0"},
            "one byte less": {"cut": 1},
            "another code": {
                "cut": len(close(1012, "the pod is gone")),
                "more": close(1011, "the pod is gone"),
            },
            "a second Close": {"more": close(1012, "the pod is gone")},
        },
    )
    flooded = "the pod dies by FIN, the other does not read"
    doctor(
        outcomes[flooded],
        by_name[flooded],
        {
            "a flood that lacks its last frame": {
                "cut": 8196 + 19,
                "more": close(1012, "the pod is gone"),
            },
            "a Close within a flood": {"cut": 100 + 19, "more": close(1012, "the pod is gone")},
        },
    )


def doctor(outcome, cell, wounds):
    """What a client has got, changed."""
    for name, wound in wounds.items():
        got, end = outcome.got["client"], wound.get("end", outcome.ends["client"])
        changed = got[: len(got) - wound.get("cut", 0)] + wound.get("more", b"")
        both = {"got": {**outcome.got, "client": changed}, "ends": {**outcome.ends, "client": end}}
        worse = dataclasses.replace(outcome, **both)
        check(worse.differs(cell) == ["client"], f"{name}, in: {cell}")


async def show_guards(pods):
    """Cells whose guard is off."""
    say(f"control: the same cells with their guard off, {PATIENCE} s each")
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
        check(refused, f"without {GUARDS[str(cell)]}, not so: {cell}; {outcome}")
    await asyncio.to_thread(balancer.stop)
