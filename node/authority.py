"""The certificate authority of a cluster without a PKI of its own: one key in one folder, kept off the nodes.

It signs a certificate for each member; members trust what it has signed and nothing else. The cluster's id is the
authority's, so two clusters never mistake each other. What is written appears whole or not at all: a folder is filled
beside its place, synced, and renamed into it; what is there already is never overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Self

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

from consensus import clock, disk, entropy
from consensus.raft.handshake import dns_name
from node.premises import make_folder

AUTHORITY_DAYS = 3650
MEMBER_DAYS = 730
CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
CERTIFICATE, KEY = "node.crt", "node.key"

_SKEW = timedelta(hours=1)  # a node whose clock is behind has to accept a certificate made now
_MEMBER = re.compile(r"(?=.{1,63}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_CLUSTER_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class AuthorityError(Exception):
    """A folder that is taken or holds no authority, or a name that no member can have; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A member's certificate and key, as PEM, and the authority's certificate to check the others with."""

    member: str
    expires: datetime
    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @property
    def files(self) -> dict[str, bytes]:
        """By the names under which a node looks for them."""
        return {CA_CERTIFICATE: self.ca, CERTIFICATE: self.certificate, KEY: self.key}


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates of members. `cluster_id` has 32 hexadecimal characters."""

    cluster_id: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls) -> Self:
        """A new one, for a new cluster, good for ten years."""
        cluster_id = entropy.token_bytes(16).hex()
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Meridian cluster authority", cluster_id)
        builder = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(cluster_id, certificate, key)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `write` wrote. Raises AuthorityError."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
            key = load_pem_private_key((folder / CA_KEY).read_bytes(), None)
        except OSError as error:
            raise AuthorityError(f"no authority in {folder}: {error}; `meridian cluster ca` makes one") from error
        except (ValueError, TypeError) as error:
            raise AuthorityError(f"the authority in {folder} cannot be read: {error}") from error
        organizations = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        cluster_id = str(organizations[0].value) if organizations else ""
        if not _CLUSTER_ID.fullmatch(cluster_id):
            raise AuthorityError(f"{folder / CA_CERTIFICATE} is not a cluster's authority: its O is no cluster id")
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise AuthorityError(f"{folder / CA_KEY} does not belong to {folder / CA_CERTIFICATE}")
        return cls(cluster_id, certificate, key)

    @property
    def files(self) -> dict[str, bytes]:
        """By the names under which `load` looks for them."""
        return {CA_CERTIFICATE: _pem(self.certificate), CA_KEY: _pem_key(self.key)}

    @property
    def expires(self) -> datetime:
        """When no member's certificate counts any more."""
        return self.certificate.not_valid_after_utc

    def issue(self, member: str, days: int = MEMBER_DAYS) -> Issued:
        """A new certificate and key, good for `days` or until the authority's own end. Raises AuthorityError."""
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        name = dns_name(check_member(member), self.cluster_id)
        subject = _name(member, self.cluster_id)
        builder = _builder(subject, self.certificate.subject, key.public_key(), days, last=self.expires)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Issued(member, certificate.not_valid_after_utc, _pem(self.certificate), _pem(certificate), _pem_key(key))


def check_member(name: str) -> str:
    """The name, if a member can have it: it is also a node's name, a folder's and a part of a DNS name. Raises
    AuthorityError."""
    if not _MEMBER.fullmatch(name):
        raise AuthorityError(
            f"{name[:80]!r} cannot be a member: at most 63 lower-case letters, digits and '-', in parts joined by '.'"
        )
    return name


def publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes a folder with these files (relative paths), durable and all at once; *.key only for their owner.

    Raises AuthorityError when something is there already, OSError.
    """
    if os.path.lexists(folder):
        with contextlib.suppress(PermissionError):
            disk.sync_folder(folder.parent)  # whoever made it may have been killed before it was durable
        raise AuthorityError(f"{folder} exists; it is not overwritten")
    make_folder(folder.parent)
    beside = folder.parent / f".{folder.name}.{entropy.token_bytes(4).hex()}.new"
    beside.mkdir(mode=0o700)
    try:
        _fill(beside, files)
        _rename(beside, folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(beside)
    disk.sync_folder(folder.parent)


def _rename(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:  # made by another in the meantime
            raise AuthorityError(f"{folder} exists; it is not overwritten") from error
        raise


def _fill(root: Path, files: Mapping[str, bytes]) -> None:
    for inner in sorted(_folders(files)):
        (root / inner).mkdir(mode=0o700)
    for path, content in files.items():
        mode = 0o600 if path.endswith(".key") else 0o644
        descriptor = os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            disk.sync_file(descriptor)
    for inner in (".", *_folders(files)):
        disk.sync_folder(root / inner)


def _folders(files: Iterable[str]) -> set[str]:
    return {str(parent) for path in files for parent in PurePosixPath(path).parents if str(parent) != "."}


def _name(common_name: str, cluster_id: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    days: int,
    last: datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(clock.wall_ms() // 1000, UTC)
    end = now + timedelta(days=days)
    if last is not None and last <= now:
        raise AuthorityError(f"the authority's own certificate ended {last:%Y-%m-%d}: a new one is needed")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(int.from_bytes(entropy.token_bytes(16)) + 1)
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(end, last) if last else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
