"""A gateway process that speaks HTTP/2, with or without TLS, the services behind it, and its audit events."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.live.harness import Gateway, Host, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.node_origin import NodeOrigin
from tests.protocol.raw_http2 import RawHttp2, request_fields

Event = dict[str, Any]


class TlsGateway:
    """The gateway; use it as a context manager. tls: False: it listens without.

    Routes, all public: /held (bodies are held back where they are small), /streamed (never), and with `node` the same
    two under /node, before a stock Node server. limits: of the policy. arguments: of the command line.
    """

    def __init__(
        self,
        directory: Path,
        host: Host,
        *,
        node: bool = False,
        tls: bool = True,
        limits: dict[str, Any] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.upstream = RecordingUpstream()
        self.node = NodeOrigin(directory) if node else None
        self._host: Host = host
        self._tls = tls
        self._limits = limits or {}
        self._arguments = arguments
        self._stack = ExitStack()
        self._marks = 0

    def document(self) -> dict[str, Any]:
        """Make the policy."""
        authority = Authority(self.directory)
        self.ca = authority.ca if self._tls else None
        certificate, key = authority.issue("gateway.test")
        listen = {"tls": {"certificate": certificate, "key": key}} if self._tls else {}
        made = policy(self.directory, self.upstream, listen=listen, limits=self._limits)
        made["routes"] = []
        services = {"": "users"}
        if self.node is not None:
            made["upstreams"]["node"] = {"endpoints": [self.node.url]}
            services["/node"] = "node"
        for prefix, service in services.items():
            for name, stream in (("held", "auto"), ("streamed", "always")):
                route = {"match": {"prefix": f"{prefix}/{name}"}, "upstream": service, "auth": "none"}
                made["routes"].append({"name": f"{service}-{name}", "stream": stream, "max_body": "10MiB", **route})
        return made

    def __enter__(self) -> Self:
        self._stack.enter_context(self.upstream)
        if self.node is not None:
            self._stack.enter_context(self.node)
        path = write_policy(self.directory, self.document())
        self.gateway = self._stack.enter_context(Gateway(path, host=self._host, arguments=self._arguments))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, value, tb)

    def connect(self, **options: Any) -> RawHttp2:
        """Open an HTTP/2 connection."""
        return RawHttp2(self.gateway.port, self.ca, **options)

    def events(self) -> list[Event]:
        """Return the audit events of requests so far."""
        path = self.directory / "audit.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == "request"]

    def mark(self) -> int:
        """Return how many events there are, when those of all requests that have ended are."""
        self._marks += 1
        self.upstream.forget()
        path = f"/held/mark/{self._marks}"
        with self.connect() as client:
            client.response(client.request(request_fields("GET", path)))
        wait_for(lambda: any(event.get("path") == path for event in self.events()), "the event of a mark")
        self.upstream.forget()
        return len(self.events())

    def event(self, wanted: Callable[[Event], bool], *, after: int = 0) -> Event:
        """Wait for the one audit event that is wanted, of those after so many; a second one fails."""
        wait_for(lambda: any(map(wanted, self.events()[after:])), "an audit event")
        (found,) = filter(wanted, self.events()[after:])
        return found
