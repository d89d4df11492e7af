"""A DNS server on 127.0.0.1 whose answers a test changes while it runs."""

import socket
import threading
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

HANG = "hang"
"""No answer at all."""


class DnsServer:
    """Answers over UDP. records: by name, addresses or an rcode's name or HANG; what is not there is NXDOMAIN.

    families: the same for one record type of a name ("A", "AAAA"), before `records`. asked: every question, in order.
    """

    def __init__(self, records: dict[str, tuple[str, ...] | str] | None = None, ttl: int = 1) -> None:
        self.records = dict(records or {})
        self.families: dict[tuple[str, str], tuple[str, ...] | str] = {}
        self.ttl = ttl
        self.asked: list[tuple[str, str]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def times(self, name: str) -> int:
        """How often the IPv4 addresses of a name were asked for."""
        return self.asked.count((name, "A"))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
            stopper.sendto(b"", self.address)
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, peer = self._socket.recvfrom(4096)
            if not data:
                return
            answer = self._answer(data)
            if answer is not None:
                self._socket.sendto(answer, peer)

    def _answer(self, data: bytes) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, family = str(question.name).lower().rstrip("."), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, family))
        said = self.families.get((name, family), self.records.get(name, "NXDOMAIN"))
        if said == HANG:
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if isinstance(said, str):
            response.set_rcode(dns.rcode.from_text(said))
            soa = dns.rrset.from_text(question.name, 300, "IN", "SOA", "ns.test. root.test. 1 3600 600 86400 300")
            response.authority.append(soa)
        else:
            fitting = [address for address in said if (":" in address) == (family == "AAAA")]
            # Each by itself: records of one set are shuffled when they are written.
            response.answer += [dns.rrset.from_text(question.name, self.ttl, "IN", family, one) for one in fitting]
        return response.to_wire()
