"""Certificates of a cluster, right ones and wrong ones, made in a moment."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CLUSTER_ID = "c" * 32


@dataclass(frozen=True)
class Issued:
    """PEM files."""

    ca: Path
    certificate: Path
    key: Path

    def client_context(self) -> ssl.SSLContext:
        """For a client that shows this certificate and trusts its CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def server_context(self) -> ssl.SSLContext:
        """For a server that shows this certificate to anybody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class CertificateAuthority:
    """A CA in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority", CLUSTER_ID)
        self._made = 0
        self.file = folder / "ca.pem"
        certificate = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))

    def issue(self, member: str, cluster_id: str = CLUSTER_ID, *more: str) -> Issued:
        """A certificate for a member, as the cluster's own CA makes them, but for those with `more` names."""
        key = ec.generate_private_key(ec.SECP256R1())
        self._made += 1
        files = Issued(self.file, self._folder / f"{self._made}.pem", self._folder / f"{self._made}.key")
        name = x509.DNSName(f"{member}.{cluster_id}.meridian")
        certificate = self._builder(_name(member, cluster_id, *more), key).add_extension(
            x509.SubjectAlternativeName([name]), critical=False
        )
        files.certificate.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))


def _name(common: str, organization: str, *more: str) -> x509.Name:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in (common, *more)]
    return x509.Name([*names, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
