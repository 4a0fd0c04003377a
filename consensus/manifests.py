"""Manifests among the rows: what makes one visible, what hangs on it, and what goes with it.

A row of `manifests` comes and goes together with its rows in `manifest_blobs`, `manifest_children` and `referrers`,
and the last one of a content takes the bytes along.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgpack

from consensus import staging
from consensus.commands import Absent, DeleteManifest, Outcome, PutManifest, Reason
from consensus.names import Digest
from consensus.step import Step, find_content, find_repository, raise_repository, select_in


class _TagRow(NamedTuple):
    name: str
    digest: bytes | None  # None: there is no such tag
    changed: int


def put_manifest(step: Step, command: PutManifest) -> Outcome:
    """Makes the manifest visible and moves its tags, or does nothing at all."""
    kept = find_content(step, command.digest)
    content = command.content
    if content is None and kept is None:
        content = staging.assemble(step, command.repository, command.digest)
        if content is None:
            return step.refused(Reason.STAGE_INCOMPLETE)
    if not _is_what_it_says(command, content, kept[1] if kept else 0):
        staging.drop(step, command.repository, command.digest)
        return step.refused(Reason.SIZE_MISMATCH, [command.digest])
    repository = find_repository(step, command.repository)
    blobs, missing = _find_blobs(step, repository, command)
    if missing:
        return step.not_found(Reason.BLOB_UNKNOWN, missing)
    tags = _find_tags(step, repository, command)
    for tag in tags:
        if _has_moved(tag, command):
            return step.conflict(tag.changed, (Digest.from_bytes(tag.digest),) if tag.digest else ())
    if command.content is None:
        staging.drop(step, command.repository, command.digest)
    repository = raise_repository(step, command.repository)
    identity = kept[0] if kept else _keep_content(step, command.digest, content or b"")
    changed, created = _write_manifest(step, repository, identity, command, blobs)
    return step.done(max(changed, _write_tags(step, repository, identity, command.digest, tags)), created=created)


def delete_manifest(step: Step, command: DeleteManifest) -> Outcome:
    """Takes the manifest from the repository, its tags and its place among the referrers with it."""
    repository = find_repository(step, command.repository)
    if repository is None:
        return step.not_found(Reason.REPOSITORY_UNKNOWN)
    found = step.row(
        "SELECT id, subject FROM contents CROSS JOIN manifests ON content = id AND repository = ? WHERE digest = ?",
        repository,
        command.digest.packed,
    )
    if found is None:
        return step.not_found(Reason.MANIFEST_UNKNOWN, [command.digest])
    content, subject = found
    if step.write("DELETE FROM tags WHERE repository = ? AND content = ?", repository, content):
        step.write("UPDATE repositories SET tags_changed = ? WHERE id = ?", step.index, repository)
    _remove_facts(step, repository, content, command.digest, subject)
    step.write("DELETE FROM manifests WHERE content = ? AND repository = ?", content, repository)
    if step.row("SELECT 1 FROM manifests WHERE content = ? LIMIT 1", content) is None:
        step.write("DELETE FROM contents WHERE id = ?", content)
    return step.done(step.index)


def _is_what_it_says(command: PutManifest, content: bytes | None, kept_bytes: int) -> bool:
    if content is None:
        return command.size_bytes == kept_bytes
    digest = command.digest
    return len(content) == command.size_bytes and hashlib.new(digest.algorithm, content).hexdigest() == digest.hex


def _find_blobs(step: Step, repository: int | None, command: PutManifest) -> tuple[list[int], list[Digest]]:
    """The ids of the blobs it names, and what of blobs and children is not in the repository."""
    facts = command.facts
    query = "SELECT digest, id FROM blobs CROSS JOIN links ON repository = ? AND blob = id WHERE digest IN"
    wanted = [digest.packed for digest in facts.blobs]
    blobs = dict(select_in(step.connection, query, (repository,), wanted))
    missing = [digest for digest, packed in zip(facts.blobs, wanted, strict=True) if packed not in blobs]
    if facts.manifests and not command.sparse:
        query = "SELECT digest FROM contents CROSS JOIN manifests ON content = id AND repository = ? WHERE digest IN"
        wanted = [digest.packed for digest in facts.manifests]
        children = {digest for (digest,) in select_in(step.connection, query, (repository,), wanted)}
        missing += [digest for digest, packed in zip(facts.manifests, wanted, strict=True) if packed not in children]
    return list(blobs.values()), missing


def _find_tags(step: Step, repository: int | None, command: PutManifest) -> list[_TagRow]:
    names = dict.fromkeys(tag.value for tag in command.tags)
    query = (
        "SELECT name, digest, changed FROM tags CROSS JOIN contents ON id = content WHERE repository = ? AND name IN"
    )
    found = {row[0]: _TagRow(*row) for row in select_in(step.connection, query, (repository,), list(names))}
    if len(found) == len(names):
        return [found[name] for name in names]
    listed = step.row("SELECT tags_changed FROM repositories WHERE id = ?", repository)
    return [found.get(name) or _TagRow(name, None, listed[0] if listed else 0) for name in names]


def _has_moved(tag: _TagRow, command: PutManifest) -> bool:
    expected = command.expected
    if expected is None or tag.digest == command.digest.packed:
        return False
    return tag.digest is not None if isinstance(expected, Absent) else tag.digest != expected.packed


def _keep_content(step: Step, digest: Digest, content: bytes) -> int:
    return step.insert(
        "INSERT INTO contents (digest, size_bytes, bytes) VALUES (?, ?, ?)", digest.packed, len(content), content
    )


def _write_manifest(
    step: Step, repository: int, content: int, command: PutManifest, blobs: list[int]
) -> tuple[int, bool]:
    """The manifest's change index, and whether it is new to the repository. The newest media type wins."""
    media_type = command.facts.media_type
    row = step.row(
        "SELECT media_type, subject, changed FROM manifests WHERE content = ? AND repository = ?", content, repository
    )
    if row and row[0] == media_type:
        return row[2], False
    if row:
        _remove_facts(step, repository, content, command.digest, row[1])
    subject = command.facts.subject.packed if command.facts.subject else None
    step.write(
        "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?)", content, repository, media_type, subject, step.index
    )
    _add_facts(step, repository, content, command, blobs)
    return step.index, row is None


