"""Proof of possession: what a token is bound to (RFC 7800), and DPoP proofs (RFC 9449), as pure steps.

    confirmation_of   claims → Confirmation     what `cnf` asks of who brings the token
    read_proof        field  → UnverifiedProof  well-formed; nothing of it may be believed
    (keys.proof)                                its key is the token's, and has signed it
    check_proof                                 it is for this request, this token and this moment

Each returns a Refusal where something is not as it must be; none raises, whatever it is given.
"""

import base64
import json
import re
from binascii import Error, a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from mitmgate.core.jose import Json, decode_base64url, parse_object
from mitmgate.core.path import CanonicalPath, canonical_path
from mitmgate.core.principal import Confirmation
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

ALGORITHMS: Final = ("ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
"""What proofs may be signed with: asymmetric ones alone (RFC 9449, section 4.3, step 5)."""

MAX_PROOF: Final = 4096
"""Bytes of a proof. An RSA key of 4,096 bits and its signature take 1,500."""

AHEAD: Final = 5.0
"""Seconds by which the clock of who makes a proof may be ahead, whatever its age may be."""

LONGEST_LIFETIME: Final = 300.0
"""Seconds that a policy may let proofs be good for."""

_MAX_TEXT: Final = 255
_PORTS: Final = {"http": 80, "https": 443}
_DIGEST: Final = 43  # characters of a SHA-256 in base64url
_MEMBERS: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}
"""What a thumbprint is of, in its order (RFC 7638, section 3.2; RFC 8037, section 2)."""
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

_NO_URL: Final = re.compile(r"[^!-~]")

UNSUPPORTED: Final = Refusal(
    Reason.TOKEN_PROOF_UNSUPPORTED, "The token is bound in a way for which proof is not supported here."
)
UNBOUND: Final = Refusal(Reason.TOKEN_UNBOUND, "Only a token that is bound to a key is accepted.")
CERTIFICATE_MISSING: Final = Refusal(Reason.TOKEN_PROOF_MISSING, "The token is bound to a certificate: there is none.")
CERTIFICATE_OTHER: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The token is bound to another certificate.")
PROOF_MISSING: Final = Refusal(Reason.TOKEN_PROOF_MISSING, "The token is bound to a key: there is no one DPoP proof.")
AS_BEARER: Final = Refusal(Reason.TOKEN_PROOF_MISSING, "The token is bound to a key: its scheme is DPoP.")
NOT_BOUND: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The token is not bound to a key: its scheme is Bearer.")
REPLAYED: Final = Refusal(Reason.TOKEN_PROOF_REPLAYED, "The DPoP proof was used before.")
_MALFORMED: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof is not a signed token of its form.")
_ALGORITHM: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof's algorithm is not accepted.")
_KEY: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof has no public key of an accepted kind.")
OTHER_KEY: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof is of another key than the token's.")
SIGNATURE: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof's signature is not valid.")
_METHOD: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof is for another method.")
_TARGET: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof is for another URL.")
_TIME: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof is too old, or of the future.")
_TOKEN: Final = Refusal(Reason.TOKEN_PROOF_INVALID, "The DPoP proof is for another token.")
NONCE: Final = Refusal(Reason.TOKEN_PROOF_NONCE, "The DPoP proof needs the nonce that DPoP-Nonce gives.")


@dataclass(frozen=True, slots=True)
class UnverifiedProof:
    """A well-formed proof that anyone may have made. thumbprint: of its key (RFC 7638)."""

    algorithm: str
    key: Mapping[str, Json]
    thumbprint: str
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    id: str
    method: str
    target: str
    issued: float
    token: str
    nonce: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that a proof is for, as the client saw it.

    scheme and host are lower-case. port: None: the scheme's. target: of the request line, without query. path: the same
    in canonical form.
    """

    method: str
    scheme: str
    host: str
    port: int | None
    target: str
    path: str


def confirmation_of(claims: Mapping[str, Json]) -> Confirmation | Refusal | None:
    """Read what a token is bound to; None: to nothing. A way that is not known may be the one that matters.

    RFC 7800, section 3.1: the presenter has to prove it, or the token may have been stolen.
    """
    if "cnf" not in claims:
        return None
    members = claims["cnf"]
    if not isinstance(members, dict) or not members or not members.keys() <= {"jkt", "x5t#S256"}:
        return UNSUPPORTED
    key, certificate = members.get("jkt"), members.get("x5t#S256")
    for digest in members.values():
        if not isinstance(digest, str) or len(digest) != _DIGEST or _decoded(digest) is None:
            return UNSUPPORTED
    return Confirmation(key if isinstance(key, str) else None, certificate if isinstance(certificate, str) else None)


def digest_of(octets: bytes) -> str:
    """Return the SHA-256 of octets in base64url: of a certificate in DER, of a token in ASCII, of a key's members."""
    return base64.urlsafe_b64encode(sha256(octets).digest()).rstrip(b"=").decode("ascii")


