"""Names of certificates: what can't be read is no name, and nothing that a certificate holds makes it raise."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from mitmgate.core.certificate import ClientCertificate
from mitmgate.keys.certificate import names_of


@pytest.mark.parametrize(
    "san",
    [
        b"\x30\x04\xa3\x02\x30\x00",  # an X.400 address
        b"\x30\x04\xa5\x02\x30\x00",  # a name of EDI parties
        b"\x30\x03\x82\x01\xff",  # a host name beyond ASCII
        b"\x30",
        b"",
    ],
)
def test_names_that_can_not_be_read_are_none(san: bytes) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]), datetime.datetime(2026, 1, 1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now)
        .add_extension(x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, san), critical=False)
        .sign(key, hashes.SHA256())
    )
    assert names_of(made) == ClientCertificate("", until=now.replace(tzinfo=datetime.UTC).timestamp())
