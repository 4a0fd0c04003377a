"""The judge, judged: every kind of loss has to be found, and what is allowed must not be taken for one."""

import math

import pytest

from chaos.audit import audit, settle
from chaos.history import History, Key, PendingUpload, Swap, Write, lost_updates, possible
from chaos.observe import Answer, Observations

TAG = Key("tag", "library/one", "latest")
A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
BLOB = Key("blob", "library/one", A)


def _there(digest: str, *references: Key) -> Answer:
    return Answer(200, 200, digest, digest, references)


_ABSENT = Answer(404, 404)


@pytest.mark.parametrize(
    ("writes", "allowed"),
    [
        ([], {None}),
        ([Write(A, 1, 2)], {A}),
        ([Write(A, 1)], {None, A}),
        ([Write(A, 1, 2), Write(B, 3, 4)], {B}),
        ([Write(A, 1, 3), Write(B, 2, 4)], {A, B}),  # concurrent: either came last
        ([Write(A, 1), Write(B, 2, 3)], {A, B}),  # in doubt since before B, may come after it
        ([Write(A, 1, 2), Write(B, 3)], {A, B}),
        ([Write(A, 1, 2), Write(None, 3, 4)], {None}),
        ([Write(A, 1, 2), Write(B, 3, 4), Write(C, 5)], {B, C}),
        ([Write(A, 1, 2), Write(B, 11, 12)], {A}),  # B began after the read had ended
    ],
)
def test_possible_values(writes: list[Write], allowed: set[str | None]) -> None:
    assert possible(writes, 9, 10) == allowed


def test_a_read_beside_a_write_may_see_either() -> None:
    assert possible([Write(A, 1, 2), Write(B, 3, 6)], 5, 7) == {A, B}


def test_two_swaps_from_one_value_are_a_lost_update() -> None:
    fine = [Swap(TAG, None, A), Swap(TAG, A, B)]
    assert lost_updates(fine) == []
    assert len(lost_updates([*fine, Swap(TAG, A, C)])) == 1
    assert len(lost_updates([*fine, Swap(TAG, None, C)])) == 1


def _history(*writes: tuple[Key, Write]) -> History:
    history = History()
    for key, write in writes:
        history.writes[key].append(write)
        history.touched.add(key)
    return history


def _kinds(history: History, seen: Observations) -> list[str]:
    return [violation.kind for violation in audit(history, seen)]


def _seen(answers: dict[Key, Answer]) -> Observations:
    tags = tuple(sorted(key.name for key, answer in answers.items() if key.kind == "tag" and answer.status == 200))
    return Observations(answers=answers, repositories=(TAG.repository,), tags={TAG.repository: tags})


def test_nothing_wrong() -> None:
    history = _history((TAG, Write(A, 1, 2)), (BLOB, Write(A, 1, 2)))
    assert _kinds(history, _seen({TAG: _there(A, BLOB), BLOB: _there(A)})) == []


def test_lost() -> None:
    history = _history((BLOB, Write(A, 1, 2)), (TAG, Write(A, 1, 2)), (TAG, Write(B, 3, 4)))
    assert _kinds(history, _seen({BLOB: _ABSENT})) == ["lost"]
    assert _kinds(history, _seen({TAG: _there(A)})) == ["lost"]


def test_risen() -> None:
    history = _history((BLOB, Write(A, 1, 2)), (BLOB, Write(None, 3, 4)))
    assert _kinds(history, _seen({BLOB: _there(A)})) == ["risen"]
    assert _kinds(history, _seen({TAG: _there(C)})) == ["risen"]


@pytest.mark.parametrize("answer", [Answer(200, 200, B, A), Answer(200, 200, B, B), Answer(200, 200, A, B)])
def test_corrupt(answer: Answer) -> None:
    assert _kinds(_history((BLOB, Write(A, 1, 2))), _seen({BLOB: answer})) == ["corrupt"]


def test_half_visible() -> None:
    blob, tag = (BLOB, Write(A, 1)), (TAG, Write(A, 1))
    assert _kinds(_history(blob, tag), _seen({TAG: _there(A, BLOB), BLOB: _ABSENT})) == ["half-visible"]
    assert _kinds(_history(blob), _seen({BLOB: Answer(404, 200)})) == ["half-visible"]
    unlisted = Observations(answers={TAG: _there(A)}, tags={TAG.repository: ()})
    assert _kinds(_history(tag), unlisted) == ["half-visible"]
    unordered = Observations(tags={TAG.repository: ("b", "a")})
    assert _kinds(History(), unordered) == ["half-visible"]


def test_errors_and_broken_uploads() -> None:
    history = _history((BLOB, Write(A, 1)))
    assert _kinds(history, _seen({BLOB: Answer(500, 500)})) == ["surprise"]
    upload = PendingUpload("library/one", "/v2/x", A, b"")
    for end, kinds in (("resumed", []), ("gone", []), ("GET /v2/x: 500", ["upload"])):
        assert _kinds(history, Observations(uploads=[(upload, end)])) == kinds


def test_settling_ends_all_doubt() -> None:
    history = _history((TAG, Write(A, 1)), (TAG, Write(B, 2)))
    settle(history, _seen({TAG: _there(A)}))
    assert possible(history.writes[TAG], math.inf) == {A}
    assert history.touched == set()
    assert _kinds(history, _seen({TAG: _there(B)})) == ["lost"]