def _add_facts(step: Step, repository: int, content: int, command: PutManifest, blobs: list[int]) -> None:
    facts = command.facts
    step.write_many("INSERT INTO manifest_blobs VALUES (?, ?, ?)", [(repository, blob, content) for blob in blobs])
    if facts.manifests:
        rows = [(content, repository, child.packed) for child in facts.manifests]
        step.write_many("INSERT OR IGNORE INTO manifest_children VALUES (?, ?, ?)", rows)
    if facts.subject:
        step.write(
            "INSERT INTO referrers VALUES (?, ?, ?, ?, ?, ?)",
            repository,
            facts.subject.packed,
            command.digest.packed,
            content,
            facts.artifact_type,
            msgpack.packb(facts.annotations),
        )
        _touch_subject(step, repository, facts.subject.packed)


def _remove_facts(step: Step, repository: int, content: int, digest: Digest, subject: bytes | None) -> None:
    step.write("DELETE FROM manifest_blobs WHERE content = ? AND repository = ?", content, repository)
    step.write("DELETE FROM manifest_children WHERE content = ? AND repository = ?", content, repository)
    if subject is not None:
        step.write(
            "DELETE FROM referrers WHERE repository = ? AND subject = ? AND digest = ?",
            repository,
            subject,
            digest.packed,
        )
        _touch_subject(step, repository, subject)


def _touch_subject(step: Step, repository: int, subject: bytes) -> None:
    step.write("INSERT OR REPLACE INTO subjects VALUES (?, ?, ?)", repository, subject, step.index)


def _write_tags(step: Step, repository: int, content: int, digest: Digest, tags: list[_TagRow]) -> int:
    """Points the tags at the manifest; returns the highest change index among them."""
    moved = [tag for tag in tags if tag.digest != digest.packed]
    if not moved:
        return max((tag.changed for tag in tags), default=0)
    rows = [(repository, tag.name, content, step.index) for tag in moved]
    step.write_many("INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)", rows)
    if any(tag.digest is None for tag in moved):
        step.write("UPDATE repositories SET tags_changed = ? WHERE id = ?", step.index, repository)
    return step.index
