"""The judgement after a crash: a pure function of what clients were told and what the registry answers now.

lost           acknowledged, and not there any more (or an older value is back)
risen          there, though nobody wrote it, or deleted with an acknowledgement
corrupt        the bytes are not what their digest says
half-visible   visible, but something it needs is not; or HEAD, GET and the listings disagree
upload         an upload that neither resumed nor answered 404
surprise       an answer no healthy registry gives
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chaos.history import History, Key, lost_updates, possible
from chaos.observe import Answer, Observations
from consensus.clock import monotonic


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken: which (see the module's table) and how."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def audit(history: History, seen: Observations) -> list[Violation]:
    """Every violation there is; none means that the crash was survived."""
    return [
        *_registers(history, seen),
        *_listings(seen),
        *_references(seen),
        *(
            Violation("upload", f"{left.location}: {end}")
            for left, end in seen.uploads
            if end not in {"resumed", "gone"}
        ),
        *(Violation("lost", update) for update in lost_updates(history.swaps)),
        *(Violation("surprise", text) for text in history.surprises),
    ]


def differences(seen: Mapping[str, Observations]) -> Iterator[str]:
    """What regions say differently of one register; none if nothing was written meanwhile and all is well."""
    for key in {key for each in seen.values() for key in each.answers}:
        said = {name: each.answers[key].digest for name, each in seen.items() if key in each.answers}
        if len(set(said.values())) > 1:
            yield f"{key}: {said}"


def settle(history: History, seen: Observations) -> None:
    """What an audit without violations has read is from now on what is there."""
    now = monotonic()
    for key, answer in seen.answers.items():
        history.settle(key, answer.digest, now)


def _registers(history: History, seen: Observations) -> Iterator[Violation]:
    now = monotonic()
    for key, answer in seen.answers.items():
        yield from _answer(key, answer)
        allowed = possible(history.writes.get(key, ()), now)
        if answer.status in {200, 404} and answer.digest not in allowed and not _is_corrupt(key, answer):
            is_lost = None not in allowed
            yield Violation("lost" if is_lost else "risen", f"{key} is {answer.digest}, possible is {allowed}")


def _answer(key: Key, answer: Answer) -> Iterator[Violation]:
    if answer.status not in {200, 404}:
        yield Violation("surprise", f"GET of {key} answers {answer.status}")
    if answer.status != answer.head_status:
        yield Violation("half-visible", f"{key}: GET answers {answer.status}, HEAD {answer.head_status}")
    if answer.status == 200 and _is_corrupt(key, answer):
        yield Violation("corrupt", f"{key} is {answer.digest}, claimed to be {answer.claimed}")


def _is_corrupt(key: Key, answer: Answer) -> bool:
    if answer.status != 200:
        return False
    return answer.claimed not in {None, answer.digest} or (key.kind != "tag" and answer.digest != key.name)


def _listings(seen: Observations) -> Iterator[Violation]:
    for key, answer in seen.answers.items():
        if key.kind == "tag" and (answer.status == 200) != (key.name in seen.tags.get(key.repository, ())):
            yield Violation("half-visible", f"{key} answers {answer.status}, and tags/list disagrees")
    for repository, tags in seen.tags.items():
        if list(tags) != sorted(set(tags)):
            yield Violation("half-visible", f"tags/list of {repository} is not in order: {tags}")


def _references(seen: Observations) -> Iterator[Violation]:
    for key, answer in seen.answers.items():
        for needed in answer.references:
            found = seen.answers.get(needed)  # of a blob that is held elsewhere nothing was asked
            if found is not None and found.status != 200:
                yield Violation("half-visible", f"{key} needs {needed}, which answers {found.status}")
