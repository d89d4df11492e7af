"""What a policy reads beside itself: secrets, keys and certificates; each checked before it is used."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLError, create_default_context, get_default_verify_paths
from typing import Any, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from pydantic import BaseModel, ValidationError

from mitmgate.core.rules import Introspection, KeySource
from mitmgate.keys.keyset import SECRET_SIZES
from mitmgate.keys.material import key_set
from mitmgate.keys.material import problem as key_problem
from mitmgate.policy import model_identity
from mitmgate.policy.document import Document
from mitmgate.policy.files import Files, UnreadableError
from mitmgate.policy.interpolation import without_newline
from mitmgate.policy.model import Admin, AdminTls, ListenCertificate, ListenTls
from mitmgate.policy.model_audit import Anchors, Chain
from mitmgate.policy.model_identity import Assertion, Issuer, Proofs, Revocation
from mitmgate.policy.model_upstreams import Upstream, UpstreamTls
from mitmgate.policy.problem import Code, Location, Problem, nearest

LEAST_SECRET = 32  # bytes; 256 bits


@dataclass(slots=True)
class Material:
    """Key material by what it is for. hashes: SHA-256 of each, by the member that names it; for the digest.

    tls: PEM texts by the section that names them, then by member. names: of certificates, by the section.
    authorities: those of the system's file, as PEM; None where there is no such file, or nothing is verified by it.
    """

    issuers: dict[str, KeySource] = field(default_factory=dict)
    introspection: dict[str, Introspection] = field(default_factory=dict)
    assertion: bytes = field(default=b"", repr=False)
    audit_key: bytes | None = field(default=None, repr=False)
    anchor_key: bytes | None = field(default=None, repr=False)
    revocation_token: bytes | None = field(default=None, repr=False)
    admin_token: bytes | None = field(default=None, repr=False)
    nonce_secret: bytes | None = field(default=None, repr=False)
    ticket_secret: bytes | None = field(default=None, repr=False)
    tls: dict[Location, dict[str, bytes]] = field(default_factory=dict, repr=False)
    names: dict[Location, tuple[str, ...]] = field(default_factory=dict)
    authorities: bytes | None = field(default=None, repr=False)
    hashes: dict[str, str] = field(default_factory=dict)


class Reader:
    """Collects the material of one document, and what is wrong with it.

    Sections are validated one by one, so that keys are checked also where some other part of the policy is wrong.
    """

    def __init__(self, document: Document, files: Files, environ: Mapping[str, str]) -> None:
        """Read nothing yet."""
        self.document = document
        self.files = files
        self.environ = environ
        self.material = Material()
        self.problems: list[Problem] = []
        self._looked_for_authorities = False

    def read(self) -> None:
        """Read everything that the document names."""
        issuers = self.document.at(("identity", "issuers"))
        for name in issuers if isinstance(issuers, dict) else ():
            location = ("identity", "issuers", name)
            issuer = self.section(Issuer, location)
            if issuer is not None:
                self._introspection(name, issuer.introspection, (*location, "introspection"))
                self._issuer(name, issuer, location)
        self._assertion(("identity", "forward", "assertion"))
        self._audit_key(("audit", "chain"))
        self._anchor_key(("audit", "anchors"))
        self._revocation_token(("revocation",))
        self._admin_token(("admin",))
        self._tls(self.section(AdminTls, ("admin", "tls")), ("admin", "tls"))
        self._nonce_secret(("identity", "proofs"))
        self._ticket_secret(("identity", "browsers", "tickets"))
        listen = self.section(ListenTls, ("listen", "tls"))
        self._tls(listen, ("listen", "tls"))
        self._further(() if listen is None else listen.certificates)
        upstreams = self.document.at(("upstreams",))
        for name in upstreams if isinstance(upstreams, dict) else ():
            location = ("upstreams", name, "tls")
            self._tls(self.section(UpstreamTls, location), location)
            upstream = self.section(Upstream, location[:-1])
            if (
                upstream is not None
                and (upstream.tls is None or upstream.tls.ca is None)
                and any(url.startswith("https://") for url in upstream.endpoints)
            ):
                self.system_authorities((*location[:-1], "endpoints"))

    def section[S: BaseModel](self, section: type[S], location: Location) -> S | None:
        """Validate one section alone; None where it is absent or wrong (which the whole policy's validation says)."""
        value = self.document.at(location)
        if value is None or any(known[: len(location)] == location for known in self.document.unresolved):
            return None
        try:
            return section.model_validate(value)
        except ValidationError:
            return None

    def wrong(self, location: Location, message: str, hint: str = "", found: str | None = None) -> None:
        """Note an error at a member."""
        self.problems.append(self.document.problem(location, message, hint=hint, found=found))

    def _file(self, name: str, location: Location) -> bytes | None:
        try:
            content = self.files.read(name)
        except UnreadableError as error:
            self.wrong(location, f"the file {error}", f"paths are relative to {self.files.directory}")
            return None
        self._hash(location, content)
        return content

    def variable(self, name: str, location: Location) -> bytes | None:
        """Read what an environment variable holds; None where it is not set, which is noted."""
        value = self.environ.get(name)
        if value is None:
            hint = nearest(name, self.environ) or "set it before the gateway starts"
            self.wrong(location, *self._unset(name, location, hint))
            return None
        content = without_newline(value).encode("utf-8", "surrogateescape")
        self._hash(location, content)
        return content

    def _unset(self, name: str, location: Location, hint: str) -> tuple[str, str, str | None]:
        """Say that a variable is not set; returns message, hint and what may be shown of the value.

        What looks like no variable's name is taken for the secret itself, written where its variable is asked for.
        """
        if _VARIABLE.fullmatch(name) is None or not self.document.may_quote(location):
            message = "this names no environment variable"
            return message, "name the variable that holds the secret, like ISSUER_SECRET", ""
        return f"the environment variable {name} is not set", hint, None

    def _hash(self, location: Location, content: bytes) -> None:
        self.material.hashes["/".join(map(str, location))] = hashlib.sha256(content).hexdigest()

    def _issuer(self, name: str, issuer: Issuer, location: Location) -> None:
        if issuer.keys is None:
            self.material.issuers[name] = KeySource("none")
            return
        keys, at = issuer.keys, (*location, "keys", issuer.keys.source)
        content: bytes | None = b""
        kind: Literal["secret", "pem", "jwks", "jwks_url"] = "jwks_url"
        if keys.secret_env is not None:
            kind, content = "secret", self.variable(keys.secret_env, at)
        elif keys.secret_file is not None:
            kind, content = "secret", self._file(keys.secret_file, at)
            if content is not None:
                content = content.removesuffix(b"\n").removesuffix(b"\r")
        elif keys.public_key_file is not None:
            kind, content = "pem", self._file(keys.public_key_file, at)
        elif keys.jwks_file is not None:
            kind, content = "jwks", self._file(keys.jwks_file, at)
        if content is None:
            return
        url = issuer.issuer[0] if keys.discovery else keys.jwks_url or ""
        ca = None if keys.ca is None else self.authorities(keys.ca, (*location, "keys", "ca"))
        if url.lower().startswith("https://") and keys.ca is None:
            self.system_authorities(at)
        source = KeySource(
            kind,
            content,
            url,
            keys.refresh,
            keys.min_refresh,
            keys.max_stale,
            plain_http=keys.plain_http,
            ca=ca,
            authorities=self.material.authorities,
        )
        # RFC 7518, section 3.2: a secret is at least as long as its hash.
        needed = max(SECRET_SIZES.get(algorithm, 0) for algorithm in issuer.algorithms)
        if kind == "secret" and len(content) < needed:
            longest = max(issuer.algorithms, key=lambda algorithm: SECRET_SIZES.get(algorithm, 0))
            message = f"the secret has {len(content)} bytes; {longest} takes at least {needed}"
            self.wrong(at, message, f"openssl rand -hex {needed} makes one")
            return
        problem = key_problem(source, issuer.algorithms)
        if problem is not None:
            self.wrong(at, problem)
            return
        self.material.issuers[name] = source
        if source.kind == "jwks":
            for ignored in key_set(source, issuer.algorithms).ignored:
                self.problems.append(self.document.warning(at, Code.KEY_LEFT_OUT, f"{ignored}; it is left out"))

    def _introspection(self, name: str, asked: model_identity.Introspection | None, location: Location) -> None:
        if asked is None:
            return
        if asked.client_secret_env is not None:
            at: Location = (*location, "client_secret_env")
            secret = self.variable(asked.client_secret_env, at)
        else:
            at = (*location, "client_secret_file")
            secret = self._file(asked.client_secret_file or "", at)
            secret = None if secret is None else secret.removesuffix(b"\n").removesuffix(b"\r")
        if secret == b"":
            self.wrong(at, "the secret is empty", found="")
        ca = None if asked.ca is None else self.authorities(asked.ca, (*location, "ca"))
        if asked.url.lower().startswith("https://") and asked.ca is None:
            self.system_authorities((*location, "url"))
        self.material.introspection[name] = Introspection(
            url=asked.url,
            client_id=asked.client_id,
            client_secret=secret or b"",
            prefix=(asked.prefix or "").encode("ascii"),
            timeout=asked.timeout,
            cache=asked.cache,
            refused=asked.refused,
            ca=ca,
            authorities=self.material.authorities,
        )

    def authorities(self, name: str, location: Location) -> bytes | None:
        """Read a file's certificates, as PEM; None where it has none, which is noted."""
        content = self._file(name, location)
        if content is None:
            return None
        certificates = _CERTIFICATE.findall(content)
        try:
            create_default_context(cadata=b"\n".join((*certificates, b"")).decode("ascii"))
        except (ValueError, SSLError):
            certificates = []
        if not certificates:
            self.wrong(location, "the file has no PEM certificate")
            return None
        return b"\n".join((*certificates, b""))

    def _assertion(self, location: Location) -> None:
        assertion = self.section(Assertion, location)
        if assertion is None:
            return
        at = (*location, "key_file")
        content = self._file(assertion.key_file, at)
        if content is None:
            return
        try:
            key = load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            self.wrong(at, "the file has no unencrypted PEM private key", _NEW_KEY)
            return
        if isinstance(key, RSAPrivateKey) and key.key_size < 2048:
            self.wrong(at, f"the RSA key has {key.key_size} bits; at least 2048 are needed", _NEW_KEY)
        elif isinstance(key, EllipticCurvePrivateKey) and key.curve.name not in _CURVES:
            self.wrong(at, f"the curve {key.curve.name} is not supported; P-256, P-384 and P-521 are", _NEW_KEY)
        elif not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
            self.wrong(at, "the key can't sign assertions", _NEW_KEY)
        self.material.assertion = content

    def _audit_key(self, location: Location) -> None:
        chain = self.section(Chain, location)
        if chain is None or chain.key_env is None:
            return
        at = (*location, "key_env")
        if chain.key_env not in self.environ:
            message, hint, _ = self._unset(chain.key_env, at, nearest(chain.key_env, self.environ))
            message += ": the chain is unkeyed, and anyone can forge it"
            self.problems.append(self.document.warning(at, Code.UNKEYED_CHAIN, message, hint))
            return
        content = self.variable(chain.key_env, at)
        if content is None or len(content) < LEAST_SECRET:
            size = len(content or b"")
            self.wrong(
                at, f"the key has {size} bytes; at least {LEAST_SECRET} are needed", "openssl rand -hex 32 makes one"
            )
            return
        self.material.audit_key = content

    def _anchor_key(self, location: Location) -> None:
        anchors = self.section(Anchors, location)
        if anchors is not None:
            self.material.anchor_key = self._secret(anchors.key_env, (*location, "key_env"))

    def _revocation_token(self, location: Location) -> None:
        revocation = self.section(Revocation, location)
        if revocation is not None and revocation.token_env is not None:
            self.material.revocation_token = self._secret(revocation.token_env, (*location, "token_env"))

    def _admin_token(self, location: Location) -> None:
        admin = self.section(Admin, location)
        if admin is not None and admin.token_env is not None:
            self.material.admin_token = self._secret(admin.token_env, (*location, "token_env"))

    def _nonce_secret(self, location: Location) -> None:
        proofs = self.section(Proofs, location)
        if proofs is not None and proofs.nonce_env is not None:
            self.material.nonce_secret = self._secret(proofs.nonce_env, (*location, "nonce_env"))

    def _ticket_secret(self, location: Location) -> None:
        tickets = self.section(model_identity.Tickets, location)
        if tickets is not None:
            self.material.ticket_secret = self._secret(tickets.secret_env, (*location, "secret_env"))

    def _secret(self, name: str, at: Location) -> bytes | None:
        content = self.variable(name, at)
        if content is not None and len(content) < LEAST_SECRET:
            message = f"the secret has {len(content)} bytes; at least {LEAST_SECRET} are needed"
            self.wrong(at, message, "openssl rand -hex 32 makes one")
        return content

    def _further(self, certificates: Sequence[ListenCertificate]) -> None:
        """Read the listener's further certificates: each is for names, and no name for two."""
        names: dict[str, int] = {}
        for index, pair in enumerate(certificates):
            location = ("listen", "tls", "certificates", index)
            self._tls(pair, location)
            at, text = (*location, "certificate"), self.material.tls[location].get("certificate")
            try:
                found = None if text is None else _dns_names(x509.load_pem_x509_certificates(text)[0])
            except ValueError:
                continue  # no certificate, which was said
            self.material.names[location] = found or ()
            if found == ():
                self.wrong(at, "the certificate is for no DNS name", "it needs a subjectAltName")
            for name in found or ():
                if name in names:
                    self.wrong(at, f"certificates[{names[name]}] is for {name}, too")
                names.setdefault(name, index)

    def _tls(self, tls: ListenTls | AdminTls | ListenCertificate | UpstreamTls | None, location: Location) -> None:
        if tls is None:
            return
        authorities = "client_ca" if isinstance(tls, ListenTls | AdminTls) else "ca"
        certificates: dict[str, list[x509.Certificate]] = {}
        texts = self.material.tls.setdefault(location, {})
        for member in (authorities, "certificate"):
            name = getattr(tls, member, None)
            content = None if name is None else self._file(name, (*location, member))
            if content is None:
                continue
            texts[member] = content
            try:
                certificates[member] = x509.load_pem_x509_certificates(content)
                if member == authorities:
                    create_default_context(cadata=content.decode("ascii"))
            except (ValueError, SSLError, UnsupportedAlgorithm):
                self.wrong((*location, member), "the file has no PEM certificate")
            else:
                self._dates(certificates[member][0], (*location, member))
        if tls.key is None:
            return
        content = self._file(tls.key, (*location, "key"))
        if content is None:
            return
        texts["key"] = content
        try:
            key = load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            self.wrong((*location, "key"), "the file has no unencrypted PEM private key")
            return
        if "certificate" in certificates and _public(key.public_key()) != _public(
            certificates["certificate"][0].public_key()
        ):
            self.wrong((*location, "key"), "the key is not the certificate's")

    def system_authorities(self, location: Location) -> None:
        """Read the file of the system's authorities, once, for the first member that is verified by it."""
        if self._looked_for_authorities:
            return
        self._looked_for_authorities = True
        name = self.environ.get("SSL_CERT_FILE")
        if not name:
            name = get_default_verify_paths().openssl_cafile
            if not Path(name).exists():
                return  # there is a directory of them, which OpenSSL looks into by itself
        try:
            content = self.files.read(name)
        except UnreadableError as error:
            self.wrong(location, f"the system's authorities (SSL_CERT_FILE, {name}) {error}", found="")
            return
        certificates = _CERTIFICATE.findall(content)  # between them stand texts in any encoding
        if not certificates:
            self.wrong(
                location, f"the system's authorities (SSL_CERT_FILE, {name}): the file has no PEM certificate", found=""
            )
            return
        self.material.authorities = b"\n".join((*certificates, b""))

    def _dates(self, certificate: x509.Certificate, location: Location) -> None:
        now = datetime.now(UTC)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begins <= now <= ends:
            message = f"it is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}, and it is {now:%Y-%m-%d}"
            self.problems.append(self.document.warning(location, Code.CERTIFICATE_TIME, message))


_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}|[a-z_][a-z0-9_]{0,19}")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
_NEW_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 makes one"


def _dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the names that a certificate is for, lower-case: of its subjectAltName, no CN (RFC 9525, section 2)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower().removesuffix(".") for name in names.get_values_for_type(x509.DNSName))


def _public(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
