"""Targets, and how HAProxy and Traefik treat them otherwise than wsbalancer, and why.

Whatever is not explained here must come out the same, and whatever is must differ.
"""

# Sent through every proxy, with a route, an ACL or a rule for `/ws`.
TARGETS = [
    "/ws", "/ws/", "/ws?a=b", "/ws?", "/ws/?", "/ws/echo?a=b", "/ws/a%20b?x=%2F", "/ws/a%2Fb",
    "/ws/a;b=1,c",
    "/ws/a%3Bb", "/ws/a%25b", "/ws/a+b?c+d&&e=", "/ws/a:b@c!$&'()*", "/ws/x/", "/ws/ws/x",
    "/ws/x?/ws/y",
    "/ws/x?y=/../z", "/ws/...", "/ws/..x", "/ws/.x", "/ws/x..", "/", "/x/ws", "/w", "/WS/x",
    "/ws/%7Ex", "/ws/%c3%a9", "/ws/a%2fb",
    "/ws//x", "/ws//", "/ws/x//y", "//ws/x",
    "/wsx", "/ws.x", "/ws-1/x", "/ws%2Fx",
    "/%77s/x", "/w%73",
    "/ws/.", "/ws/./x", "/ws/../x", "/ws/..", "/ws/%2e%2e/x", "/x/../ws/y", "/../ws",
]  # fmt: skip

SEGMENTS = "compares letters where wsbalancer compares whole segments"
PASSES_DOTS = "hands dot segments on, the service being that of the path before they are resolved"
RESOLVES_DOTS = "resolves dot segments and routes what is left; wsbalancer refuses them"
MERGES = "merges slashes (sanitizePath); wsbalancer does so at the start of a stripped path only"
RESPELLS = (
    "writes percent-encoding anew, as RFC 3986 §6.2.2 allows; wsbalancer leaves it as it came"
)
DECODES = "decodes unreserved characters before it compares"

LETTERS = ["/wsx", "/ws.x", "/ws-1/x", "/ws%2Fx"]
DOTS = ["/ws/.", "/ws/./x", "/ws/../x", "/ws/..", "/ws/%2e%2e/x", "/x/../ws/y", "/../ws"]

# Which service: `use_backend chat if { path_beg /ws }`.
HAPROXY = dict.fromkeys(LETTERS, SEGMENTS) | dict.fromkeys(DOTS, PASSES_DOTS)

# What the pod sees: PathPrefix(`/ws`) with StripPrefix or ReplacePath.
TRAEFIK = {
    **dict.fromkeys(LETTERS, SEGMENTS),
    **dict.fromkeys(DOTS, RESOLVES_DOTS),
    **dict.fromkeys(["/ws//x", "/ws//", "/ws/x//y", "//ws/x"], MERGES),
    **dict.fromkeys(["/ws/%7Ex", "/ws/%c3%a9", "/ws/a%2fb"], RESPELLS),
    **dict.fromkeys(["/%77s/x", "/w%73"], DECODES),
}

# Refused wherever there are routes; the same without routes reach the pod as they are.
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
LET_THROUGH = ["/ws/...", "/ws/.x", "/ws/..x", "/ws/x..", "/ws/%2e%2e%2e", "/ws/x?/../", "/ws?.."]

# Host field, target and method, and the service they lead to.
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
    """Whether each may open a socket, where those of `allowed_origins` may."""
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


# Routes that `check` must refuse, and what its message must name.
SERVICES = {
    "chat": {"backends": ["http://127.0.0.1:3001"]},
    "web": {"backends": ["http://127.0.0.1:3002"]},
}
GOOD = {"host": "chat.example.org", "path_prefix": "/ws", "methods": ["GET"], "service": "chat"}
CHECKS = [
    ("two routes that differ", [GOOD, {**GOOD, "methods": ["PUT"]}, {"service": "web"}], None),
    ("the same host, prefix and methods", [GOOD, {"service": "web"}, {**GOOD, "service": "web"}],
     ["routes.0", "routes.2"]),
    ("the same host and prefix, a method in both", [GOOD, {**GOOD, "methods": ["PUT", "GET"]}],
     ["routes.0", "routes.1"]),
    (("two routes for "
"everything"), [{"service": "web"}, {"service": "chat"}], ["routes.0", "routes.1"]),
    ("two services and no route", [], ["routes"]),
    ("an unknown service", [GOOD, {"service": "chta"}], ["routes.1.service", "chta"]),
    ("an unknown key", [{**GOOD, "strip_perfix": "/ws"}], ["routes.0.strip_perfix"]),
    ("strip_prefix and replace_path", [{**GOOD, "strip_prefix": "/ws", "replace_path": "/"}],
     ["strip_prefix", "replace_path"]),
    ("strip_prefix that path_prefix does not begin with", [{**GOOD, "strip_prefix": "/w"}],
     ["routes.0.strip_prefix", '"/w"']),
    ("no service", [{"path_prefix": "/ws"}], ["routes.0.service"]),
]  # fmt: skip
