"""What each command does to the rows, and what comes of it.

Every function checks first and writes after: an outcome other than DONE has changed nothing that a reader can see.
Exactly-once, log time and transactions are the caller's (`consensus.state`); manifests are in `consensus.manifests`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consensus import manifests, staging
from consensus.commands import (
    Command,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    MountBlob,
    Outcome,
    PutManifest,
    Reason,
    RecordBlobs,
    StageContent,
)
from consensus.names import Digest, StoreId
from consensus.step import MAX_OUTCOME_DIGESTS, Step, find_repository, raise_repository, select_in


def apply_command(step: Step, command: Command) -> Outcome:
    """Applies any command but EnrolProposer."""
    return _APPLY[type(command)](step, command)


def record_blobs(step: Step, command: RecordBlobs) -> Outcome:
    """All of the blobs or none: one that is known with another size refuses the command. The first parts that are told
    of a blob stay."""
    sizes: dict[bytes, int] = {}
    for blob in command.blobs:
        if sizes.setdefault(blob.digest.packed, blob.size_bytes) != blob.size_bytes:
            return step.refused(Reason.SIZE_MISMATCH, [blob.digest])
    query = "SELECT digest, id, size_bytes FROM blobs WHERE digest IN"
    known = {digest: (blob, size) for digest, blob, size in select_in(step.connection, query, (), list(sizes))}
    wrong = [Digest.from_bytes(digest) for digest in sizes if digest in known and known[digest][1] != sizes[digest]]
    if wrong:
        return step.refused(Reason.SIZE_MISMATCH, wrong)
    blobs = [known[digest][0] if digest in known else _add_blob(step, digest, sizes[digest]) for digest in sizes]
    told = [(blob.parts, blob.digest.packed) for blob in command.blobs if blob.parts]
    step.write_many("UPDATE blobs SET parts = ? WHERE digest = ? AND parts = x''", told)
    store = _store(step, command.store)
    step.write_many("INSERT OR IGNORE INTO holders VALUES (?, ?)", [(blob, store) for blob in blobs])
    repository = raise_repository(step, command.repository)
    before = step.connection.total_changes
    step.write_many("INSERT OR IGNORE INTO links VALUES (?, ?, ?)", [(repository, blob, step.index) for blob in blobs])
    if step.connection.total_changes > before:
        return step.done(step.index, created=True)
    query = "SELECT changed FROM links WHERE repository = ? AND blob IN"
    return step.done(max(changed for (changed,) in select_in(step.connection, query, (repository,), blobs)))


def mount_blob(step: Step, command: MountBlob) -> Outcome:
    """Links a known blob; one that is linked already stays as it is, wherever it was said to come from."""
    unknown = step.not_found(Reason.BLOB_UNKNOWN, [command.digest])
    found = step.row("SELECT id FROM blobs WHERE digest = ?", command.digest.packed)
    if found is None:
        return unknown
    blob = found[0]
    target = find_repository(step, command.repository)
    linked = _link_changed(step, target, blob)
    if linked is not None:
        return step.done(linked)
    if command.source and _link_changed(step, find_repository(step, command.source), blob) is None:
        return unknown
    target = raise_repository(step, command.repository)
    step.write("INSERT INTO links VALUES (?, ?, ?)", target, blob, step.index)
    return step.done(step.index, created=True)


def delete_blob(step: Step, command: DeleteBlob) -> Outcome:
    """Takes the blob from the repository, unless a manifest there names it."""
    repository = find_repository(step, command.repository)
    if repository is None:
        return step.not_found(Reason.REPOSITORY_UNKNOWN)
    link = step.row(
        "SELECT id, changed FROM blobs CROSS JOIN links ON repository = ? AND blob = id WHERE digest = ?",
        repository,
        command.digest.packed,
    )
    if link is None:
        return step.not_found(Reason.BLOB_UNKNOWN, [command.digest])
    users = step.rows(
        "SELECT digest FROM manifest_blobs CROSS JOIN contents ON id = content WHERE repository = ? AND blob = ?"
        " ORDER BY content LIMIT ?",
        repository,
        link[0],
        MAX_OUTCOME_DIGESTS,
    )
    if users:
        return step.refused(Reason.BLOB_IN_USE, [Digest.from_bytes(digest) for (digest,) in users], link[1])
    step.write("DELETE FROM links WHERE repository = ? AND blob = ?", repository, link[0])
    return step.done(step.index)


def delete_tag(step: Step, command: DeleteTag) -> Outcome:
    """Takes the tag away; its manifest stays."""
    repository = step.row("SELECT id, tags_changed FROM repositories WHERE name = ?", command.repository.value)
    if repository is None:
        return step.not_found(Reason.REPOSITORY_UNKNOWN)
    key = (repository[0], command.tag.value)
    tag = step.row(
        "SELECT digest, changed FROM tags CROSS JOIN contents ON id = content WHERE repository = ? AND name = ?", *key
    )
    if tag is None:
        return step.not_found(Reason.TAG_UNKNOWN, changed=repository[1])
    if command.expected and tag[0] != command.expected.packed:
        return step.conflict(tag[1], (Digest.from_bytes(tag[0]),))
    step.write("DELETE FROM tags WHERE repository = ? AND name = ?", *key)
    step.write("UPDATE repositories SET tags_changed = ? WHERE id = ?", step.index, repository[0])
    return step.done(step.index)


def _add_blob(step: Step, digest: bytes, size_bytes: int) -> int:
    query = "INSERT INTO blobs (digest, size_bytes, pushed_ms, parts) VALUES (?, ?, ?, x'')"
    return step.insert(query, digest, size_bytes, step.now_ms)


def _store(step: Step, name: StoreId) -> int:
    row = step.row("SELECT id FROM stores WHERE name = ?", name)
    return row[0] if row else step.insert("INSERT INTO stores (name) VALUES (?)", name)


def _link_changed(step: Step, repository: int | None, blob: int) -> int | None:
    row = step.row("SELECT changed FROM links WHERE repository = ? AND blob = ?", repository, blob)
    return row[0] if row else None


_APPLY: dict[type[Command], Callable[[Step, Any], Outcome]] = {
    RecordBlobs: record_blobs,
    MountBlob: mount_blob,
    StageContent: staging.stage,
    PutManifest: manifests.put_manifest,
    DeleteTag: delete_tag,
    DeleteManifest: manifests.delete_manifest,
    DeleteBlob: delete_blob,
}
