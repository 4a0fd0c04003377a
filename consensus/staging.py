"""Manifest bytes that arrive in parts: kept for an hour of log time, within a bound on all of them together."""

from __future__ import annotations

from consensus.commands import Outcome, StageContent
from consensus.names import Digest, RepositoryName
from consensus.step import Step

STAGED_MS = 3600 * 1000
MAX_STAGED_BYTES = 64 * 1024 * 1024
MAX_STAGED_PARTS = 2048


def stage(step: Step, command: StageContent) -> Outcome:
    """Keeps one part, in place of an earlier one of the same number; what has grown old, and the oldest beyond the
    bounds, goes."""
    step.write("DELETE FROM staged WHERE time_ms < ?", step.now_ms - STAGED_MS)
    key = (command.repository.value, command.digest.packed)
    step.write(
        "DELETE FROM staged WHERE repository = ? AND digest = ? AND (part = ? OR parts <> ?)",
        *key,
        command.part,
        command.parts,
    )
    step.write(
        "INSERT INTO staged (entry, repository, digest, part, parts, time_ms, content) VALUES (?, ?, ?, ?, ?, ?, ?)",
        step.index,
        *key,
        command.part,
        command.parts,
        step.now_ms,
        command.content,
    )
    _drop_oldest(step)
    return step.done(0)


def assemble(step: Step, repository: RepositoryName, digest: Digest) -> bytes | None:
    """The whole content, or None while a part is missing."""
    rows = step.rows(
        "SELECT parts, content FROM staged WHERE repository = ? AND digest = ? ORDER BY part",
        repository.value,
        digest.packed,
    )
    if not rows or len(rows) != rows[0][0]:
        return None
    return b"".join(content for _, content in rows)


def drop(step: Step, repository: RepositoryName, digest: Digest) -> None:
    """Forgets the parts of one content."""
    step.write("DELETE FROM staged WHERE repository = ? AND digest = ?", repository.value, digest.packed)


def _drop_oldest(step: Step) -> None:
    total, count = step.row("SELECT sum(length(content)), count(*) FROM staged")
    while total > MAX_STAGED_BYTES or count > MAX_STAGED_PARTS:
        entry, size = step.row("SELECT entry, length(content) FROM staged ORDER BY entry LIMIT 1")
        step.write("DELETE FROM staged WHERE entry = ?", entry)
        total, count = total - size, count - 1
