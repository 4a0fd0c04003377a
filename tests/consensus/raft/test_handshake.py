from __future__ import annotations

import pytest

from consensus.raft.handshake import Hello, Reason, Refused, dns_name, member_named

CLUSTER = "0123456789abcdef" * 2
OTHER = "f" * 32


@pytest.mark.parametrize("member", ["eu-1", "a", "node.eu.1", "meridian", OTHER])
def test_a_name_leads_back_to_its_member(member: str) -> None:
    assert member_named([dns_name(member, CLUSTER).encode()], CLUSTER) == member


def test_names_of_other_kinds_do_not_matter() -> None:
    names = [b"registry.example.org", b"10.0.0.1", dns_name("eu-1", CLUSTER).encode(), b"\xff\xfe"]
    assert member_named(names, CLUSTER) == "eu-1"


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["registry.example.org"],
        [dns_name("eu-1", CLUSTER), dns_name("us-1", CLUSTER)],
        [dns_name("eu-1", CLUSTER), dns_name("eu-1", CLUSTER)],
        [dns_name("eu-1", CLUSTER), dns_name("eu-1", OTHER)],
        [f"{CLUSTER}.meridian"],
        [f".{CLUSTER}.meridian"],
        [dns_name("*", CLUSTER)],
        [dns_name("EU-1", CLUSTER)],
        [dns_name("eu-1", CLUSTER.upper())],
        [dns_name("eu-1", CLUSTER[:-1])],
        [dns_name("eu\n1", CLUSTER)],
        [dns_name("eu-1\n", CLUSTER)],
    ],
    ids=str,
)
def test_a_certificate_without_exactly_one_member_is_refused(names: list[str]) -> None:
    with pytest.raises(Refused) as error:
        member_named([name.encode() for name in names], CLUSTER)
    assert error.value.reason is Reason.NO_IDENTITY


def test_a_member_of_another_cluster_is_refused() -> None:
    with pytest.raises(Refused) as error:
        member_named([dns_name("eu-1", OTHER).encode()], CLUSTER)
    assert error.value.reason is Reason.OTHER_CLUSTER


def test_a_hello_arrives_as_it_was() -> None:
    hello = Hello(CLUSTER, 10**19 - 1, 7)
    assert Hello.parse([("user-agent", "grpc"), ("x-bin", b"\x00"), *hello.metadata], CLUSTER) == hello


@pytest.mark.parametrize(
    ("key", "value"), [(2, "1.0"), (2, ""), (2, "٣"), (3, "1_0"), (3, "+1"), (3, "1\n"), (3, b"1")]
)
def test_a_number_is_digits(key: int, value: str | bytes) -> None:
    said: list[tuple[str, str | bytes]] = list(Hello(CLUSTER, 1, 1).metadata)
    said[key] = (said[key][0], value)
    with pytest.raises(Refused) as error:
        Hello.parse(said, CLUSTER)
    assert error.value.reason is Reason.BAD_HANDSHAKE


def test_a_later_incarnation_is_newer_whatever_its_generation() -> None:
    ages = [Hello(CLUSTER, *numbers).age for numbers in ((1, 1), (1, 2), (2, 1))]
    assert ages == sorted(ages)
