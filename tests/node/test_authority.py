from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from consensus.clock import wall_ms
from node.authority import Authority, AuthorityError, check_member, publish

AUTHORITY = Authority.create()


def now() -> datetime:
    return datetime.fromtimestamp(wall_ms() / 1000, UTC)


def field(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[object]:
    return [each.value for each in certificate.subject.get_attributes_for_oid(oid)]


def test_an_authority_can_only_sign_members() -> None:
    certificate = AUTHORITY.certificate
    assert field(certificate, NameOID.ORGANIZATION_NAME) == [AUTHORITY.cluster_id]
    assert len(bytes.fromhex(AUTHORITY.cluster_id)) == 16
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    assert timedelta(days=3649) < AUTHORITY.expires - now() <= timedelta(days=3650)


def test_a_members_certificate_names_it_and_its_cluster() -> None:
    issued = AUTHORITY.issue("eu-1")
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    assert field(certificate, NameOID.COMMON_NAME) == ["eu-1"]
    assert field(certificate, NameOID.ORGANIZATION_NAME) == [AUTHORITY.cluster_id]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"eu-1.{AUTHORITY.cluster_id}.meridian"]
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert timedelta(days=729) < issued.expires - now() <= timedelta(days=730)
    key = load_pem_private_key(issued.key, None)
    assert key.public_key() == certificate.public_key()
    assert issued.key.decode() not in repr(issued)


def test_certificates_verify_as_the_web_has_it_and_those_of_another_authority_do_not() -> None:
    issued = AUTHORITY.issue("eu-1")
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    name = x509.DNSName(f"eu-1.{AUTHORITY.cluster_id}.meridian")
    policy = PolicyBuilder().store(Store([AUTHORITY.certificate]))
    policy.build_server_verifier(name).verify(certificate, [])
    policy.build_client_verifier().verify(certificate, [])
    foreign = PolicyBuilder().store(Store([Authority.create().certificate]))
    with pytest.raises(VerificationError):
        foreign.build_server_verifier(name).verify(certificate, [])


def test_openssl_takes_them(tmp_path: Path) -> None:
    publish(tmp_path / "node", AUTHORITY.issue("eu-1").files)
    context = ssl.create_default_context(cafile=str(tmp_path / "node" / "ca.crt"))
    context.load_cert_chain(tmp_path / "node" / "node.crt", tmp_path / "node" / "node.key")


def test_no_certificate_outlives_its_authority_and_numbers_differ() -> None:
    issued = [AUTHORITY.issue("eu-1", days=3650) for _ in range(3)]
    assert all(each.expires <= AUTHORITY.expires for each in issued)
    assert len({x509.load_pem_x509_certificate(each.certificate).serial_number for each in issued}) == 3


@pytest.mark.parametrize("name", ["a", "eu-1", "node.eu-1", "0", "a" * 63])
def test_names_that_members_can_have(name: str) -> None:
    assert check_member(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a..b", ".a", "a.", "A", "a_b", "a/b", "..", "a b", "a\n", "ä", "*", "a" * 64, "a=b"]
)
def test_names_that_no_member_can_have(name: str) -> None:
    with pytest.raises(AuthorityError, match="cannot be a member"):
        AUTHORITY.issue(name)


def test_an_authority_is_read_as_it_was_written(tmp_path: Path) -> None:
    publish(tmp_path / "deep" / "authority", AUTHORITY.files)
    read = Authority.load(tmp_path / "deep" / "authority")
    assert read.cluster_id == AUTHORITY.cluster_id
    assert read.files == AUTHORITY.files


def test_what_is_no_authority_says_so(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="`meridian cluster ca` makes one"):
        Authority.load(tmp_path)
    for name, files, message in (
        ("damaged", AUTHORITY.files | {"ca.key": b"x"}, "cannot be read"),
        ("mixed", AUTHORITY.files | {"ca.key": Authority.create().files["ca.key"]}, "does not belong to"),
        ("member", {"ca.crt": AUTHORITY.issue("a").certificate, "ca.key": AUTHORITY.files["ca.key"]}, "not belong"),
    ):
        publish(tmp_path / name, files)
        with pytest.raises(AuthorityError, match=message):
            Authority.load(tmp_path / name)


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    publish(tmp_path / "made", {"a.key": b"1", "inner/b.key": b"2", "c.crt": b"3"})
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "made").rglob("*")}
    assert modes.pop("c.crt") & 0o600 == 0o600
    assert modes == {"a.key": 0o600, "inner": 0o700, "b.key": 0o600}
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("empty", "file", "dangling"):
        with pytest.raises(AuthorityError, match="exists; it is not overwritten"):
            publish(tmp_path / name, {"ca.key": b"1"})
    with pytest.raises(OSError, match="too long"):
        publish(tmp_path / "new", {"a": b"1", "b" * 300: b"2"})
    assert {each.name for each in tmp_path.iterdir()} == {"empty", "file", "dangling"}
    assert (tmp_path / "file").read_text() == "mine"
