"""Where an issuer's keys are, as the issuer publishes it: OpenID Connect Discovery 1.0, section 4, and RFC 8414.

The policy names the issuer, and its metadata is asked for at addresses that follow from that name alone. Metadata of
another issuer says nothing (RFC 8414, section 3.3): whoever could pass it off would choose the keys.
"""

from urllib.parse import urlsplit

from mitmgate.core.address import parse_address
from mitmgate.core.authority import parse_authority
from mitmgate.core.jose import parse_object


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Return where an issuer's metadata is: OpenID Connect appends to its path, RFC 8414 (section 3.1) inserts."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.removesuffix("/")
    return (
        f"{origin}{path}/.well-known/openid-configuration",
        f"{origin}/.well-known/oauth-authorization-server{path}",
    )


def jwks_uri(metadata: bytes, issuer: str, *, plain_http: bool) -> str:
    """Return the address of the key set that an issuer's metadata names.

    plain_http: whether the policy lets keys come over plain http; without it http leads from loopback to loopback
    alone. Raises ValueError with a sentence where the metadata is another issuer's, or the address is none to go to.
    """
    members = parse_object(metadata)
    if members is None:
        raise ValueError("the issuer's metadata is no plain JSON object")
    if members.get("issuer") != issuer:
        raise ValueError("the metadata is of another issuer: its member issuer is not what the policy says")
    url = members.get("jwks_uri")
    if not isinstance(url, str):
        raise ValueError("the issuer's metadata names no key set (jwks_uri)")  # noqa: TRY004  # a parser's error
    why = problem(url)
    if why is not None:
        raise ValueError(f"the address of the key set (jwks_uri) {why}")
    if not plain_http and needs_consent(url):
        raise ValueError("the address of the key set (jwks_uri) is plain http")
    if not plain_http and url.startswith("http://") and not issuer.startswith("http://"):
        raise ValueError("the address of the key set (jwks_uri) leads from https to plain http")
    return url


def problem(url: str) -> str | None:
    """Say why a URL is none that keys can be fetched from; None where it is one."""
    try:
        parts = urlsplit(url)
        authority = parse_authority(parts.netloc)
    except ValueError:
        return "is no URL"
    if parts.scheme not in {"http", "https"} or authority is None or parts.fragment or not url.isascii():
        return "is no http or https URL without credentials"
    return None


def needs_consent(url: str) -> bool:
    """Tell whether what comes from a URL could be replaced by whoever is on the way: plain http beyond loopback."""
    parts = urlsplit(url)
    address = parse_address(parts.hostname or "")
    loopback = parts.hostname == "localhost" or (address is not None and address.is_loopback)
    return parts.scheme == "http" and not loopback
