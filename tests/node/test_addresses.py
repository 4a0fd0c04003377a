from __future__ import annotations

import pytest

from node.addresses import is_loopback, keeper_addresses, split_address, transfer_addresses


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1:5000", True),
        ("127.9.9.9:1", True),
        ("[::1]:5000", True),
        ("localhost:5000", True),
        ("0.0.0.0:5000", False),
        ("[::]:5000", False),
        ("10.0.0.1:5000", False),
        ("registry.example:5000", False),
    ],
)
def test_loopback(address: str, inside: bool) -> None:
    assert is_loopback(address) is inside


def test_addresses_are_split() -> None:
    assert split_address("[::1]:5000") == ("::1", 5000)
    assert split_address("localhost:0") == ("localhost", 0)


def test_members_have_two_addresses() -> None:
    members = ("eu=host:5200", "us=[::1]:1/2")
    assert keeper_addresses(members) == {"eu": "host:5200", "us": "[::1]:1"}
    assert transfer_addresses(members) == {"eu": "host:5300", "us": "[::1]:2"}
