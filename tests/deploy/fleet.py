"""A fleet on hosts of its own, as deploy/haproxy has it: HAProxy, two gateways, a service, a Redis and a client.

        client ── edge ─┬─ gateway-1 ─┬─ service (and the issuer's JWK set)
      198.51.100.0/24   └─ gateway-2 ─┴─ redis          inside: 10.0.0.0/24

The shipped files run as they are; addresses come from the environment, as for any other user.
"""

import contextlib
import csv
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt

from tests.deploy.hosts import PATIENCE, Host, Network
from tests.keys.signing import jwk, private_key
from tests.live.harness import ROOT
from tests.live.harness_http import Answered, request, wait_for
from tests.live.harness_upstream import RecordingUpstream, Reply

HAPROXY = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
POLICY = ROOT / "deploy" / "haproxy" / "policy.yaml"
EDGE_OUTSIDE, EDGE, REDIS, SERVICE = "198.51.100.1", "10.0.0.10", "10.0.0.30", "10.0.0.40"
GATEWAYS = {"gateway-1": "10.0.0.21", "gateway-2": "10.0.0.22"}
CLIENTS = [f"198.51.100.{number}" for number in range(10, 60)]
OFFICE = CLIENTS[-1]
PER_CLIENT = 150
STARTING = 60.0  # seconds, on a busy machine
KEY = private_key("ES256")


def token(subject: str = "alice", scope: str = "orders.read") -> str:
    """Mint a token of the issuer that the policy names."""
    now = int(time.time())
    claims = {"iss": "https://issuer.example", "aud": "api://orders", "sub": subject, "iat": now, "exp": now + 600}
    return jwt.encode(claims | {"scope": scope}, KEY, "ES256", headers={"kid": "one"})


class Fleet:
    """The hosts, running. Made by `fleet`."""

    def __init__(self, network: Network, directory: Path, service: RecordingUpstream, hosts: dict[str, Host]) -> None:
        self.network = network
        self.directory = directory
        self.service = service
        self.hosts = hosts
        self.gateways: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def socket_path(self) -> Path:
        """HAProxy's admin socket."""
        return self.directory / "edge.sock"

    def start_gateway(self, name: str) -> None:
        """Start `serve` on a gateway host."""
        host = self.hosts[name]
        environment = {
            "PYTHONPATH": str(ROOT / "addons"),
            "MITMGATE_HOST": GATEWAYS[name],
            "MITMGATE_EDGE": f"{EDGE}/32",
            "MITMGATE_JWKS_URL": f"http://{SERVICE}:9100/jwks.json",
            "MITMGATE_REDIS_URL": f"redis://{REDIS}:6379/0",
            "MITMGATE_REDIS_TIMEOUT": "2s",  # a busy machine is no outage of Redis
            "MITMGATE_ORDERS": f"http://{SERVICE}:9002",
            "MITMGATE_PER_CLIENT": str(PER_CLIENT),
            "MITMGATE_OFFICE": f"{OFFICE}/32",
            "MITMGATE_AUDIT_FILE": str(host.directory / "audit.jsonl"),
            "MITMGATE_AUDIT_KEY": "a-key-of-the-audit-chain-for-tests-alone",
        }
        # The issuer of this network has no certificate.
        policy = host.directory / "policy.yaml"
        policy.write_text(POLICY.read_text().replace("keys: {jwks_url:", "keys: {plain_http: true, jwks_url:"))
        words = [sys.executable, "-m", "mitmgate", "serve", "--policy", str(policy)]
        if name == "gateway-2":
            words += ["--workers", "2"]  # one host with several processes, one with one
        self.gateways[name] = host.start(words, environment)

    def mend(self) -> None:
        """Start the gateways that don't run, and return when all are in the rotation."""
        for name in GATEWAYS:
            if name not in self.gateways or self.gateways[name].poll() is not None:
                self.start_gateway(name)
        self.wait_for_rotation(*GATEWAYS)

    def start_edge(self, environment: dict[str, str], configuration: Path = HAPROXY) -> None:
        """Start HAProxy on the edge host."""
        own = {"EDGE_CLIENTS": "1000", "GATEWAY_1": GATEWAYS["gateway-1"], "GATEWAY_2": GATEWAYS["gateway-2"]}
        self.hosts["edge"].start(["haproxy", "-db", "-f", str(configuration)], {**own, **environment})

    def in_rotation(self) -> set[str]:
        """Return the gateways that HAProxy sends requests to; before its first check it takes each to be up."""
        up = [row for row in self.servers() if row["status"].startswith("UP")]
        return {row["svname"] for row in up if row["check_status"].removeprefix("* ") == "L7OK"}

    def check(self, name: str) -> str:
        """Return what the last health check of a gateway came to, such as L7OK/200."""
        (row,) = [row for row in self.servers() if row["svname"] == name]
        return f"{row['check_status'].removeprefix('* ')}/{row['check_code']}"

    def servers(self) -> list[dict[str, str]]:
        """Return HAProxy's word on each gateway; nothing while HAProxy is not up."""
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(PATIENCE)
                link.connect(str(self.socket_path))
                link.sendall(b"show stat mitmgate 4 -1\n")
                said = b"".join(iter(lambda: link.recv(65536), b""))
        except OSError:
            return []
        return list(csv.DictReader(io.StringIO(said.decode().removeprefix("# "))))

    def wait_for_rotation(self, *names: str) -> None:
        """Return when just these gateways are in the rotation."""

        def in_rotation() -> bool:
            ended = [name for name in ("edge", *names) if self.hosts[name].processes[-1].poll() is not None]
            assert not ended, f"{ended} ended by themselves"
            return self.in_rotation() == set(names)

        try:
            wait_for(in_rotation, f"{names} to be in the rotation", STARTING)
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n" + "\n".join(host.log[-2000:] for host in self.hosts.values())) from None

    def connect(self, source: str, port: int = 80) -> http.client.HTTPConnection:
        """Connect to the edge from one of the client host's addresses."""
        link = http.client.HTTPConnection(EDGE_OUTSIDE, port, timeout=PATIENCE, source_address=(source, 0))
        with self.hosts["client"].inside():
            link.connect()
        link.auto_open = 0  # a connection opened again would be opened on another host
        return link

    def ask(self, method: str, target: str, source: str = CLIENTS[0], port: int = 80, **options: Any) -> Answered:
        """Send a request on a connection of its own."""
        link = self.connect(source, port)
        try:
            return request(80, method, target, host="api.example", connection=link, **options)
        finally:
            link.close()

    def events(self) -> list[dict[str, Any]]:
        """Return the audit events of requests on both gateways so far, health checks left out."""
        found = []
        for name in GATEWAYS:
            path = self.hosts[name].directory / "audit.jsonl"
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            found += [event | {"gateway": name} for event in map(json.loads, lines) if event["event"] == "request"]
        return [event for event in found if event["reason"] != "health"]

    def event(self, request_id: str) -> dict[str, Any]:
        """Wait for the audit event of one request and return it."""

        def named() -> list[dict[str, Any]]:
            return [event for event in self.events() if event["request_id"] == request_id]

        wait_for(lambda: bool(named()), f"the audit event of {request_id}")
        (event,) = named()
        return event


