"""What client and pod must receive when a session goes wrong, to the byte.

A case is one row in one variant: what client and pod do, step by step, everything that each of them
receives after its handshake, and how its connection ends. `-` is an end that has disconnected.

If data are in flight when a time-out or an operator ends a session, they are the rest of a frame
that has begun. Frames that begin later may be lost.
"""

import dataclasses
import itertools

from ends import CLOSE, MASK, OPEN_MASK, PING, PING_PAYLOAD, payload_of, walk
from evidence import scripted
from evidence.scripted import frame

GONE = "-"  # an end that has disconnected

# Placeholders for parts of a flood, among the received bytes.
ALL = "all of the flood"
WHOLE = "a part of the flood that ends with a frame"
ANY = "a part of the flood"
CUT = "a part of the flood that ends within a frame"

# Settings of [services.NAME]. NAME is the first path segment. Sessions end only for the reason in
# the name.
CALM = {
    "idle_timeout": "0s",
    "write_timeout": "0s",
    "half_closed_timeout": "30s",
    "close_timeout": "10s",
}
BRIEF = {**CALM, "half_closed_timeout": "1s", "close_timeout": "1s"}
SERVICES = {
    "calm": CALM,
    "brief": BRIEF,
    "calm-brief": BRIEF,
    "moved": CALM,
    "moved-brief": BRIEF,
    "custom": {**CALM, "close_code_pod_lost": 4321},
    "idle": {**CALM, "idle_timeout": "2s"},
    "idle-brief": {**BRIEF, "idle_timeout": "2s"},
    "old": {**CALM, "max_session_age": "4s"},
    "old-brief": {**BRIEF, "max_session_age": "4s"},
    "pings-client": {**CALM, "client_ping_interval": "500ms", "ping_timeout": "2s"},
    "pings-pod": {**CALM, "pod_ping_interval": "500ms", "ping_timeout": "2s"},
    "stalls": {**CALM, "write_timeout": "1s"},
    "stalls-pings": {
        **CALM,
        "write_timeout": "2s",
        "client_ping_interval": "300ms",
        "ping_timeout": "500ms",
    },
    "frames": {**CALM, "max_frame_size": 1000},
    "frames-brief": {**BRIEF, "max_frame_size": 1000},
    "messages": {**CALM, "max_message_size": 1000},
    "floods": {**CALM, "max_frame_size": 8192},
    "rate": {**CALM, "messages_per_second": 1, "message_burst": 3, "over_message_rate": "close"},
    "handshakes": {**CALM, "read_timeout": "1s", "handshake_timeout": "2s"},
    "pair": {**CALM, "read_timeout": "1s"},
}
SERVICES |= {
    f"cut-{act}-{side}": {**BRIEF, "write_timeout": "2s"}
    for act in ("leaves", "resets")
    for side in ("client", "pod")
}
TWO_PODS = {"pair"}


@dataclasses.dataclass(frozen=True)
class Gets:
    """What one end receives: `parts`, then the end of its connection."""

    parts: tuple
    end: str = "FIN"

    def __str__(self):
        runs = itertools.groupby(self.parts, key=lambda part: isinstance(part, str))
        notice = [next(run) if symbolic else described(b"".join(run)) for symbolic, run in runs]
        return ", ".join([*filter(None, notice), self.end])


@dataclasses.dataclass(frozen=True)
class Cell:
    """One case. `client` and `pod` are what they receive: a list if the network decides, or
    GONE.
    """

    row: str
    variant: str
    service: str
    steps: tuple
    client: object
    pod: object
    begun: bool = True  # the handshake is done before the steps; otherwise the steps perform it
    deaf: tuple = ()  # the sides that do not read until a step says so
    mute: tuple = ()  # the sides that do not answer a Close

    def __str__(self):
        return f"{self.row}, {self.variant}"

    def expected(self, side):
        """Describes what a side receives."""
        ways = getattr(self, side)
        return " or ".join(map(str, ways)) if isinstance(ways, list) else str(ways)


def gets(*parts, end="FIN"):
    return Gets(parts, end)


