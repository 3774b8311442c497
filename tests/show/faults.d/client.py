"""A client on Python's `websockets`. Lines of standard input are sent as messages; its end sends
Close 1000.

Prints `connected`, a line with the length of each message, and finally, as JSON, how the session
ended.
"""

import json
import sys
import threading

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect


def send(connection):
    try:
        for line in sys.stdin:
            connection.send(line.rstrip("\n"))
        connection.close(1000)
    except ConnectionClosed:
        pass  # the reader reports it


def main(url):
    try:
        connection = connect(url, proxy=None, compression=None, max_size=None, ping_interval=None)
    except InvalidHandshake as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    print("connected", flush=True)
    threading.Thread(target=send, args=(connection,), daemon=True).start()
    while True:
        try:
            message = connection.recv()
        except ConnectionClosed as closed:
            ended = {"code": connection.close_code, "reason": connection.close_reason}
            print(
                json.dumps({**ended, "clean": None not in (closed.rcvd, closed.sent)}), flush=True
            )
            return
        print(f"message {len(message)}", flush=True)


main(sys.argv[1])
