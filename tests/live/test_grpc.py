"""gRPC through a real gateway, with grpcio's own client and server: calls of each kind, trailers, denials, failures."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_http import free_port, wait_for
from tests.protocol.certificates import Authority

LARGE = 3 << 20


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Messages are bytes: what is looked at here is gRPC, not protobuf."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str | bytes]] = []
        self.waiting, self.cancelled = threading.Event(), threading.Event()

    def service(self, call: Any) -> Any:
        """Find the handler of a call."""
        self.seen.append(dict(call.invocation_metadata))
        handlers: dict[str, Any] = {
            "Get": grpc.unary_unary_rpc_method_handler(self.get),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            "Put": grpc.stream_unary_rpc_method_handler(lambda messages, context: b"%d" % sum(map(len, messages))),
            "Chat": grpc.stream_stream_rpc_method_handler(
                lambda messages, context: (b"re: " + one for one in messages)
            ),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
        }
        return handlers.get(call.method.rpartition("/")[2])

    @staticmethod
    def get(message: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("x-shop", "open"),))
        context.set_trailing_metadata((("x-cost", "3"), ("x-data-bin", b"\x00\xff"), ("x-request-id", "forged")))
        return b"got %d: " % len(message) + message[:10]

    @staticmethod
    def watch(message: bytes, context: Any) -> Iterator[bytes]:
        for number in range(5):
            yield b"%d" % number

    @staticmethod
    def fail(message: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "sold out: 100 %")
        return b""

    def wait(self, message: bytes, context: Any) -> bytes:
        if not context.add_callback(self.cancelled.set):  # cancelled before it has begun
            self.cancelled.set()
        self.waiting.set()
        self.cancelled.wait(20)
        return b""


@contextmanager
def served(service: Service, authority: Authority | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(16), handlers=[service])
    if authority is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        certificate, key = (Path(name).read_bytes() for name in authority.issue("localhost"))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    try:
        yield f"http://127.0.0.1:{port}" if authority is None else f"https://localhost:{port}"
    finally:
        server.stop(None).wait(10)


@dataclass
class Shop:
    """The service, the same behind TLS, a gateway before them, and a channel to it."""

    plain: Service
    secure: Service
    gateway: Gateway
    channel: Any


@pytest.fixture(scope="module", params=["serve", "web"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Run all of it, for all tests; each has a user of its own. One host listens with TLS, the other without."""
    directory = tmp_path_factory.mktemp("grpc")
    authority, plain, secure = Authority(directory), Service(), Service()
    certificate, key = authority.issue("localhost")
    needs = {"require": {"scopes_all": ["users.read"]}, "rate_limits": ["per-user"]}
    with served(plain, None) as url, served(secure, authority) as secure_url:
        secured = request.param == "serve"
        made = policy(directory, url, listen={"tls": {"certificate": certificate, "key": key}} if secured else {})
        made["upstreams"] = {
            "plain": {"endpoints": [url], "protocol": "h2"},
            "secure": {"endpoints": [secure_url], "protocol": "h2", "tls": {"ca": authority.ca}},
            "gone": {"endpoints": [f"http://127.0.0.1:{free_port()}"], "protocol": "h2"},
        }
        made["routes"] = [
            {"name": name, "match": {"prefix": f"/{name}.Orders"}, "upstream": name, **needs}
            for name in made["upstreams"]
        ]
        with Gateway(write_policy(directory, made), host=request.param) as gateway:
            credentials = grpc.ssl_channel_credentials(Path(authority.ca).read_bytes())
            address = f"localhost:{gateway.port}"
            with grpc.secure_channel(address, credentials) if secured else grpc.insecure_channel(address) as channel:
                yield Shop(plain, secure, gateway, channel)


def token(user: str = "alice", **members: Any) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {mint(user, **members)}"), ("x-user-id", "eve"))