def close(code, reason="", to="client"):
    """Returns a Close sent by the balancer."""
    return frame(
        CLOSE, code.to_bytes(2, "big") + reason.encode(), mask=OPEN_MASK if to == "pod" else None
    )


def own_close(side, payload=b"\x03\xe8"):
    """Returns a Close sent by a side, 1000 by default."""
    return frame(CLOSE, payload, mask=MASKS[side])


def described(raw):
    """Describes bytes as the frames that they contain."""
    if raw.startswith(b"HTTP/"):
        return raw.split(b"\r\n")[0].decode()
    words, at = [], 0
    for one in walk(raw):
        words.append(word(one))
        at = one.end
    cut = len(raw) - at
    return ", ".join(words + [f"{cut} bytes of a frame"] * (cut > 0))


def word(one):
    """Describes a frame."""
    payload = scripted.masked(one.payload, one.key or OPEN_MASK)
    if one.opcode == CLOSE:
        return (
            f"Close {int.from_bytes(payload[:2], 'big')} '{payload[2:42].decode()}'"
            if payload
            else "Close"
        )
    if one.opcode == PING:
        return "Ping of the balancer" if payload == PING_PAYLOAD else "Ping"
    return "last fragment" if one.opcode == 0 and one.fin else "message" if one.fin else "fragment"


SIDES = ("client", "pod")
OTHER = {"client": "pod", "pod": "client"}
MASKS = {"client": MASK, "pod": None}


def of_side(opcode, payload, fin=True):
    return {side: frame(opcode, payload, fin, MASKS[side]) for side in SIDES}


