"""Protected resources: where their metadata is (RFC 9728, section 3.1), and which one a request is for."""

import pytest

from mitmgate.core.resource import Resource, Resources


def resource(path: str, host: str = "api.example") -> Resource:
    return Resource(f"https://{host}:8443", host, path, path.encode())


@pytest.mark.parametrize(
    ("path", "metadata"),
    [
        ("/", "/.well-known/oauth-protected-resource"),
        ("/orders", "/.well-known/oauth-protected-resource/orders"),
        ("/orders/", "/.well-known/oauth-protected-resource/orders/"),
    ],
)
def test_where_metadata_is(path: str, metadata: str) -> None:
    made = resource(path)
    assert (made.metadata_path, made.metadata_url) == (metadata, f"https://api.example:8443{metadata}")


RESOURCES = Resources([resource("/"), resource("/orders"), resource("/orders/eu"), resource("/x/", "b.example")])


@pytest.mark.parametrize(
    ("host", "path", "found"),
    [
        ("api.example", "/", "/"),
        ("api.example", "/ordersX", "/"),
        ("api.example", "/orders", "/orders"),
        ("api.example", "/orders/7", "/orders"),
        ("api.example", "/orders/eu/7", "/orders/eu"),
        ("api.example", "/orders/europe", "/orders"),
        ("b.example", "/x", "/x/"),
        ("b.example", "/x/y", "/x/"),
        ("b.example", "/xy", None),
        ("b.example", "/", None),
        ("c.example", "/orders", None),
        ("", "/orders", None),
    ],
)
def test_which_a_request_is_for(host: str, path: str, found: str | None) -> None:
    at = RESOURCES.at(host, path)
    assert (None if at is None else at.path) == found
    challenge = RESOURCES.challenge("Bearer", host, path)
    assert challenge == ("Bearer" if at is None else f'Bearer resource_metadata="{at.metadata_url}"')
    told = RESOURCES.challenge('Bearer error="x"', host, path)
    assert told == ('Bearer error="x"' if at is None else f'Bearer error="x", resource_metadata="{at.metadata_url}"')


def test_metadata_is_of_one_host_and_one_path() -> None:
    assert RESOURCES.metadata("api.example", "/.well-known/oauth-protected-resource/orders") == b"/orders"
    assert RESOURCES.metadata("b.example", "/.well-known/oauth-protected-resource/orders") is None
    assert RESOURCES.metadata("api.example", "/.well-known/oauth-protected-resource/orders/") is None
    assert Resources().metadata("api.example", "/.well-known/oauth-protected-resource") is None
