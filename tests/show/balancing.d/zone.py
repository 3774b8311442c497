"""A name server on UDP for one name, as the DNS of a headless service (RFC 1035 §4)."""

import asyncio
import ipaddress

NAME = "pods.example.org"
A, IN = 1, 1


class Zone(asyncio.DatagramProtocol):
    """The name server. It answers with the addresses of `pods`; `asked` counts the queries."""

    def __init__(self, pods, ttl=1):
        self.pods, self.ttl = pods, ttl
        self.asked = 0

    async def start(self):
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.address = "{}:{}".format(*self.transport.get_extra_info("sockname"))
        return self

    @property
    def source(self):
        """Returns the discovery setting of the service."""
        port = self.pods[0].address.rsplit(":", 1)[1]
        return f'discovery = {{ dns = "http://{NAME}:{port}" }}\nnameservers = ["{self.address}"]'

    def datagram_received(self, query, peer):
        end = query.index(b"\0", 12) + 5  # after the question's name, type and class
        question = query[12:end]
        kind = int.from_bytes(question[-4:-2], "big")
        known = question[:-4].lower() == encoded(NAME)
        records = [self.record(pod) for pod in self.pods] if known and kind == A else []
        self.asked += bool(records)
        # Authoritative, with the recursion flag of the query; NXDOMAIN for other names.
        flags = 0x8480 | (query[2] & 1) << 8 | (0 if known else 3)
        counts = [flags, 1, len(records), 0, 0]
        head = query[:2] + b"".join(count.to_bytes(2, "big") for count in counts)
        self.transport.sendto(head + question + b"".join(records), peer)

    def record(self, pod):
        address = ipaddress.ip_address(pod.address.rsplit(":", 1)[0]).packed
        fields = [(0xC00C, 2), (A, 2), (IN, 2), (self.ttl, 4), (len(address), 2)]
        return b"".join(value.to_bytes(size, "big") for value, size in fields) + address


def encoded(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