class Load:
    """Clients that ask one request after the other on kept connections, until the block ends; `statuses` is the tally.

    Each goes on with another address and another user after 60 requests, so that no limit is met.
    """

    def __init__(self, fleet: Fleet, clients: int = 4) -> None:
        self._fleet = fleet
        self._stop = threading.Event()
        self._count = clients
        self._threads: list[threading.Thread] = []
        self.statuses: list[int | str] = []

    def _client(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            link = self._fleet.connect(CLIENTS[20 + (number + turn * self._count) % 30])
            bearer = token(f"load-{number}-{turn}-{time.monotonic()}")
            turn += 1
            for _ in range(60):
                if self._stop.is_set():
                    break
                try:
                    answered = request(80, "GET", "/api/v1/orders/1", token=bearer, connection=link, host="api.example")
                except (OSError, http.client.HTTPException) as error:
                    self.statuses.append(repr(error))
                    break
                self.statuses.append(answered.status)
                time.sleep(0.01)  # a pace, so that the machine has room for what is tested
            link.close()

    def more(self, count: int) -> None:
        """Return when so many requests more have been answered."""
        target = len(self.statuses) + count
        wait_for(lambda: len(self.statuses) >= target, f"{count} more answers")

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self._count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Let each client end with the request that it is waiting for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


@contextlib.contextmanager
def fleet(directory: Path) -> Iterator[Fleet]:
    """Run the fleet until the block ends."""
    with Network(directory) as network:
        hosts = {
            "client": network.host("client", outside=[f"{address}/24" for address in CLIENTS]),
            "edge": network.host("edge", outside=f"{EDGE_OUTSIDE}/24", inside=f"{EDGE}/24"),
            "redis": network.host("redis", inside=f"{REDIS}/24"),
            "service": network.host("service", inside=f"{SERVICE}/24"),
        }
        hosts |= {name: network.host(name, inside=f"{address}/24") for name, address in GATEWAYS.items()}
        keys = json.dumps({"keys": [jwk("ES256", KEY, kid="one", alg="ES256", use="sig")]}).encode()
        with hosts["service"].inside():
            service = RecordingUpstream(port=9002, address=SERVICE)
            issuer = RecordingUpstream(Reply(body=keys), port=9100, address=SERVICE)
        with service, issuer:
            made = Fleet(network, directory, service, hosts)
            redis = ["redis-server", "--bind", REDIS, "--protected-mode", "no", "--save", "", "--appendonly", "no"]
            hosts["redis"].wait_for_log("Ready to accept connections", hosts["redis"].start(redis))
            made.start_edge({"EDGE_SOCKET": str(made.socket_path)})
            made.mend()
            yield made
