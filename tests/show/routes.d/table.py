"""The cases of `routes`: request targets, and the differences of HAProxy and Traefik.

A target without an explanation must give the same result, one with an explanation a different one.
"""

# Targets sent through every proxy, which has a route, an ACL or a rule for `/ws`.
TARGETS = [
    "/ws", "/ws/", "/ws?a=b", "/ws?", "/ws/?", "/ws/echo?a=b", "/ws/a%20b?x=%2F", "/ws/a%2Fb",
    "/ws/a;b=1,c", "/ws/a%3Bb", "/ws/a%25b", "/ws/a+b?c+d&&e=", "/ws/a:b@c!$&'()*",
    "/ws/x/", "/ws/ws/x", "/ws/x?/ws/y",
    "/ws/x?y=/../z", "/ws/...", "/ws/..x", "/ws/.x", "/ws/x..", "/", "/x/ws", "/w", "/WS/x",
    "/ws/%7Ex", "/ws/%c3%a9", "/ws/a%2fb",
    "/ws//x", "/ws//", "/ws/x//y", "//ws/x",
    "/wsx", "/ws.x", "/ws-1/x", "/ws%2Fx",
    "/%77s/x", "/w%73",
    "/ws/.", "/ws/./x", "/ws/../x", "/ws/..", "/ws/%2e%2e/x", "/x/../ws/y", "/../ws",
]  # fmt: skip

COMPARES_CHARACTERS = "compares characters where wsbalancer compares whole segments"
PASSES_DOTS = "forwards dot segments, and chooses the service by the unresolved path"
RESOLVES_DOTS = "resolves dot segments and routes the result; wsbalancer refuses them"
MERGES_SLASHES = (
    "merges slashes (sanitizePath); wsbalancer does so only at the start of a stripped path"
)
NORMALISES_ENCODING = (
    "normalises percent-encoding, as RFC 3986 §6.2.2 allows; wsbalancer leaves it unchanged"
)
DECODES_UNRESERVED = "decodes unreserved characters before comparing"

LONGER_NAMES = ["/wsx", "/ws.x", "/ws-1/x", "/ws%2Fx"]
DOTS = ["/ws/.", "/ws/./x", "/ws/../x", "/ws/..", "/ws/%2e%2e/x", "/x/../ws/y", "/../ws"]

# Differences in the chosen service, for `use_backend chat if { path_beg /ws }`.
HAPROXY = dict.fromkeys(LONGER_NAMES, COMPARES_CHARACTERS) | dict.fromkeys(DOTS, PASSES_DOTS)

# Differences in the pod's target, for PathPrefix(`/ws`) with StripPrefix or ReplacePath.
TRAEFIK = {
    **dict.fromkeys(LONGER_NAMES, COMPARES_CHARACTERS),
    **dict.fromkeys(DOTS, RESOLVES_DOTS),
    **dict.fromkeys(["/ws//x", "/ws//", "/ws/x//y", "//ws/x"], MERGES_SLASHES),
    **dict.fromkeys(["/ws/%7Ex", "/ws/%c3%a9", "/ws/a%2fb"], NORMALISES_ENCODING),
    **dict.fromkeys(["/%77s/x", "/w%73"], DECODES_UNRESERVED),
}

# Targets that are refused if there are routes. Without routes they reach the pod unchanged.
REFUSED = [
    *DOTS,
    "/ws/%2E%2E/x",
    "/ws/.%2e/x",
    "/ws/%2E",
    "/ws/a/../b",
    "/.",
    "/..",
    "/%2e",
    "/ws/../../x?y",
]
ACCEPTED = ["/ws/...", "/ws/.x", "/ws/..x", "/ws/x..", "/ws/%2e%2e%2e", "/ws/x?/../", "/ws?.."]

