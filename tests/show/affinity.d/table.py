"""The cookie's attributes, Cookie fields as clients send them, and invalid settings."""

NAME = "wsbalancer"
KEY = "the first key, 0123456789"
COOKIE = f'affinity = "cookie"\ncookie_key = "{KEY}"'
FIELD = "X-Room"

# Settings, the forwarded fields, what the client sends, and the expected attributes.
PLAIN = {"path": "/", "httponly": "", "samesite": "Lax"}
SECURE = {**PLAIN, "secure": ""}
PROXY = {"server": 'trusted_proxies = ["127.0.0.1"]'}
HTTPS = ["X-Forwarded-Proto: https"]
ATTRIBUTES = [
    ("by default", "", {}, [], PLAIN),
    ("cookie_secure = true", 'cookie_secure = "true"', {}, [], SECURE),
    (
        "cookie_secure = false, https at the trusted proxy",
        'cookie_secure = "false"',
        PROXY,
        HTTPS,
        PLAIN,
    ),
    (
        "cookie_secure = auto, https at the trusted proxy",
        'cookie_secure = "auto"',
        PROXY,
        HTTPS,
        SECURE,
    ),
    ("the same, as Traefik says it of WebSockets", "", PROXY, ["X-Forwarded-Proto: wss"], SECURE),
    (
        "cookie_secure = auto, http at the trusted proxy",
        "",
        PROXY,
        ["X-Forwarded-Proto: http"],
        PLAIN,
    ),
    ("cookie_secure = auto, the trusted proxy says nothing", "", PROXY, [], PLAIN),
    ("cookie_secure = auto, https by an untrusted peer", "", {}, HTTPS, PLAIN),
    (
        "cookie_http_only = false",
        "cookie_http_only = false",
        {},
        [],
        {"path": "/", "samesite": "Lax"},
    ),
    (
        "cookie_same_site = strict",
        'cookie_same_site = "strict"',
        {},
        [],
        {**PLAIN, "samesite": "Strict"},
    ),
    (
        "cookie_same_site = none",
        'cookie_same_site = "none"\ncookie_secure = "true"',
        {},
        [],
        {**SECURE, "samesite": "None"},
    ),
    ("cookie_path", 'cookie_path = "/ws/deep"', {}, [], {**PLAIN, "path": "/ws/deep"}),
    ("cookie_max_age = 1h", 'cookie_max_age = "1h"', {}, [], {**PLAIN, "max-age": "3600"}),
    ("cookie_name", 'cookie_name = "__pod.1"', {}, [], PLAIN),
]


def _bearing(value):
    return f"Cookie: {NAME}={value}"


def many(good, bad, other):
    """Returns Cookie fields and the expected results. `good` is the cookie of the client's pod,
    `other` that of another pod.
    """
    followed, invalid, absent, either = "followed", "invalid", "absent", "either"
    return [
        ("a bad one, then the good one", [f"Cookie: {NAME}={bad}; {NAME}={good}"], followed),
        ("the good one, then a bad one", [f"Cookie: {NAME}={good}; {NAME}={bad}"], followed),
        ("a bad one and the good one in two fields", [_bearing(bad), _bearing(good)], followed),
        ("the good one and a bad one in two fields", [_bearing(good), _bearing(bad)], followed),
        ("the good one twice", [f"Cookie: {NAME}={good}; {NAME}={good}"], followed),
        ("no value, then the good one", [f"Cookie: {NAME}=; {NAME}={good}"], followed),
        ("two bad ones", [f"Cookie: {NAME}={bad}; {NAME}={bad[::-1]}"], invalid),
        ("others around it", [f"Cookie: a=1; {NAME}={good}; b=2"], followed),
        ("others around it, without blanks", [f"Cookie: a=1;{NAME}={good};b=2"], followed),
        ("more blanks", [f"Cookie:    a=1;   {NAME}={good}  ;  b=2  "], followed),
        ("others in other fields", ["Cookie: a=1", _bearing(good), "Cookie: b=2; c=3"], followed),
        ("fields in other case", [f"cookie: a=1; {NAME}={good}", "COOKIE: b=2"], followed),
        ("one beside it that is none", [f'Cookie: ;;=; a; =b; {NAME}={good}; ; "x=y;'], followed),
        ("a cookie beside it with non-ASCII text", [f"Cookie: a=Grüße; {NAME}={good}"], followed),
        (
            "300 others before it",
            [f"Cookie: {'; '.join(f'c{n}={n}' for n in range(300))}; {NAME}={good}"],
            followed,
        ),
        (
            "names that only look like it",
            [f"Cookie: x{NAME}={good}; {NAME}x={good}; x={NAME}={good}"],
            absent,
        ),
        ("its name in capitals", [f"Cookie: {NAME.upper()}={good}"], absent),
        ("no cookies in the field", ["Cookie: "], absent),
        (
            "other fields",
            [f"{name}: {NAME}={good}" for name in ("Set-Cookie", "X-Cookie", "Cookie2")],
            absent,
        ),
        ("no value", [_bearing("")], either),
        ("its name only", [f"Cookie: {NAME}"], either),
        ("in quotes", [f'Cookie: {NAME}="{good}"'], either),
        ("empty quotes", [f'Cookie: {NAME}=""'], either),
        ("blanks around =", [f"Cookie: {NAME} = {good}"], either),
        ("with a comma", [f"Cookie: a=1, {NAME}={good}"], either),
        ("two pods' cookies", [f"Cookie: {NAME}={other}; {NAME}={good}"], "one of them"),
    ]


SECRET = "never-shown-0123456789"
MISTAKES = [
    (
        "a short cookie_key",
        'affinity = "cookie"\ncookie_key = "too-short-7Kq"',
        "cookie_key",
        "too-short-7Kq",
    ),
    ("header without affinity_header", 'affinity = "header"', "affinity_header", None),
    ("replicas = 2, cookies, no key", 'affinity = "cookie"\nreplicas = 2', "cookie_key", None),
    (
        "cookie_same_site = none, cookie_secure = false",
        'affinity = "cookie"\ncookie_same_site = "none"\ncookie_secure = "false"',
        "cookie_same_site|cookie_secure",
        None,
    ),
    (
        "a cookie_name with characters that a token may not have",
        'affinity = "cookie"\ncookie_name = "a pod;x"',
        "cookie_name",
        None,
    ),
    ("an empty cookie_name", 'affinity = "cookie"\ncookie_name = ""', "cookie_name", None),
    (
        "a cookie_path with more in it",
        'affinity = "cookie"\ncookie_path = "/; Domain=a.example"',
        "cookie_path",
        None,
    ),
    ("an affinity that is none", 'affinity = "cookies"', "affinity", None),
    ("a key and a mistake", f'cookie_key = "{SECRET}"\naffinity = "x"', "affinity", SECRET),
]
RIGHT = [
    (
        "a key of 16 characters",
        'affinity = "cookie"\ncookie_key = "0123456789abcdef"',
        "0123456789abcdef",
    ),
    ("a long key", f'affinity = "cookie"\ncookie_key = "{SECRET}"\nreplicas = 2', SECRET),
    ("header with its name", f'affinity = "header"\naffinity_header = "{FIELD}"', None),
    ("replicas = 2 without cookies", 'affinity = "address"\nreplicas = 2', None),
    (
        "cookie_same_site = none, cookie_secure = true",
        'affinity = "cookie"\ncookie_same_site = "none"\ncookie_secure = "true"',
        None,
    ),
]
