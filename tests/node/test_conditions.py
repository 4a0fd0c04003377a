from __future__ import annotations

import pytest

from consensus.commands import ABSENT, Expected
from consensus.names import Digest
from node.conditions import ANYTHING, UNCONDITIONAL, Condition

ONE, TWO, THREE = (Digest("sha256", digit * 64) for digit in "123")
BOTH = frozenset({ONE, TWO})


@pytest.mark.parametrize(
    ("condition", "is_fixed", "held_by"),
    [
        (UNCONDITIONAL, True, {None, ONE, TWO, THREE}),
        (Condition(match=frozenset({ONE})), True, {ONE}),
        (Condition(match=BOTH), False, {ONE, TWO}),
        (Condition(match=frozenset()), False, set()),
        (Condition(match=ANYTHING), False, {ONE, TWO, THREE}),
        (Condition(none_match=ANYTHING), True, {None}),
        (Condition(none_match=BOTH), False, {None, THREE}),
        (Condition(match=ANYTHING, none_match=frozenset({ONE})), False, {TWO, THREE}),
        (Condition(match=frozenset({ONE}), none_match=ANYTHING), False, set()),
    ],
)
def test_conditions(condition: Condition, is_fixed: bool, held_by: set[Digest | None]) -> None:
    assert condition.is_fixed == is_fixed
    assert {current for current in (None, ONE, TWO, THREE) if condition.holds(current)} == held_by


@pytest.mark.parametrize(
    ("condition", "current", "expected"),
    [
        (UNCONDITIONAL, ONE, None),
        (Condition(match=frozenset({ONE})), TWO, ONE),
        (Condition(none_match=ANYTHING), ONE, ABSENT),
        (Condition(match=ANYTHING), ONE, ONE),
        (Condition(match=BOTH), TWO, TWO),
        (Condition(none_match=BOTH), None, ABSENT),
        (Condition(none_match=BOTH), THREE, THREE),
    ],
)
def test_expected(condition: Condition, current: Digest | None, expected: Expected) -> None:
    assert condition.expected(current) == expected