# Host field, target and method, and the expected service.
HOSTS = [
    ("chat.example.org", "/", "GET", "chat"),
    ("chat.example.org:8080", "/any/where", "GET", "chat"),
    ("CHAT.Example.ORG", "/", "GET", "chat"),
    ("a.example.org", "/", "GET", "wild"),
    ("a.b.example.org", "/", "GET", "wild"),
    ("a.chat.example.org", "/", "GET", "wild"),
    ("a.eu.example.org", "/", "GET", "europe"),
    ("b.a.eu.example.org:1", "/", "GET", "europe"),
    ("eu.example.org", "/", "GET", "wild"),
    ("chat.example.org", "/admin", "GET", "chat-admin"),
    ("chat.example.org", "/admin/x?y", "GET", "chat-admin"),
    ("chat.example.org", "/administrator", "GET", "chat"),
    ("a.example.org", "/admin", "GET", "wild"),
    ("other.net", "/admin", "GET", "admin"),
    ("other.net", "/admin", "PUT", "put-admin"),
    ("other.net", "/admin/deep/x", "PUT", "deep"),
    ("other.net", "/admin/deep/x", "GET", "deep"),
    ("chat.example.org", "/", "PUT", "chat"),
    ("other.net", "/only", "POST", "posts"),
    ("other.net", "/only", "PUT", "posts"),
    ("other.net", "/only", "GET", None),
    ("other.net", "/only", "HEAD", None),
    ("other.net", "/only", "post", None),
    ("example.org", "/", "GET", None),
    ("chat.example.org.other.net", "/", "GET", None),
    ("xchat.example.orga", "/", "GET", None),
    ("other.net", "/", "GET", None),
    ("127.0.0.1", "/", "GET", None),
    ("[::1]:80", "/", "GET", None),
]

HOST_ROUTES = [
    {"host": "chat.example.org", "service": "chat"},
    {"host": "*.example.org", "service": "wild"},
    {"host": "*.eu.example.org", "service": "europe"},
    {"host": "chat.example.org", "path_prefix": "/admin", "service": "chat-admin"},
    {"path_prefix": "/admin", "service": "admin"},
    {"path_prefix": "/admin", "methods": ["PUT"], "service": "put-admin"},
    {"path_prefix": "/admin/deep", "service": "deep"},
    {"path_prefix": "/only", "methods": ["POST", "PUT"], "service": "posts"},
]


def origins(port):
    """Returns `allowed_origins`, and for each tested origin whether it may open a WebSocket."""
    allowed = [f"http://chat.example.org:{port}", "https://*.example.com"]
    return allowed, [
        (f"http://chat.example.org:{port}", True),
        (f"https://chat.example.org:{port}", False),
        ("http://chat.example.org", False),
        (f"http://chat.example.org:{port - 1}", False),
        (f"http://evil.example.net:{port}", False),
        (f"http://chat.example.org.evil.net:{port}", False),
        ("https://a.example.com", True),
        ("https://a.b.example.com", True),
        ("https://example.com", False),
        ("https://evilexample.com", False),
        ("https://a.example.com.evil.net", False),
        ("https://a.example.com:8443", False),
        ("http://a.example.com", False),
        ("null", False),
        (None, True),
    ]


# Routes that `wsbalancer check` must refuse, and words that its message must contain.
SERVICES = {
    "chat": {"backends": ["http://127.0.0.1:3001"]},
    "web": {"backends": ["http://127.0.0.1:3002"]},
}
GOOD = {"host": "chat.example.org", "path_prefix": "/ws", "methods": ["GET"], "service": "chat"}
CHECKS = [
    ("two different routes", [GOOD, {**GOOD, "methods": ["PUT"]}, {"service": "web"}], None),
    ("the same host, prefix and methods", [GOOD, {"service": "web"}, {**GOOD, "service": "web"}],
     ["routes.0", "routes.2"]),
    ("the same host and prefix, a method in both", [GOOD, {**GOOD, "methods": ["PUT", "GET"]}],
     ["routes.0", "routes.1"]),
    ("two routes for everything", [{"service": "web"}, {"service": "chat"}],
     ["routes.0", "routes.1"]),
    ("two services and no route", [], ["routes"]),
    ("an unknown service", [GOOD, {"service": "chta"}], ["routes.1.service", "chta"]),
    ("an unknown key", [{**GOOD, "strip_perfix": "/ws"}], ["routes.0.strip_perfix"]),
    ("strip_prefix and replace_path", [{**GOOD, "strip_prefix": "/ws", "replace_path": "/"}],
     ["strip_prefix", "replace_path"]),
    ("strip_prefix is not a prefix of path_prefix", [{**GOOD, "strip_prefix": "/w"}],
     ["routes.0.strip_prefix", '"/w"']),
    ("no service", [{"path_prefix": "/ws"}], ["routes.0.service"]),
]  # fmt: skip
