"""Which header fields of clients go on to services, and which only the gateway, or nobody, may write.

A name is compared by its shape: CGI and WSGI turn "-" into "_", so X_User_ID and X.User.ID are X-User-ID to services
behind them. docs/headers.md lists what is here for users; a test holds the two to one another.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from string import ascii_lowercase, digits
from typing import Final

HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade "
    b"http2-settings".split()
)
"""Fields of one connection (RFC 9110, section 7.6.1), and of an upgrade to HTTP/2 that is never made."""

FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})

ANSWERED_HERE: Final = frozenset({b"expect"})
"""Fields that ask this hop for something. The protocol layer answers an expectation, or, in HTTP/1.0, ignores it
(RFC 9110, section 10.1.1); a service that was asked as well would answer a client that does not wait."""

NEVER: Final = frozenset(
    b"forwarded x-real-ip x-client-ip client-ip true-client-ip x-cluster-client-ip cf-connecting-ip cf-connecting-ipv6 "
    b"cf-pseudo-ipv4 fastly-client-ip proxy-client-ip x-originating-ip x-proxyuser-ip x-azure-clientip "
    b"x-azure-socketip x-host x-scheme x-script-name x-method-override x-request-id traceparent proxy x-sendfile-type "
    b"x-waws-unencoded-url forwarded-for x-forward-for x-real-host x-real-port fly-client-ip do-connecting-ip "
    b"x-nf-client-connection-ip x-vercel-forwarded-for cloudfront-viewer-address z-forwarded-for "
    b"x-custom-ip-authorization x-replaced-path x-http-host-override x-http-destinationurl x-matched-path "
    b"x-now-route-matches front-end-https x-url-scheme cloudfront-forwarded-proto x-arr-ssl x-override-url "
    b"x-middleton-ssl".split()
)
NEVER_FAMILIES: Final = tuple(
    b"x-forwarded x-envoy- x-original- x-rewrite- x-http-method x-accel- x-middleware- x-invoke- wl-proxy- "
    b"x-appengine- x-cloudtasks- x-cloudscheduler".split()
)
"""What is removed whatever the policy says: who the client is and where it came from; other paths, methods and hosts
than those that were decided on; `Proxy`, which CGI turns into HTTP_PROXY (CVE-2016-5385); fields by which frameworks
speak to themselves (X-Middleware-Subrequest: CVE-2025-29927; X-Sendfile-Type, X-Accel-Mapping: CVE-2025-61780), and by
which a platform says that it is the platform itself that asks (X-Appengine-Cron, X-CloudTasks-QueueName)."""

IDENTITY: Final = frozenset(
    b"x-user x-username x-userid x-userinfo x-email x-groups x-roles smuser x-auth-user x-auth-username x-auth-email "
    b"x-auth-groups x-auth-roles x-auth-name x-anonymous-consumer x-endpoint-api-userinfo x-apigateway-api-userinfo "
    b"x-arr-clientcert x-client-verify x-client-dn x-client-cn x-client-s-dn x-forwarded-user x-forwarded-email "
    b"x-forwarded-groups x-forwarded-preferred-username x-forwarded-access-token x-gateway-assertion x-spiffe-id "
    b"x-proxy-user x-proxy-remote-user msisdn x-msisdn x-wap-msisdn x-nokia-msisdn x-up-calling-line-id".split()
)
IDENTITY_FAMILIES: Final = tuple(
    b"x-user- x-remote- remote- x-auth-request- x-webauth- x-authenticated x-authentik- x-consumer- x-credential- "
    b"x-jwt- x-pomerium- x-vouch- cf-access- tailscale-user- x-goog-authenticated-user- x-goog-iap- x-amzn-oidc- "
    b"x-amzn-mtls- x-ms-client-principal x-ms-token- x-appengine-user- impersonate- x-client-cert client-cert x-ssl- "
    b"ssl-client- x-tls-client- tls-client- sm- iv- oam- oidc- x-oidc- shib- x-shib- cas- x-cas- x-saml- x-sso- "
    b"x-kratos- teleport- ngrok-auth- ms-aspnetcore- x-impersonate-".split()
)
"""What other gateways tell services of a verified user, or of its certificate (RFC 9440), and services believe. Removed
unless the policy keeps one by name (`identity.keep`)."""

_TOKEN: Final = b"!#$%&'*+.^_`|~-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DASHED: Final = bytes(octet if chr(octet) in ascii_lowercase + digits else ord("-") for octet in range(256))
_DASHES: Final = re.compile(rb"--+")
_KNOWN_NAMES: Final = 4096
_KNOWN_LENGTH: Final = 64


class Disposition(Enum):
    """What becomes of a field on its way in."""

    KEEP = auto()
    DROP = auto()
    REFUSE = auto()


def shape(name: bytes) -> bytes:
    """Return what a lower-case name is to a service that folds all that is no letter and no digit."""
    dashed = name.translate(_DASHED)
    return _DASHES.sub(b"-", dashed) if b"--" in dashed else dashed


def looks_like_identity(shaped: bytes) -> bool:
    """Tell whether a name, by its shape, is one of the identity families."""
    return shaped in IDENTITY or shaped.startswith(IDENTITY_FAMILIES)


class ClientFields:
    """The fields of clients under one policy."""

    __slots__ = ("_identity", "_keep", "_known", "hides_keys", "identity")

    identity: frozenset[bytes]

    def __init__(self, identity: Iterable[bytes], keep: Iterable[bytes] = (), *, hides_keys: bool = False) -> None:
        """identity: lower-case names by which this policy tells services who asks. keep: those that go on all the same.

        hides_keys: whether a field with an API key in it is removed, whatever its name: the one that keys were sent in
        before a reload has an ordinary name now.
        A name of `keep` that is in `identity` is removed: the gateway's own word is never a client's.
        """
        self.identity = frozenset(identity)
        self._identity = frozenset(map(shape, self.identity))
        self._keep = frozenset(keep)
        self.hides_keys = hides_keys
        self._known: dict[bytes, Disposition] = {}

    def disposition(self, name: bytes) -> Disposition:
        """Say what becomes of a field, by its lower-case name.

        What was found is remembered of short names alone, up to a number: clients choose them.
        """
        known = self._known.get(name)
        if known is None:
            known = self._disposition(name)
            if len(name) <= _KNOWN_LENGTH and len(self._known) < _KNOWN_NAMES:
                self._known[name] = known
        return known

    def _disposition(self, name: bytes) -> Disposition:
        if not name or name.translate(None, _TOKEN):
            return Disposition.REFUSE
        if name in HOP_BY_HOP or name in FRAMING or name in ANSWERED_HERE or b"_" in name:
            return Disposition.DROP
        shaped = shape(name)
        if shaped in self._identity:
            return Disposition.DROP
        if looks_like_identity(shaped):
            return Disposition.KEEP if name in self._keep else Disposition.DROP
        if shaped in NEVER or shaped.startswith(NEVER_FAMILIES):
            return Disposition.DROP
        return Disposition.KEEP