WORD = of_side(1, b"a whole message")
FIRST = of_side(1, b"the first part, ", fin=False)
LAST = of_side(0, b"the last part")
PEER_PING = of_side(PING, b"are you there?")
LONG = of_side(2, bytes(range(256)) * 1200)  # 307,200 bytes
MIDDLE = {side: len(LONG[side]) // 2 for side in SIDES}
CLOSE_1000 = {side: own_close(side) for side in SIDES}
THIRD = {side: len(frame(1, bytes(300), mask=MASKS[side])) // 3 for side in SIDES}
MESSAGE_300 = of_side(1, b"x" * 300)

# What a side sent before the fault, which has arrived, and what would complete its last frame.
AT_BOUNDARY = {
    "no data": lambda side: b"",
    "after a message": lambda side: WORD[side],
    "between two fragments": lambda side: WORD[side] + FIRST[side],
    "after a Ping between fragments": lambda side: FIRST[side] + PEER_PING[side],
}
WITHIN = {
    "within a frame": lambda side: (
        WORD[side] + MESSAGE_300[side][: THIRD[side]],
        MESSAGE_300[side][THIRD[side] :],
    ),
    "within a continued frame": lambda side: (FIRST[side] + LAST[side][:-1], LAST[side][-1:]),
    "within a header": lambda side: (WORD[side] + MESSAGE_300[side][:3], MESSAGE_300[side][3:]),
    "within the first byte pair": lambda side: (WORD[side][:1], WORD[side][1:]),
    "within a Close": lambda side: (WORD[side] + CLOSE_1000[side][:-1], CLOSE_1000[side][-1:]),
}
WITHIN_SHORT = {name: WITHIN[name] for name in ("within a frame", "within a header")}


def says(side, data):
    """Sends data and waits until the other side has received them."""
    return (("says", side, data),) if data else ()


UNANSWERED = {
    "client": close(1001, "ping timed out: client did not answer"),
    "pod": close(1001, "ping timed out: pod did not answer", to="pod"),
}
FAREWELLS = {
    "pod": close(1012, "pod disconnected without a Close frame"),
    "client": close(1001, "client disconnected without a Close frame", to="pod"),
}
SILENT = {
    "pod": close(1012, "ping timed out: pod did not answer"),
    "client": close(1001, "ping timed out: client did not answer", to="pod"),
}
STALLED = {
    "pod": close(1012, "write timed out: pod is not reading"),
    "client": close(1001, "write timed out: client is not reading", to="pod"),
}


def cell(row, variant, service, steps, **more):
    """Returns a case in which `side=` gives what that side receives."""
    return Cell(row, variant, service, tuple(steps), **more)


def by_side(dying, lives, dies=GONE):
    """Returns the expectations of a case by the side that fails."""
    return {OTHER[dying]: lives, dying: dies}


def deaths():
    """One side closes or resets its socket."""
    for side in ("pod", "client"):
        other, notice = OTHER[side], FAREWELLS[side]
        for act, word in (("leaves", "FIN"), ("resets", "RST")):
            row = f"the {side} disconnects by {word}"
            end = (act, side)
            for name, said in AT_BOUNDARY.items():
                expected = gets(said(side), notice)
                yield cell(
                    row, name, "calm", [*says(side, said(side)), end], **by_side(side, expected)
                )
            for name, said in WITHIN.items():
                cut, _ = said(side)
                yield cell(row, name, "calm", [*says(side, cut), end], **by_side(side, gets(cut)))
            for name, said in WITHIN_SHORT.items():
                cut, _ = said(other)
                steps = [*says(other, cut), *says(side, WORD[side]), end]
                yield cell(
                    row,
                    f"the other {name}",
                    "calm",
                    steps,
                    **by_side(side, gets(WORD[side], notice)),
                )
            yield from in_flight(row, side, act)
            yield from not_reading(row, side, act)
            steps = [
                ("floods", side),
                *says(other, WORD[other]),
                end,
                ("forgotten",),
                ("reads", other),
            ]
            yield cell(
                row,
                "the other never reads",
                f"cut-{act}-{side}",
                steps,
                deaf=(other,),
                mute=(other,),
                **by_side(side, gets(ANY)),
            )
        yield cell(
            f"the {side} disconnects by FIN",
            "with a limit set, within a header",
            "frames",
            [("writes", side, WORD[side] + MESSAGE_300[side][:3]), ("leaves", side)],
            **by_side(side, gets(WORD[side] + MESSAGE_300[side][:3])),
        )
    yield cell(
        "the pod disconnects by FIN",
        "close_code_pod_lost = 4321",
        "custom",
        [*says("pod", WORD["pod"]), ("leaves", "pod")],
        client=gets(WORD["pod"], close(4321, "pod disconnected without a Close frame")),
        pod=GONE,
    )


def in_flight(row, side, act):
    """Data sent immediately before must arrive; an RST may overtake them."""
    end = (act, side)
    notice = FAREWELLS[side]
    steps = [("writes", side, WORD[side] + FIRST[side]), end]
    yield cell(
        row,
        "with bytes in flight",
        "calm",
        steps,
        **by_side(side, gets(WORD[side] + FIRST[side], notice)),
    )
    cut, _ = WITHIN["within a frame"](side)
    yield cell(
        row,
        "with a cut frame in flight",
        "calm",
        [("writes", side, cut), end],
        **by_side(side, gets(cut)),
    )
    if act == "leaves":
        steps = [("writes", side, LONG[side] * 4), end]
        yield cell(
            row,
            "with 1.2 MB in flight",
            "calm",
            steps,
            **by_side(side, gets(LONG[side] * 4, notice)),
        )
        steps = [("writes", side, LONG[side] * 4 + FIRST[side][:-1]), end]
        expected = gets(LONG[side] * 4 + FIRST[side][:-1])
        yield cell(
            row, "with 1.2 MB and a cut frame in flight", "calm", steps, **by_side(side, expected)
        )


def not_reading(row, side, act):
    """All buffers are full. The other side reads too late."""
    other, notice, end = OTHER[side], FAREWELLS[side], (act, side)
    whole, broken = gets(ALL, notice), gets(ALL, FIRST[side][:-1])
    if act == "resets":
        whole, broken = [gets(WHOLE, notice), gets(CUT)], [gets(WHOLE, notice), gets(ANY)]
    steps = [("floods", side), end, ("reads", other)]
    yield cell(row, "the other does not read", "calm", steps, deaf=(other,), **by_side(side, whole))
    steps = [("floods", side), ("writes", side, FIRST[side][:-1]), end, ("reads", other)]
    yield cell(
        row,
        "the other does not read, a frame is cut",
        "calm",
        steps,
        deaf=(other,),
        **by_side(side, broken),
    )


def half_closes():
    """One side sends FIN and keeps reading."""
    for side in SIDES:
        other, notice = OTHER[side], FAREWELLS[side]
        row, end = f"the {side} half-closes", ("shuts", side)
        payload = payload_of(notice, CLOSE)
        for name, said in AT_BOUNDARY.items():
            steps = [
                *says(side, said(side)),
                end,
                ("receives", other, CLOSE),
                *says(other, WORD[other]),
            ]
            both = {
                other: gets(said(side), notice),
                side: gets(WORD[other], own_close(other, payload)),
            }
            yield cell(row, name, "calm", steps, **both)
        for name, said in WITHIN.items():
            cut, _ = said(side)
            steps = [*says(side, cut), end, *says(other, WORD[other])]
            yield cell(row, name, "calm", steps, **{other: gets(cut), side: gets(WORD[other])})
        steps = [
            ("writes", side, LONG[side]),
            end,
            ("receives", other, CLOSE),
            *says(other, WORD[other]),
        ]
        both = {other: gets(LONG[side], notice), side: gets(WORD[other], own_close(other, payload))}
        yield cell(row, "with bytes in flight", "calm", steps, **both)
        steps = [("floods", side), end, ("reads", other)]
        both = {other: gets(ALL, notice), side: gets(own_close(other, payload))}
        yield cell(row, "the other does not read", "calm", steps, deaf=(other,), **both)
        yield cell(
            row,
            "and no data follow",
            "brief",
            [end],
            mute=SIDES,
            **{other: gets(notice), side: gets()},
        )


def own_closes():
    """One side sends a Close. Later faults do not change the outcome."""
    payloads = {
        "no code": b"",
        "1000": b"\x03\xe8",
        "1001 with a reason": b"\x03\xe9bye",
        "3456": b"\x0d\x80",
        "4999 with the longest reason": b"\x13\x87" + b"r" * 123,
    }
    for side in SIDES:
        other = OTHER[side]
        row = f"the {side} sends Close"
        for name, payload in payloads.items():
            both = {other: gets(own_close(side, payload)), side: gets(own_close(other, payload))}
            yield cell(row, name, "calm", [*says(side, own_close(side, payload))], **both)
        goodbye, answer = CLOSE_1000[side], CLOSE_1000[other]
        for name, said in AT_BOUNDARY.items():
            both = {other: gets(said(side), goodbye), side: gets(said(other), answer)}
            steps = [*says(side, said(side)), *says(other, said(other)), *says(side, goodbye)]
            yield cell(row, name, "calm", steps, **both)
        for name, said in WITHIN_SHORT.items():
            cut, rest = said(other)
            both = {other: gets(goodbye), side: gets(cut, rest, answer)}
            steps = [*says(other, cut), *says(side, goodbye), *says(other, rest)]
            yield cell(row, f"the other {name}", "calm", steps, **both)
        for act, word in (("leaves", "FIN"), ("resets", "RST")):
            steps = [("writes", side, WORD[side] + goodbye), (act, side)]
            expected = gets(WORD[side], goodbye)
            yield cell(
                row, f"and disconnects by {word} at once", "calm", steps, **by_side(side, expected)
            )
            steps = [*says(side, goodbye), (act, other)]
            yield cell(
                row, f"the other disconnects by {word}", "calm", steps, **by_side(other, gets())
            )
        steps = [("writes", side, own_close(side, b"")), ("leaves", side)]
        yield cell(
            row,
            "no code, and disconnects by FIN at once",
            "calm",
            steps,
            **by_side(side, gets(own_close(side, b""))),
        )
        steps = [("writes", side, LONG[side] + goodbye), ("leaves", side)]
        yield cell(
            row, "with bytes in flight", "calm", steps, **by_side(side, gets(LONG[side], goodbye))
        )
        steps = [("floods", side), ("writes", side, goodbye), ("leaves", side), ("reads", other)]
        yield cell(
            row,
            "the other does not read",
            "calm",
            steps,
            deaf=(other,),
            **by_side(side, gets(ALL, goodbye)),
        )
        both = {other: gets(goodbye), side: gets()}
        yield cell(
            row, "and gets no answer", "brief", [*says(side, goodbye)], mute=(other,), **both
        )
    both = {"client": gets(own_close("pod", b"\x03\xe9")), "pod": gets(CLOSE_1000["client"])}
    steps = [
        ("writes", "client", CLOSE_1000["client"]),
        ("writes", "pod", own_close("pod", b"\x03\xe9")),
    ]
    yield cell("both send Close", "at once", "calm", steps, **both)


def balancer_closes(row, service, trigger, codes, reason):
    """The balancer closes the session. Each side is sent a Close at the end of a frame of the other
    side.
    """
    notice = {side: close(codes[side], reason, to=side) for side in SIDES}
    steps_of = {
        name: [step for side in SIDES for step in says(side, said(side))]
        for name, said in AT_BOUNDARY.items()
    }
    for name, said in AT_BOUNDARY.items():
        both = {side: gets(said(OTHER[side]), notice[side]) for side in SIDES}
        yield cell(row, name, service, [*steps_of[name], *trigger], **both)
    for side in SIDES:
        other = OTHER[side]
        for name, said in WITHIN.items():
            cut, rest = said(side)
            receives = [*says(side, cut), *trigger, ("receives", side, CLOSE)]
            # If a side's Close is already being forwarded, the balancer sends none.
            last = b"" if name == "within a Close" else notice[other]
            both = {side: gets(notice[side]), other: gets(cut, rest, last)}
            yield cell(
                row,
                f"the {side} {name}, which it completes",
                service,
                [*receives, ("writes", side, rest)],
                **both,
            )
        cut, rest = WITHIN["within a frame"](side)
        receives = [*says(side, cut), *trigger, ("receives", side, CLOSE)]
        both = {side: gets(notice[side]), other: gets(cut, rest, notice[other])}
        steps = [*receives, ("writes", side, rest + CLOSE_1000[side])]
        yield cell(
            row,
            f"the {side} within a frame, completed together with its Close",
            service,
            steps,
            **both,
        )
        both = {side: gets(notice[side]), other: gets(cut)}
        steps = [*says(side, cut), *trigger]
        yield cell(
            row,
            f"the {side} within a frame, which it never completes",
            f"{service}-brief",
            steps,
            **both,
        )
        both = {side: gets(notice[side]), other: gets(WHOLE, notice[other])}
        steps = [("floods", side), *trigger, ("receives", side, CLOSE), ("reads", other)]
        yield cell(row, f"the {other} does not read", service, steps, deaf=(other,), **both)
    yield cell(
        row,
        "neither side answers",
        f"{service}-brief",
        [*trigger],
        mute=SIDES,
        **{side: gets(notice[side]) for side in SIDES},
    )


def pings():
    """A side that does not answer a Ping is dead: it is sent a Close, but its data are no longer
    read.
    """
    for side in SIDES:
        other, notice = OTHER[side], SILENT[side]
        row, service = f"the {side} answers no Ping", f"pings-{side}"
        ours = frame(PING, PING_PAYLOAD, mask=OPEN_MASK if side == "pod" else None)
        for name, said in AT_BOUNDARY.items():
            both = {
                side: gets(said(other), ours, UNANSWERED[side]),
                other: gets(said(side), notice),
            }
            yield cell(
                row,
                name,
                service,
                [*says(other, said(other)), *says(side, said(side))],
                mute=(side,),
                **both,
            )
        for name, said in WITHIN.items():
            cut, _ = said(side)
            both = {side: gets(ours, UNANSWERED[side]), other: gets(cut)}
            yield cell(row, f"it is {name}", service, says(side, cut), **both)
        for name, said in WITHIN_SHORT.items():
            cut, rest = said(other)
            steps = [
                *says(other, cut),
                ("quiet", side),
                *says(other, rest),
                ("receives", side, PING),
                ("pongs", side),
                *says(side, WORD[side]),
                *says(side, CLOSE_1000[side]),
            ]
            both = {
                side: gets(cut, rest, ours, CLOSE_1000[other]),
                other: gets(WORD[side], CLOSE_1000[side]),
            }
            yield cell(
                row,
                f"the other {name}: it is pinged only after the frame, and answers",
                service,
                steps,
                **both,
            )
        steps = [("receives", side, PING), *says(side, WORD[side]), *says(side, CLOSE_1000[side])]
        both = {side: gets(ours, CLOSE_1000[other]), other: gets(WORD[side], CLOSE_1000[side])}
        yield cell(row, "but sends data", service, steps, **both)


def stalls():
    """A side that does not read is dead. The data that it still receives contain no Close."""
    for side in SIDES:
        other, notice = OTHER[side], STALLED[side]
        row = f"the {side} does not read"
        states = {name: (said(side), (notice,)) for name, said in AT_BOUNDARY.items()}
        states |= {name: (said(side)[0], ()) for name, said in WITHIN_SHORT.items()}
        for name, (said, last) in states.items():
            steps = [*says(side, said), ("floods", other), ("ended", other), ("reads", side)]
            both = {side: gets(ANY), other: gets(said, *last)}
            yield cell(row, name, "stalls", steps, deaf=(side,), **both)
    steps = [("floods", "client"), ("ended", "client"), ("reads", "pod")]
    both = {"pod": gets(ANY), "client": gets(STALLED["pod"])}
    yield cell(
        "the pod does not read",
        "the client is pinged",
        "stalls-pings",
        steps,
        deaf=("pod",),
        **both,
    )


def limits():
    """A frame over a limit is refused by its header, before any payload is forwarded."""
    for name, said in AT_BOUNDARY.items():
        opcode = 0 if "fragments" in name else 2
        header, payload = split(frame(opcode, bytes(1001), mask=MASK))
        steps = [
            *says("client", said("client")),
            *says("pod", said("pod")),
            ("writes", "client", header),
            ("receives", "client", CLOSE),
            ("writes", "client", payload),
        ]
        yield violation(
            "a frame over the limit",
            name,
            "frames",
            steps,
            FRAME_REASON,
            said("client"),
            said("pod"),
        )
    header, payload = split(frame(2, bytes(1001), mask=MASK))
    steps = [("writes", "client", header[:3]), ("writes", "client", header[3:])]
    yield violation(
        "a frame over the limit",
        "its header alone, in two pieces",
        "frames-brief",
        steps,
        FRAME_REASON,
    )
    steps = [("writes", "client", WORD["client"] + header + payload + WORD["client"])]
    yield violation(
        "a frame over the limit",
        "with bytes in flight",
        "frames",
        steps,
        FRAME_REASON,
        WORD["client"],
    )
    for name, said in WITHIN_SHORT.items():
        cut, rest = said("pod")
        steps = [
            *says("pod", cut),
            ("writes", "client", header + payload),
            ("receives", "pod", CLOSE),
        ]
        ends = [*steps, ("writes", "pod", rest)]
        yield violation(
            "a frame over the limit",
            f"the pod {name}, which it completes",
            "frames",
            ends,
            FRAME_REASON,
            down=cut + rest,
        )
        yield cell(
            "a frame over the limit",
            f"the pod {name}, which it never completes",
            "frames-brief",
            steps,
            client=gets(cut),
            pod=gets(close(1001, FRAME_REASON, to="pod")),
        )
    steps = [
        ("floods", "pod"),
        ("writes", "client", header + payload),
        ("receives", "pod", CLOSE),
        ("reads", "client"),
    ]
    yield violation(
        "a frame over the limit",
        "the client does not read",
        "frames",
        steps,
        FRAME_REASON,
        down=WHOLE,
        deaf=("client",),
    )
    steps = [
        ("floods", "client"),
        ("writes", "client", frame(2, bytes(8193), mask=MASK)),
        ("reads", "pod"),
    ]
    reason = "frame too large: 8193 bytes"
    yield violation(
        "a frame over the limit",
        "the pod does not read",
        "floods",
        steps,
        reason,
        ALL,
        deaf=("pod",),
    )
    yield from message_limits()


def message_limits():
    first = frame(1, bytes(600), fin=False, mask=MASK)
    reason = "message too large: at least 1001 bytes"
    pinged = first + PEER_PING["client"]
    for name, said in (
        ("between two fragments", first),
        ("after a Ping between fragments", pinged),
    ):
        steps = [*says("client", said), ("writes", "client", frame(0, bytes(401), mask=MASK))]
        yield violation("a message over the limit", name, "messages", steps, reason, said)
    steps = [
        *says("client", WORD["client"]),
        ("writes", "client", frame(1, bytes(1001), mask=MASK)),
    ]
    yield violation(
        "a message over the limit", "in one frame", "messages", steps, reason, WORD["client"]
    )
    row, three = "messages over the rate", WORD["client"] * 3
    steps = [("writes", "client", three + WORD["client"] * 2)]
    yield violation(
        row, "with bytes in flight", "rate", steps, "message rate exceeded", three, code=1008
    )
    parts = FIRST["client"] + LAST["client"]
    steps = [("writes", "client", WORD["client"] * 2 + parts + parts)]
    passed = WORD["client"] * 2 + parts + FIRST["client"]
    yield violation(
        row, "between two fragments", "rate", steps, "message rate exceeded", passed, code=1008
    )
    cut, rest = WITHIN["within a frame"]("pod")
    steps = [
        *says("pod", cut),
        ("writes", "client", three + WORD["client"]),
        ("receives", "pod", CLOSE),
        ("writes", "pod", rest),
    ]
    yield violation(
        row,
        "the pod within a frame, which it completes",
        "rate",
        steps,
        "message rate exceeded",
        three,
        down=cut + rest,
        code=1008,
    )


FRAME_REASON = "frame too large: 1001 bytes"


def split(whole):
    """Returns the header of a masked frame of 126 to 65535 bytes, and its payload."""
    return whole[:8], whole[8:]


def violation(row, variant, service, steps, reason, up=b"", down=b"", code=1009, **more):
    """Both sides receive a Close after the forwarded data."""
    both = {
        "client": gets(down, close(code, reason)),
        "pod": gets(up, close(1001, reason, to="pod")),
    }
    return cell(row, variant, service, steps, **both, **more)


def timed_out():
    """Sessions that the balancer ends by a time limit."""
    both = dict.fromkeys(SIDES, 1001)
    yield from balancer_closes("idle time-out", "idle", (), both, "idle timeout")
    both = dict.fromkeys(SIDES, 1012)
    yield from balancer_closes("maximum age", "old", (), both, "maximum session age reached")


DRAIN_CODES = {"client": 1012, "pod": 1001}


def deleted():
    """An operator closes one session."""
    yield from balancer_closes(
        "DELETE of the session", "calm", [("deleted",)], DRAIN_CODES, "closed by an operator"
    )


def moved():
    """An operator drains a service: for all its sessions at once."""
    yield from balancer_closes(
        "move", "moved", [("together",)], DRAIN_CODES, "moved to another pod"
    )


def shutdown():
    """SIGTERM: for all sessions at once."""
    reason = "balancer is shutting down"
    yield from balancer_closes("SIGTERM", "calm", [("together",)], DRAIN_CODES, reason)
    notice = {side: close(code, reason, to=side) for side, code in DRAIN_CODES.items()}
    steps = [("asks",), ("asked",), ("together",), ("replies",), ("switched",)]
    yield cell(
        "SIGTERM",
        "during the handshake",
        "calm",
        steps,
        begun=False,
        client=gets(notice["client"]),
        pod=gets(notice["pod"]),
    )


def in_handshakes():
    """Faults before the pod's 101 is complete, or at the same moment."""
    begin = [("asks",), ("asked",)]
    row = "the client leaves during the handshake"
    early = WORD["client"]
    for name, steps in (
        ("by FIN", [*begin, ("leaves", "client")]),
        ("by RST", [*begin, ("resets", "client")]),
        ("by FIN, with bytes in flight", [("asks", early), ("asked",), ("leaves", "client")]),
        (
            "by FIN, half of the 101 has arrived",
            [*begin, ("replies", 0.5), ("taken", "pod"), ("leaves", "client")],
        ),
        (
            "by RST, half of the 101 has arrived",
            [*begin, ("replies", 0.5), ("taken", "pod"), ("resets", "client")],
        ),
    ):
        yield cell(row, name, "calm", steps, begun=False, client=GONE, pod=gets())
    yield cell(
        row,
        "by a half-close",
        "calm",
        [*begin, ("shuts", "client")],
        begun=False,
        client=gets(),
        pod=gets(),
    )
    row = "the pod dies during the handshake"
    for act, word in (("leaves", "FIN"), ("resets", "RST")):
        for share, when in ((0, "no data"), (0.5, "half of the 101 has arrived")):
            dies = [("replies", share), (act, "pod")]
            expected = gets(refusal("502 Bad Gateway", "the pod could not be reached"))
            yield cell(
                row,
                f"by {word}, {when}",
                "calm",
                [*begin, *dies],
                begun=False,
                client=expected,
                pod=GONE,
            )
            steps = [
                *begin,
                *dies,
                ("asked",),
                ("replies",),
                ("switched",),
                *says("pod", WORD["pod"]),
                *says("client", CLOSE_1000["client"]),
            ]
            both = {
                "client": gets(WORD["pod"], CLOSE_1000["pod"]),
                "pod": gets(CLOSE_1000["client"]),
            }
            yield cell(
                row,
                f"by {word}, {when}, and another takes over",
                "pair",
                steps,
                begun=False,
                **both,
            )
    steps = [*begin, ("replies", 0.5)]
    yield cell(
        "the pod falls silent during the handshake",
        "half of the 101 has arrived",
        "handshakes",
        steps,
        begun=False,
        client=gets(refusal("504 Gateway Timeout", "the pod did not answer in time")),
        pod=gets(),
    )
    row = "the pod dies right behind its 101"
    for act, word in (("leaves", "FIN"), ("resets", "RST")):
        for name, said, last in (
            ("no data", b"", FAREWELLS["pod"]),
            ("with bytes in flight", WORD["pod"], FAREWELLS["pod"]),
            ("between two fragments", FIRST["pod"], FAREWELLS["pod"]),
            ("within a frame", WORD["pod"][:5], b""),
            ("behind its Close", CLOSE_1000["pod"], b""),
        ):
            steps = [*begin, ("replies", 1, said), (act, "pod"), ("switched",)]
            yield cell(
                row,
                f"by {word}, {name}",
                "calm",
                steps,
                begun=False,
                client=gets(said, last),
                pod=GONE,
            )
    row = "the client sends before its 101 and leaves behind it"
    cut = WORD["client"] + FIRST["client"][:5]
    for name, said, last in (
        ("within a frame", cut, b""),
        ("after a message", early, FAREWELLS["client"]),
    ):
        steps = [("asks", said), ("asked",), ("replies",), ("switched",), ("leaves", "client")]
        yield cell(row, name, "calm", steps, begun=False, client=GONE, pod=gets(said, last))


def refusal(status, sentence):
    """Returns the balancer's own answer, without its date."""
    fields = (
        f"content-length: {len(sentence) + 1}",
        "connection: close",
        "content-type: text/plain; charset=utf-8",
    )
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "date: NOW", "", f"{sentence}\n"]).encode()


def cells():
    rows = (
        in_handshakes,
        deaths,
        half_closes,
        own_closes,
        timed_out,
        deleted,
        pings,
        stalls,
        limits,
    )
    return [one for row in rows for one in row()]
