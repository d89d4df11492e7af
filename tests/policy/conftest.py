"""Directories with policies and the files that they name."""

import datetime
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

SECRET = "an-hmac-secret-of-more-than-256-bits"


def make_certificate(
    certificate: Path,
    key: Path,
    begin: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    days: int = 36500,
) -> None:
    """Write a self-signed certificate and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, certificate.stem)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(7)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .sign(private, hashes.SHA256())
    )
    for path in (certificate, key):
        path.parent.mkdir(parents=True, exist_ok=True)
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.fixture(scope="session")
def example_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the example policy and every file that it names. Tests copy what they change."""
    directory = tmp_path_factory.mktemp("example")
    shutil.copy(Path(__file__).with_name("policy-example.yaml"), directory)
    for name in ("server", "clients", "internal", "gw"):
        make_certificate(directory / "tls" / f"{name}.pem", directory / "tls" / f"{name}.key")
    make_certificate(directory / "unused.pem", directory / "keys" / "assertion.pem")
    return directory


@pytest.fixture
def example(example_files: Path, tmp_path: Path) -> Path:
    """The example policy in a directory of its own."""
    return Path(shutil.copytree(example_files, tmp_path / "example")) / "policy-example.yaml"


@pytest.fixture
def environ() -> dict[str, str]:
    """The variables that the example needs."""
    return {"MITMGATE_DEV_SECRET": SECRET}
