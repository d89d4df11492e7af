"""Names of X.509 certificates: of a connection's, and of those that a trusted proxy passes on in a header field."""

from collections.abc import Sequence

from cryptography import x509

from mitmgate.core.certificate import FIELD, UNREADABLE, Certificates, ClientCertificate, names_in
from mitmgate.core.headers import Headers
from mitmgate.core.proof import passed_certificate
from mitmgate.core.refusal import Refusal

_ODD = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def names_of(certificate: x509.Certificate) -> ClientCertificate:
    """Read a certificate's names. One whose names can't be read has none."""
    subject, until = certificate.subject.rfc4514_string(), certificate.not_valid_after_utc.timestamp()
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(san.get_values_for_type(x509.UniformResourceIdentifier))
        dns = tuple(san.get_values_for_type(x509.DNSName))
        return ClientCertificate(subject, uris, dns, tuple(san.get_values_for_type(x509.RFC822Name)), until)
    except x509.ExtensionNotFound:
        return ClientCertificate(subject, until=until)
    except _ODD:
        return ClientCertificate("", until=until)


def passed_on(headers: Headers, rule: Certificates) -> ClientCertificate | Refusal | None:
    """Read the certificate of the client of the proxy that sends these fields; None: it has shown none.

    The caller knows the proxy for one that may say so.
    """
    if rule.field is not None:
        return _whole(headers.all(rule.field))
    return names_in(headers.all(FIELD)) if rule.forwarded else None


def is_certificate(value: bytes) -> bool:
    """Tell whether a field's value is a certificate, as a proxy passes one on, and nothing else."""
    if not value.startswith((b":M", b"-----BEGIN")):
        return False
    der = passed_certificate(value)
    try:
        return der is not None and bool(x509.load_der_x509_certificate(der))
    except (*_ODD, x509.InvalidVersion):
        return False


def _whole(values: Sequence[bytes]) -> ClientCertificate | Refusal | None:
    if all(value in {b"", b"::"} for value in values):
        return None
    der = passed_certificate(values[0]) if len(values) == 1 else None
    try:
        return UNREADABLE if der is None else names_of(x509.load_der_x509_certificate(der))
    except (*_ODD, x509.InvalidVersion):
        return UNREADABLE
