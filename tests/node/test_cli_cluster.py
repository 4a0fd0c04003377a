from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from node.cli_cluster import MEMBER_DAYS
from node.config import load
from tests.node.commands import meridian
from tests.node.test_cli import fails, succeeds

MEMBERS = ("eu-1=10.0.0.1:5200", "us-1=us.example.org:5200", "ap-1=[2001:db8::1]:5200")


def days_of(certificate: Path) -> int:
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    return (read.not_valid_after_utc - read.not_valid_before_utc).days


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_an_authority_and_certificates_in_two_steps(tmp_path: Path) -> None:
    made = succeeds(tmp_path, "cluster", "ca", "authority")
    assert "keep authority/ca.key off the nodes" in made
    assert "next: meridian cluster cert --ca authority MEMBER..." in made
    assert files(tmp_path) == {"authority/ca.crt", "authority/ca.key"}
    assert (tmp_path / "authority/ca.key").stat().st_mode & 0o777 == 0o600
    head, row, *rest = succeeds(tmp_path, "cluster", "cert", "--out", "out", "--days", "30", "eu-1").splitlines()
    assert head.split() == ["MEMBER", "EXPIRES", "COPY", "TO"]
    member, expires, copy, *to = row.split()
    assert (member, copy, " ".join(to)) == ("eu-1", "out/eu-1/*", "/etc/meridian on eu-1")
    assert len(expires) == len("2026-11-24")
    assert rest[-1].endswith("keep authority/ca.key off the nodes")
    assert files(tmp_path / "out") == {"eu-1/ca.crt", "eu-1/node.crt", "eu-1/node.key"}
    assert days_of(tmp_path / "out/eu-1/node.crt") == 30
    assert (tmp_path / "out/eu-1/ca.crt").read_bytes() == (tmp_path / "authority/ca.crt").read_bytes()


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    first = json.loads(succeeds(tmp_path, "cluster", "ca", "authority", "--json"))
    assert len(first["cluster_id"]) == 32
    before = (tmp_path / "authority/ca.key").read_bytes()
    assert fails(tmp_path, 1, "cluster", "ca", "authority") == "authority exists; it is not overwritten"
    assert fails(tmp_path, 1, "cluster", "ca", ".") == ". exists; it is not overwritten"
    assert (tmp_path / "authority/ca.key").read_bytes() == before


def test_no_certificate_is_issued_when_one_of_the_members_cannot_have_one(tmp_path: Path) -> None:
    succeeds(tmp_path, "cluster", "ca", "authority")
    (tmp_path / "us-1").mkdir()
    assert "us-1 exists; it is not overwritten, and nothing was issued" in fails(
        tmp_path, 1, "cluster", "cert", "eu-1", "us-1"
    )
    assert "'../x' cannot be a member" in fails(tmp_path, 1, "cluster", "cert", "eu-1", "../x")
    assert "no authority in elsewhere" in fails(tmp_path, 1, "cluster", "cert", "--ca", "elsewhere", "eu-1")
    assert "Missing argument 'MEMBER...'" in fails(tmp_path, 2, "cluster", "cert")
    assert not (tmp_path / "eu-1").exists()


def test_a_whole_cluster_at_once(tmp_path: Path) -> None:
    made = json.loads(succeeds(tmp_path, "cluster", "init", "new", *MEMBERS, "--json"))
    assert [row["member"] for row in made["members"]] == ["eu-1", "us-1", "ap-1"]
    names = ("ca.crt", "node.crt", "node.key", "meridian.toml")
    nodes = {f"nodes/{member}/{name}" for member in ("eu-1", "us-1", "ap-1") for name in names}
    assert files(tmp_path / "new") == {"authority/ca.crt", "authority/ca.key", *nodes}
    for member, address in (each.split("=") for each in MEMBERS):
        snippet = tomllib.loads((tmp_path / "new/nodes" / member / "meridian.toml").read_text())
        assert snippet["node"] == {"name": member}
        assert snippet["listen"] == {"peers": address}
        assert snippet["cluster"]["id"] == made["authority"]["cluster_id"]
        assert snippet["cluster"]["members"] == list(MEMBERS)
        for key in ("ca", "certificate", "key"):
            assert (tmp_path / "new/nodes" / member / snippet["cluster"][key]).is_file()
    assert days_of(tmp_path / "new/nodes/eu-1/node.crt") == MEMBER_DAYS
    late = succeeds(tmp_path, "cluster", "cert", "--ca", "new/authority", "--out", "new/nodes", "eu-2")
    assert made["authority"]["cluster_id"] in late


def test_the_parts_that_exist_in_a_configuration_are_accepted_there(tmp_path: Path) -> None:
    succeeds(tmp_path, "cluster", "init", "new", "eu-1=127.0.0.1:5200")
    before, _, _ = (tmp_path / "new/nodes/eu-1/meridian.toml").read_text().partition("\n[cluster]\n")
    (tmp_path / "meridian.toml").write_text(before)
    assert load(tmp_path / "meridian.toml", {}).node.name == "eu-1"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("eu-1",), "'eu-1' is not NAME=HOST:PORT"),
        (("eu-1=host",), "is not NAME=HOST:PORT"),
        (("eu-1=host:0",), "is not NAME=HOST:PORT"),
        (("eu-1=host:70000",), "is not NAME=HOST:PORT"),
        (("eu-1=a b:1",), "is not NAME=HOST:PORT"),
        (("eu-1=a:1", "eu-1=b:1"), "a member is named twice"),
        (("eu-1=a:1", "us-1=a:1"), "two members have the same address"),
        ((), "Missing argument 'NAME=HOST:PORT...'"),
    ],
)
def test_members_that_cannot_be(members: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in fails(tmp_path, 2, "cluster", "init", "new", *members)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["ca", "cert", "init"])
def test_each_command_shows_how_it_is_used(command: str, tmp_path: Path) -> None:
    answer = meridian("cluster", command, "--help", cwd=tmp_path)
    assert "Example" in answer.stdout
    assert f"meridian cluster {command}" in answer.stdout


def test_the_days_in_the_help_are_those_of_the_authority() -> None:
    from node import authority

    assert authority.MEMBER_DAYS == MEMBER_DAYS