@pytest.mark.parametrize("name", ["plain", "secure"])
def test_calls_of_each_kind(shop: Shop, name: str) -> None:
    service: Service = getattr(shop, name)
    with shared(shop, service) as channel:
        get = channel.unary_unary(f"/{name}.Orders/Get")
        answer, call = get.with_call(b"x" * LARGE, metadata=token(), timeout=20)
        assert answer == b"got %d: " % LARGE + b"x" * 10
        assert ("x-shop", "open") in call.initial_metadata()
        trailing = dict(call.trailing_metadata())
        assert (trailing["x-cost"], trailing["x-data-bin"]) == ("3", b"\x00\xff")
        assert "x-request-id" not in trailing, "that is the gateway's to say"
        assert service.seen[0]["x-user-id"] == "alice"
        watch = channel.unary_stream(f"/{name}.Orders/Watch")
        assert list(watch(b"", metadata=token(), timeout=20)) == [b"0", b"1", b"2", b"3", b"4"]
        put = channel.stream_unary(f"/{name}.Orders/Put")
        assert put(iter([b"a" * 100_000] * 20), metadata=token(), timeout=20) == b"2000000"
        turn = threading.Event()

        def said() -> Iterator[bytes]:
            yield b"one"
            assert turn.wait(10)
            yield b"two"

        heard = channel.stream_stream(f"/{name}.Orders/Chat")(said(), metadata=token(), timeout=20)
        assert next(heard) == b"re: one"  # before the client has said everything
        turn.set()
        assert list(heard) == [b"re: two"]


@contextmanager
def shared(shop: Shop, service: Service) -> Iterator[Any]:
    """Lend the channel to a test; the service forgets what it saw before."""
    service.seen.clear()
    service.waiting.clear()
    service.cancelled.clear()
    yield shop.channel
    assert shop.gateway.process.poll() is None


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


def test_a_services_own_status_is_passed_on(shop: Shop) -> None:
    with shared(shop, shop.plain) as channel:
        fail = channel.unary_unary("/plain.Orders/Fail")
        found = failure(lambda: fail(b"", metadata=token(), timeout=20))
        assert found == (grpc.StatusCode.FAILED_PRECONDITION, "sold out: 100 %")


def test_denials_are_grpc_statuses(shop: Shop) -> None:
    service = shop.plain
    with shared(shop, service) as channel:
        get = channel.unary_unary("/plain.Orders/Get")
        code, detail = failure(lambda: get(b"", timeout=20))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert detail.startswith("credential-missing: ")
        code, detail = failure(lambda: get(b"", metadata=token("bob", scope="other"), timeout=20))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        other = channel.unary_unary("/nowhere.Orders/Get")
        assert failure(lambda: other(b"", metadata=token("bob"), timeout=20))[0] is grpc.StatusCode.UNIMPLEMENTED
        assert service.seen == []
        for _ in range(100):
            get(b"", metadata=token("bob"), timeout=20)
        code, detail = failure(lambda: get(b"", metadata=token("bob"), timeout=20))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(service.seen) == 100
        gone = channel.unary_unary("/gone.Orders/Get")
        code, detail = failure(lambda: gone(b"", metadata=token("carol"), timeout=20))
        assert (code, detail.partition(":")[0]) == (grpc.StatusCode.UNAVAILABLE, "upstream-unreachable")
        audit = shop.gateway.policy_path.with_name("audit.jsonl")
        for reason in ("credential-missing", "scope-missing", "no-route", "quota-exceeded", "upstream-unreachable"):
            wait_for(lambda word=f'"{reason}"': word in audit.read_text(), f"{reason} on record")  # type: ignore[misc]


def test_a_call_that_is_cancelled_is_cancelled_at_the_service(shop: Shop) -> None:
    service = shop.plain
    with shared(shop, service) as channel:
        call = channel.unary_unary("/plain.Orders/Wait").future(b"", metadata=token(), timeout=20)
        wait_for(service.waiting.is_set, "its handler: one that is cancelled before its message is read has none")
        call.cancel()
        assert service.cancelled.wait(10)
        get = channel.unary_unary("/plain.Orders/Get")
        assert get(b"", metadata=token(), timeout=20) == b"got 0: "
