"""The balancer's settings in `soak`, in seconds and bytes.

Clients and pods break them on purpose.
"""

IDLE = 9
WRITE = 3
CLOSE = 1
HALF_CLOSED = 3
AGE = 15
PING_INTERVAL = 2
PING_TIMEOUT = 3
MESSAGE = 256 << 10
RATE = 200  # messages per second
PODS = 4
FAILING = (
    2  # pods with faults at the same time; retries at the others must hide them from new clients
)
PATIENCE = 30  # seconds to wait for any answer, more than all time-outs together

BALANCER = {
    "idle_timeout": f"{IDLE}s",
    "write_timeout": f"{WRITE}s",
    "close_timeout": f"{CLOSE}s",
    "half_closed_timeout": f"{HALF_CLOSED}s",
    "max_session_age": f"{AGE}s",
    "client_ping_interval": f"{PING_INTERVAL}s",
    "pod_ping_interval": f"{PING_INTERVAL}s",
    "ping_timeout": f"{PING_TIMEOUT}s",
    "max_message_size": MESSAGE,
    "messages_per_second": RATE,
    "retries": PODS - 1,
    "read_timeout": "1s",
    "connect_timeout": "1s",
    "poll_interval": "500ms",
    "poll_timeout": "400ms",
    "eject_time": "500ms",
    "eject_time_max": "2s",
    "cold_time": "1s",
}


def toml(pods, level="info", **changed):
    """Returns the text of the configuration."""
    services = ", ".join(f'"{pod.url}"' for pod in pods)
    lines = [
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in {**BALANCER, **changed}.items()
    ]
    return "\n".join(
        [f"services = [{services}]", "[log]", f'level = "{level}"', "[balancer]", *lines, ""]
    )
