"""Certificates as credentials: which of a certificate's names a policy takes for a principal, and how a proxy tells it.

    names_in            X-Forwarded-Client-Cert → ClientCertificate   what the last proxy has verified
    principal_of        ClientCertificate       → Principal           by the policy's patterns

Each returns a Refusal where something is not as it must be. Whether a certificate is good (its chain, its times at the
handshake) the TLS layer, or the proxy, has found out before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

ISSUER: Final = "certificate"
"""What stands for the issuer of such a principal, wherever an issuer's name stands; no issuer has this name."""
FIELD: Final = b"x-forwarded-client-cert"
LONGEST_FIELD: Final = 16_384
"""Octets of the field, all its hops together."""
UNDATED: Final = 86_400.0
"""Seconds for which a certificate counts of which nobody has said when it ends: what it opens is cut by then."""

NameKind = Literal["spiffe", "uri", "dns", "email", "subject"]

_SPIFFE: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})(?:/[A-Za-z0-9._-]+)+")
_PAIR: Final = re.compile(rb'([A-Za-z]+)=("(?:[^"\\]|\\.)*+"|[^",;]*+)([;,]|$)')
_STAR: Final = r"(?:[^/@\\,+]|\+(?![^,+=]*=))+"
_LONGEST_NAME: Final = 2_048

MISSING: Final = Refusal(Reason.CREDENTIAL_MISSING, "This request needs a client certificate.")
_EXPIRED: Final = Refusal(Reason.CERTIFICATE_EXPIRED, "The client certificate has expired.")
_NO_NAME: Final = Refusal(Reason.CERTIFICATE_REFUSED, "The client certificate has no name that is accepted.")
_TWO_NAMES: Final = Refusal(Reason.CERTIFICATE_REFUSED, "The client certificate has several names that are accepted.")
_NO_SVID: Final = Refusal(Reason.CERTIFICATE_REFUSED, "The client certificate's SPIFFE ID is not acceptable.")
UNREADABLE: Final = Refusal(Reason.CERTIFICATE_REFUSED, "The forwarded certificate can't be read.")


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The names of a verified certificate. subject: RFC 4514. until: Unix seconds; None: nobody has said."""

    subject: str
    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Certificates:
    """Which names count. trust_domains: of SPIFFE IDs. patterns: of the other kinds, in the order in which they count.

    roles: by pattern of the principal's name. forwarded: whether a trusted proxy passes certificates on in FIELD.
    field: the lower-case field in which it passes on the certificate itself, instead.
    """

    trust_domains: frozenset[str]
    patterns: tuple[tuple[NameKind, tuple[re.Pattern[str], ...]], ...]
    roles: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]
    forwarded: bool = False
    field: bytes | None = None


def pattern(text: str) -> re.Pattern[str]:
    r"""Compile a pattern: `*` stands for one or more characters other than `/`, `@`, `\` and `,`, all else for itself.

    In a subject `,` and `+` begin another attribute (RFC 4514, sections 2.1 and 2.2), and `\` takes from the next
    character what it would mean (section 2.4): with them `CN=*,O=Corp` would be `CN=x,OU=y,O=Corp`, or the common name
    `x,O=Corp`, as well. A `+` that begins none, as in an address, is a character.
    """
    return re.compile(_STAR.join(map(re.escape, text.split("*"))))


def principal_of(certificate: ClientCertificate, rule: Certificates, now: float) -> Principal | Refusal:
    """Find out whose certificate this is. now: Unix seconds."""
    if certificate.until is not None and now >= certificate.until:
        return _EXPIRED
    name = _name(certificate, rule)
    if isinstance(name, Refusal):
        return name
    roles = dict.fromkeys(role for one, given in rule.roles if one.fullmatch(name) for role in given)
    until = now + UNDATED if certificate.until is None else certificate.until
    return Principal(name, ISSUER, tuple(roles), frozenset(), {"sub": name}, until)


def _name(certificate: ClientCertificate, rule: Certificates) -> str | Refusal:
    if rule.trust_domains and any(uri.lower().startswith("spiffe:") for uri in certificate.uris):
        # SPIFFE, X509-SVID, section 2: exactly one URI; a certificate of another domain is nobody's else.
        found = _SPIFFE.fullmatch(certificate.uris[0])
        if len(certificate.uris) != 1 or found is None or found[1] not in rule.trust_domains:
            return _NO_SVID
        segments = certificate.uris[0].split("/")[3:]
        return _NO_SVID if {".", ".."} & set(segments) else certificate.uris[0]
    of_kind: dict[NameKind, tuple[str, ...]] = {
        "uri": certificate.uris,
        "dns": tuple(name.lower() for name in certificate.dns),
        "email": certificate.emails,
        "subject": (certificate.subject,),
    }
    for kind, patterns in rule.patterns:
        names = {name for name in of_kind[kind] if any(one.fullmatch(name) for one in patterns)}
        if len(names) > 1:
            return _TWO_NAMES
        for name in names:
            usable = len(name) <= _LONGEST_NAME and name.isprintable()
            return name if usable else _NO_NAME
    return _NO_NAME


def names_in(values: Sequence[bytes]) -> ClientCertificate | Refusal | None:
    """Read X-Forwarded-Client-Cert (Envoy's format): the last element, which our peer has made; None: there is none.

    What stands before it was told by that peer's client, which may be anybody.
    """
    content = b",".join(values)
    if not content:
        return None
    if len(content) > LONGEST_FIELD:
        return UNREADABLE
    pairs: list[tuple[str, str]] = []
    at = 0
    while at < len(content):
        found = _PAIR.match(content, at)
        if found is None:
            return UNREADABLE
        name, raw, end = found[1].lower().decode("ascii"), found[2], found[3]
        # Envoy puts quotation marks about a subject and escapes nothing: what is escaped is so in the subject itself.
        value = raw[1:-1] if raw[:1] == b'"' else raw
        try:
            pairs.append((name, value.decode("utf-8")))
        except UnicodeDecodeError:
            return UNREADABLE
        at = found.end()
        if end == b",":
            if at == len(content):
                return UNREADABLE
            pairs.clear()
            at += len(content[at:]) - len(content[at:].lstrip(b" "))
        elif end == b";" and at == len(content):
            return UNREADABLE
    of = {name: tuple(value for one, value in pairs if one == name and value) for name in ("subject", "uri", "dns")}
    if not any(name == "hash" and value for name, value in pairs) or len(of["subject"]) > 1:
        return UNREADABLE  # Envoy gives the hash of whatever certificate there was
    return ClientCertificate("".join(of["subject"]), of["uri"], of["dns"])
