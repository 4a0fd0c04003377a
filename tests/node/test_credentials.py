from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from node.config import Cluster
from node.credentials import Admission, asking_context, serving_context
from tests.node.member_certificates import CLUSTER_ID, CertificateAuthority

MEMBERS = ("eu=127.0.0.1:1", "us=127.0.0.1:2")


def certificate(*names: tuple[str, str]) -> dict[str, Any]:
    return {"subject": tuple((name,) for name in names)}


CN, ON = "commonName", "organizationName"


@pytest.mark.parametrize(
    ("names", "welcome"),
    [
        ([(CN, "us"), (ON, CLUSTER_ID)], True),
        ([(ON, CLUSTER_ID), (CN, "us")], True),
        ([(CN, "eu"), (ON, CLUSTER_ID)], False),
        ([(CN, "ap"), (ON, CLUSTER_ID)], False),
        ([(CN, "us"), (ON, "d" * 32)], False),
        ([(CN, "us")], False),
        ([(ON, CLUSTER_ID)], False),
        ([(CN, "us"), (CN, "us"), (ON, CLUSTER_ID)], False),
        ([(CN, "us"), (ON, CLUSTER_ID), (ON, "d" * 32)], False),
        ([(CN, "us\0"), (ON, CLUSTER_ID)], False),
        ([], False),
    ],
)
def test_only_the_other_members_are_let_in(names: list[tuple[str, str]], welcome: bool) -> None:
    admit = Admission(Cluster(id=CLUSTER_ID, members=MEMBERS), "eu")
    assert admit(certificate(*names)) is welcome


def test_no_certificate_is_nobody() -> None:
    assert not Admission(Cluster(id=CLUSTER_ID, members=MEMBERS), "eu")({})


def test_both_sides_are_checked_and_old_protocols_refused(tmp_path: Path) -> None:
    files = CertificateAuthority(tmp_path).issue("eu")
    paths = {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)}
    cluster = Cluster(id=CLUSTER_ID, members=MEMBERS, **paths)
    for context in (serving_context(cluster), asking_context(cluster)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert asking_context(cluster).check_hostname
