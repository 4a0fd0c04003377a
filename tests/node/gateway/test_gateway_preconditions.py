from __future__ import annotations

from typing import Any

import pytest

from consensus.commands import ABSENT
from consensus.names import Digest
from node.conditions import ANYTHING, UNCONDITIONAL, Condition
from node.errors import ConditionFailed
from node.gateway.preconditions import entity_tag, is_fresh, parse_condition, require_match
from node.gateway.refusals import MalformedRequest
from node.gateway.requests import Request

ONE = Digest("sha256", "1" * 64)
TWO = Digest("sha512", "2" * 128)


def request(**headers: str | list[str]) -> Request:
    lines = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    scope = {"type": "http", "method": "PUT", "path": "/", "query_string": b"", "headers": lines}
    return Request(scope, _nothing, _nothing)


async def _nothing(*_: Any) -> Any:
    raise AssertionError


def test_an_entity_tag_is_the_digest_in_quotes() -> None:
    assert entity_tag(ONE) == b'"sha256:' + b"1" * 64 + b'"'


@pytest.mark.parametrize(
    "value",
    ["*", f'"{ONE}"', f'W/"{ONE}"', f'"other" , "{ONE}"', ['"other"', f'"{ONE}"'], f'nonsense, "{ONE}"'],
)
def test_fresh(value: str | list[str]) -> None:
    assert is_fresh(request(if_none_match=value), ONE)


@pytest.mark.parametrize("value", ["", f'"{TWO}"', str(ONE), f'"{ONE}', f'w/"{ONE}"', '"*"'])
def test_not_fresh(value: str) -> None:
    assert not is_fresh(request(if_none_match=value), ONE)


def test_not_fresh_without_the_header() -> None:
    assert not is_fresh(request(), ONE)


@pytest.mark.parametrize("value", ["*", f'"{ONE}"', f'W/"{TWO}", "{ONE}"', [f'"{TWO}"', f'"{ONE}"'], f'x, "{ONE}"'])
def test_a_read_that_expects_this(value: str | list[str]) -> None:
    require_match(request(if_match=value), ONE)
    require_match(request(), ONE)


@pytest.mark.parametrize("value", ["", "*, *", str(ONE), f'W/"{ONE}"', f'"{TWO}"', '"*"'])
def test_a_read_that_expects_something_else(value: str) -> None:
    with pytest.raises(ConditionFailed):
        require_match(request(if_match=value), ONE)


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({}, UNCONDITIONAL),
        ({"if_match": f'"{ONE}"'}, Condition(match=frozenset({ONE}))),
        ({"if_match": f'"{ONE}", "{TWO}"'}, Condition(match=frozenset({ONE, TWO}))),
        ({"if_match": [f'"{ONE}"', f'"{TWO}"']}, Condition(match=frozenset({ONE, TWO}))),
        ({"if_match": " * "}, Condition(match=ANYTHING)),
        ({"if_match": f'W/"{ONE}"'}, Condition(match=frozenset())),
        ({"if_none_match": "*"}, Condition(none_match=ANYTHING)),
        ({"if_none_match": f'"{ONE}"', "if_match": "*"}, Condition(match=ANYTHING, none_match=frozenset({ONE}))),
    ],
)
def test_condition(headers: dict[str, Any], condition: Condition) -> None:
    assert parse_condition(request(**headers)) == condition


@pytest.mark.parametrize(
    "value",
    ["", str(ONE), '"latest"', f'"{ONE}', f'"{ONE}",', f'"{ONE}" "{TWO}"', '*, "x"', f'"{str(ONE).upper()}"', '"é"']
    + [", ".join([f'"{ONE}"'] * 33)],
)
def test_malformed(value: str) -> None:
    with pytest.raises(MalformedRequest):
        parse_condition(request(if_match=value))


def test_expectations() -> None:
    assert parse_condition(request(if_none_match="*")).expected(None) is ABSENT
    assert parse_condition(request(if_match=f'"{ONE}"')).expected(None) == ONE