def read_proof(content: bytes) -> UnverifiedProof | Refusal:
    """Take a proof apart and check its form (RFC 9449, section 4.2, and 4.3, steps 2 to 5 and 7)."""
    parts = content.split(b".")
    if len(content) > MAX_PROOF or len(parts) != 3:
        return _MALFORMED
    header_json, claims_json, signature = map(decode_base64url, parts)
    if header_json is None or claims_json is None or not signature:
        return _MALFORMED
    header, claims = parse_object(header_json), parse_object(claims_json)
    if header is None or claims is None or header.get("typ") != "dpop+jwt" or "crit" in header or "b64" in header:
        return _MALFORMED
    algorithm, key = header.get("alg"), header.get("jwk")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        return _ALGORITHM
    thumbprint = thumbprint_of(key) if isinstance(key, dict) else None
    if not isinstance(key, dict) or thumbprint is None:
        return _KEY
    texts = [claims.get(name) for name in ("jti", "htm", "htu", "ath")]
    nonce, issued = claims.get("nonce"), claims.get("iat")
    identifier, method, target, token = [text if isinstance(text, str) else "" for text in texts]
    if not 0 < len(identifier) <= _MAX_TEXT or not (method and target and token):
        return _MALFORMED
    if isinstance(issued, bool) or not isinstance(issued, int | float):
        return _MALFORMED
    if nonce is not None and not (isinstance(nonce, str) and 0 < len(nonce) <= _MAX_TEXT):
        return _MALFORMED
    return UnverifiedProof(
        algorithm=algorithm,
        key=key,
        thumbprint=thumbprint,
        signing_input=content[: len(parts[0]) + 1 + len(parts[1])],
        signature=signature,
        id=identifier,
        method=method,
        target=target,
        issued=float(issued),
        token=token,
        nonce=nonce,
    )


def thumbprint_of(key: Mapping[str, Json]) -> str | None:
    """Return the thumbprint of a public JWK (RFC 7638); None for what is none."""
    kind = key.get("kty")
    names = _MEMBERS.get(kind) if isinstance(kind, str) else None
    if names is None or not _PRIVATE.isdisjoint(key):
        return None
    members = {name: key.get(name) for name in names}
    for name, value in members.items():
        if not isinstance(value, str) or not value.isascii():
            return None
        if name not in {"kty", "crv"} and _decoded(value) is None:
            return None
    return digest_of(json.dumps(members, separators=(",", ":")).encode("ascii"))


def check_proof(proof: UnverifiedProof, asked: Asked, token: bytes, now: float, lifetime: float) -> Refusal | None:
    """Check that a proof whose signature holds is for this request (RFC 9449, section 4.3, steps 8, 9, 11 and 12).

    now: Unix seconds. lifetime: seconds that a proof may be old.
    """
    if proof.method != asked.method:
        return _METHOD
    if not _is_target(proof.target, asked):
        return _TARGET
    if not now - lifetime <= proof.issued <= now + AHEAD:
        return _TIME
    return None if proof.token == digest_of(token) else _TOKEN


def passed_certificate(value: bytes) -> bytes | None:
    """Return the certificate in a header field, in DER; None where there is none.

    In DER, base64 between colons (RFC 9440, section 2.1), or PEM, percent-encoded, as nginx' $ssl_client_escaped_cert.
    """
    if value[:1] == b":" == value[-1:]:
        encoded = value[1:-1]
    else:
        lines = unquote_to_bytes(value).replace(b"\r", b"").strip(b"\n").split(b"\n")
        if lines[0] != b"-----BEGIN CERTIFICATE-----" or lines[-1] != b"-----END CERTIFICATE-----":
            return None
        encoded = b"".join(lines[1:-1])
    try:
        der = a2b_base64(encoded, strict_mode=True)
    except Error:
        return None
    return der or None


def passed_thumbprint(value: bytes) -> str | None:
    """Return the thumbprint of a certificate in a header field, None where there is none."""
    der = passed_certificate(value)
    return None if der is None else digest_of(der)


def _is_target(text: str, asked: Asked) -> bool:
    """Compare a proof's `htu` with what was asked for: query and fragment do not count, nor how a URL is spelled.

    RFC 3986, sections 6.2.2 and 6.2.3: case of scheme and host, the default port, percent-encoding. A URL with dot
    segments is none for us, as in requests (core/path.py), nor is one with what no URL holds (section 2): urlsplit
    would drop it.
    """
    if _NO_URL.search(text) is not None:
        return False
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    default = _PORTS.get(url.scheme)
    if url.scheme != asked.scheme or default is None or "@" in url.netloc or url.hostname != asked.host.strip("[]"):
        return False
    if (default if port is None else port) != (default if asked.port is None else asked.port):
        return False
    path = url.path or "/"
    if path in {asked.target, asked.path}:
        return True
    canonical = canonical_path(path)
    return isinstance(canonical, CanonicalPath) and canonical.text == asked.path


def _decoded(text: str) -> bytes | None:
    return decode_base64url(text.encode("ascii")) if text and text.isascii() else None
