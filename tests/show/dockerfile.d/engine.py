"""The part of Docker's API that Traefik's docker provider uses: containers, labels, addresses.

There is no Docker engine where the tests run. With this stand-in the real Traefik reads the labels
of docker/compose.yml as it would from Docker.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Engine:
    """The API server. `containers` maps a name to its labels and address."""

    def __init__(self, containers):
        inspected = {name: _inspected(name, **facts) for name, facts in containers.items()}
        stopped = self._stopped = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = self.path.partition("?")[0].strip("/").split("/")
                if parts[-1] == "events":
                    self.send_response(200)
                    self.end_headers()
                    stopped.wait()  # no events: these containers do not change
                elif parts[-2:] == ["containers", "json"]:
                    self.answer([{"Id": name, "Names": [f"/{name}"]} for name in inspected])
                elif parts[-1] == "json" and parts[-2] in inspected:
                    self.answer(inspected[parts[-2]])
                else:  # /_ping and /version
                    self.answer(
                        {"Version": "28.0.0", "ApiVersion": "1.48", "MinAPIVersion": "1.24"}
                    )

            do_HEAD = do_GET

            def answer(self, value):
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Api-Version", "1.48")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"tcp://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._stopped.set()
        self._server.shutdown()


def _inspected(name, labels, address):
    return {
        "Id": name,
        "Name": f"/{name}",
        "State": {"Status": "running", "Running": True},
        "Config": {"Hostname": name, "Labels": labels},
        "HostConfig": {"NetworkMode": "bridge"},
        "NetworkSettings": {"Ports": {}, "Networks": {"bridge": {"IPAddress": address}}},
    }
