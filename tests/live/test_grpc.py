"""gRPC through a real gateway, with grpcio's own client and server: calls of each kind, trailers, denials, failures."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.live.harness import Gateway, Host, audit_events, mint, policy, write_policy
from tests.live.harness_http import free_port, wait_for
from tests.protocol.certificates import Authority

LARGE = 3 << 20
SERVICE = "shop.Orders"


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Messages are bytes: what is looked at here is gRPC, not protobuf."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str | bytes]] = []
        self.cancelled = threading.Event()

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


@contextmanager
def shop(directory: Path, host: Host, *, secure: bool = False) -> Iterator[tuple[Service, Gateway, Any]]:
    """Run the service, a gateway before it, and a channel to the gateway."""
    authority, service = Authority(directory), Service()
    certificate, key = authority.issue("localhost")
    with served(service, authority if secure else None) as url:
        made = policy(directory, url, listen={"tls": {"certificate": certificate, "key": key}})
        made["upstreams"]["users"] |= {"protocol": "h2", **({"tls": {"ca": authority.ca}} if secure else {})}
        made["upstreams"]["orders"]["endpoints"] = [f"http://127.0.0.1:{free_port()}"]
        made["upstreams"]["orders"] |= {"protocol": "h2"}
        made["routes"] = [
            {
                "name": "shop",
                "match": {"prefix": f"/{SERVICE}"},
                "upstream": "users",
                "require": {"scopes_all": ["users.read"]},
                "rate_limits": ["per-user"],
            },
            {"name": "gone", "match": {"prefix": "/shop.Gone"}, "upstream": "orders"},
        ]
        with Gateway(write_policy(directory, made), host=host) as gateway:
            credentials = grpc.ssl_channel_credentials(Path(authority.ca).read_bytes())
            with grpc.secure_channel(f"localhost:{gateway.port}", credentials) as channel:
                yield service, gateway, channel


def token(**members: Any) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {mint(**members)}"), ("x-user-id", "eve"))


@pytest.mark.parametrize("secure", [False, True])
def test_calls_of_each_kind(tmp_path: Path, host: Host, secure: bool) -> None:
    with shop(tmp_path, host, secure=secure) as (service, _, channel):
        get = channel.unary_unary(f"/{SERVICE}/Get")
        answer, call = get.with_call(b"x" * LARGE, metadata=token(), timeout=20)
        assert answer == b"got %d: " % LARGE + b"x" * 10
        assert ("x-shop", "open") in call.initial_metadata()
        trailing = dict(call.trailing_metadata())
        assert (trailing["x-cost"], trailing["x-data-bin"]) == ("3", b"\x00\xff")
        assert "x-request-id" not in trailing, "that is the gateway's to say"
        assert service.seen[0]["x-user-id"] == "alice"
        watch = channel.unary_stream(f"/{SERVICE}/Watch")
        assert list(watch(b"", metadata=token(), timeout=20)) == [b"0", b"1", b"2", b"3", b"4"]
        put = channel.stream_unary(f"/{SERVICE}/Put")
        assert put(iter([b"a" * 100_000] * 20), metadata=token(), timeout=20) == b"2000000"
        turn = threading.Event()

        def said() -> Iterator[bytes]:
            yield b"one"
            assert turn.wait(10)
            yield b"two"

        heard = channel.stream_stream(f"/{SERVICE}/Chat")(said(), metadata=token(), timeout=20)
        assert next(heard) == b"re: one"  # before the client has said everything
        turn.set()
        assert list(heard) == [b"re: two"]


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


def test_a_services_own_status_is_passed_on(tmp_path: Path, host: Host) -> None:
    with shop(tmp_path, host) as (_, _, channel):
        fail = channel.unary_unary(f"/{SERVICE}/Fail")
        found = failure(lambda: fail(b"", metadata=token(), timeout=20))
        assert found == (grpc.StatusCode.FAILED_PRECONDITION, "sold out: 100 %")


def test_denials_are_grpc_statuses(tmp_path: Path, host: Host) -> None:
    with shop(tmp_path, host) as (service, gateway, channel):
        get = channel.unary_unary(f"/{SERVICE}/Get")
        code, detail = failure(lambda: get(b"", timeout=20))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert detail.startswith("credential-missing: ")
        code, detail = failure(lambda: get(b"", metadata=token(scope="other"), timeout=20))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        other = channel.unary_unary("/shop.Nowhere/Get")
        assert failure(lambda: other(b"", metadata=token(), timeout=20))[0] is grpc.StatusCode.UNIMPLEMENTED
        assert service.seen == []
        for _ in range(100):
            get(b"", metadata=token(), timeout=20)
        code, detail = failure(lambda: get(b"", metadata=token(), timeout=20))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(service.seen) == 100
        gone = channel.unary_unary("/shop.Gone/Get")
        code, detail = failure(lambda: gone(b"", metadata=token(), timeout=20))
        assert (code, detail.partition(":")[0]) == (grpc.StatusCode.UNAVAILABLE, "upstream-unreachable")
        events = audit_events(tmp_path / "audit.jsonl", 105)
        reasons = [event.get("reason") for event in events if event.get("status") is not None][:3]
        assert reasons == ["credential-missing", "scope-missing", "no-route"]
        assert gateway.process.poll() is None


def test_a_call_that_is_cancelled_is_cancelled_at_the_service(tmp_path: Path, host: Host) -> None:
    with shop(tmp_path, host) as (service, _, channel):
        call = channel.unary_unary(f"/{SERVICE}/Wait").future(b"", metadata=token(), timeout=20)
        wait_for(lambda: bool(service.seen), "the call")
        call.cancel()
        assert service.cancelled.wait(10)
        get = channel.unary_unary(f"/{SERVICE}/Get")
        assert get(b"", metadata=token(), timeout=20) == b"got 0: "
