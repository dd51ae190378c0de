"""The federation's certificate authority, and the coordinator's certificates by it.

The authority signs nothing but this coordinator's certificates; sites get its certificate with
their invitation and trust no other for this connection. The key of the authority is needed only
to renew certificates and may be kept elsewhere in between.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import create_atomically, storage_errors, write_atomically

AUTHORITY_DAYS = 3650
SERVER_DAYS = 398
WARN_DAYS = 30
"""Days before its end at which a certificate should be renewed."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CLOCK_SLACK = timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


def authority_pair(folder: Path) -> Pair:
    """The authority's files."""
    return Pair(folder / "ca.crt", folder / "ca.key")


def create_authority(folder: Path, name: str) -> None:
    """A new authority, EC P-384, good for ten years; the key for its owner's eyes alone."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Lorica federation {name}"[:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    pair = authority_pair(folder)
    _write_key(pair.key, key)
    _write(pair.certificate, certificate.public_bytes(Encoding.PEM))


def issue(
    folder: Path, pair: Pair, names: Sequence[str], *, days: int = SERVER_DAYS
) -> x509.Certificate:
    """A new key and server certificate in ``pair``, signed by the authority in ``folder``.

    Args:
        folder: the authority's.
        pair: where to; replaced when there.
        names: host names and IP addresses of the subject alternative names.
        days: how long it is good; below 0 it has expired already (tests).

    Raises:
        LoricaError: LOR-724 no authority there, LOR-60x.
    """
    authority, signer = _load_authority(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    now = datetime.now(UTC)
    begins = min(now, now + timedelta(days=days)) - _CLOCK_SLACK
    ends = min(now + timedelta(days=days), authority.not_valid_after_utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName(alternative_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
    )
    pair.key.unlink(missing_ok=True)
    _write_key(pair.key, key)
    _write(pair.certificate, certificate.public_bytes(Encoding.PEM))
    return certificate


def alternative_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Host names and addresses as subject alternative names, without repetition.

    Raises:
        LoricaError: LOR-724 one of them can be in no certificate.
    """
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            try:
                found.append(x509.DNSName(name))
            except ValueError as error:
                raise LoricaError(
                    Code.CERTIFICATE, f"{name!r:.80} is neither a host name nor an IP address."
                ) from error
    return found


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file. Raises LOR-724, LOR-602."""
    with storage_errors(path):
        content = path.read_bytes()
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise LoricaError(Code.CERTIFICATE, f"{path} holds no certificate in PEM.") from error


def days_left(certificate: x509.Certificate) -> float:
    """Days until it expires; below 0 when it has."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    pair = authority_pair(folder)
    if not pair.key.exists():
        raise LoricaError(
            Code.CERTIFICATE,
            f"The authority's key {pair.key} is not there, and only it can sign a certificate.",
            mend="Put it back for as long as this command runs.",
        )
    try:
        key = load_pem_private_key(pair.key.read_bytes(), password=None)
    except (ValueError, TypeError, OSError) as error:
        raise LoricaError(
            Code.CERTIFICATE, f"{pair.key} holds no readable private key in PEM."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise LoricaError(Code.CERTIFICATE, f"The key in {pair.key} is not an EC key.")
    return read_certificate(pair.certificate), key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if not create_atomically(path, content, mode=0o600):
        raise LoricaError(Code.FEDERATION_EXISTS, f"{path} exists already.")


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content)
    path.chmod(0o644)
