"""The read side of the state: one read-only connection, cheap enough to be asked on the event loop.

Each method reads the generation in force when it is called: a prefix of the log, whole, and no later call sees less.
`changed` is the log index at which what was read last changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from consensus import generation
from consensus.fingerprint import fingerprint
from consensus.names import Digest, Reference, RepositoryName, StoreId, Tag
from consensus.reader import Reader, open_reader
from consensus.step import select_in

_BY_TAG = (
    "SELECT c.digest, m.media_type, c.size_bytes, max(m.changed, t.changed) FROM repositories r"
    " CROSS JOIN tags t ON t.repository = r.id AND t.name = ?2"
    " CROSS JOIN manifests m ON m.content = t.content AND m.repository = r.id"
    " CROSS JOIN contents c ON c.id = t.content WHERE r.name = ?1"
)
_BY_DIGEST = (
    "SELECT c.digest, m.media_type, c.size_bytes, m.changed FROM repositories r"
    " CROSS JOIN contents c ON c.digest = ?2"
    " CROSS JOIN manifests m ON m.content = c.id AND m.repository = r.id WHERE r.name = ?1"
)
_WITH_BYTES = _BY_DIGEST.replace("m.changed", "m.changed, c.bytes", 1)
_BLOB = (
    "SELECT b.size_bytes, l.changed FROM repositories r"
    " CROSS JOIN blobs b ON b.digest = ?2"
    " CROSS JOIN links l ON l.repository = r.id AND l.blob = b.id WHERE r.name = ?1"
)
_HOLDERS = (
    "SELECT s.name FROM blobs b CROSS JOIN holders h ON h.blob = b.id CROSS JOIN stores s ON s.id = h.store"
    " WHERE b.digest = ? ORDER BY h.store"
)
_FACTS = "SELECT size_bytes, pushed_ms, parts FROM blobs WHERE digest = ?"
_LINKS = (
    "SELECT r.name FROM blobs b CROSS JOIN links l ON l.blob = b.id CROSS JOIN repositories r ON r.id = l.repository"
    " WHERE b.digest = ? ORDER BY l.repository LIMIT ?"
)
_USERS = (
    "SELECT r.name, c.digest FROM blobs b CROSS JOIN links l ON l.blob = b.id"
    " CROSS JOIN manifest_blobs m ON m.repository = l.repository AND m.blob = b.id"
    " CROSS JOIN contents c ON c.id = m.content CROSS JOIN repositories r ON r.id = l.repository"
    " WHERE b.digest = ? LIMIT ?"
)
# An image's manifest and those below it, each once, whatever refers to what: all found by key, and a bounded number.
_IMAGE_BLOBS = (
    "WITH RECURSIVE tree (content) AS (SELECT m.content FROM contents c CROSS JOIN manifests m ON m.content = c.id"
    " AND m.repository = ?1 WHERE c.digest = ?2 UNION SELECT c.id FROM tree t CROSS JOIN manifest_children k"
    " ON k.content = t.content AND k.repository = ?1 CROSS JOIN contents c ON c.digest = k.child LIMIT ?3)"
    " SELECT DISTINCT b.digest, b.size_bytes FROM tree t CROSS JOIN manifest_blobs m ON m.content = t.content"
    " AND m.repository = ?1 CROSS JOIN blobs b ON b.id = m.blob LIMIT ?3"
)
_NAMING = (
    "SELECT content, repository FROM manifest_blobs WHERE repository = (SELECT id FROM repositories WHERE name = ?)"
    " AND blob = (SELECT id FROM blobs WHERE digest = ?) ORDER BY content DESC LIMIT ?"
)
_NAMED = (
    "SELECT b.digest, b.size_bytes FROM manifest_blobs m CROSS JOIN blobs b ON b.id = m.blob"
    " WHERE m.content = ? AND m.repository = ? LIMIT ?"
)
_TAGS = "SELECT name FROM tags WHERE repository = ? AND name > ? ORDER BY name LIMIT ?"
_REPOSITORIES = "SELECT name FROM repositories WHERE name > ? ORDER BY name LIMIT ?"
_REFERRERS = (
    "SELECT f.digest, m.media_type, c.size_bytes, f.artifact_type, f.annotations FROM referrers f"
    " CROSS JOIN manifests m ON m.content = f.content AND m.repository = f.repository"
    " CROSS JOIN contents c ON c.id = f.content"
    " WHERE f.repository = (SELECT id FROM repositories WHERE name = ?1) AND f.subject = ?2 AND f.digest > ?3"
)
_ALL_REFERRERS = f"{_REFERRERS} ORDER BY f.digest LIMIT ?4"
_REFERRERS_OF_TYPE = f"{_REFERRERS} AND f.artifact_type = ?5 ORDER BY f.digest LIMIT ?4"
_LINKED = "SELECT digest FROM blobs CROSS JOIN links ON blob = id AND repository = ? WHERE digest IN"
_HELD = (
    "SELECT b.digest FROM stores s CROSS JOIN blobs b CROSS JOIN holders h ON h.blob = b.id AND h.store = s.id"
    " WHERE s.name = ? AND b.digest IN"
)
_PRESENT = "SELECT digest FROM contents CROSS JOIN manifests ON content = id AND repository = ? WHERE digest IN"

MAX_NAMING = 4


@dataclass(frozen=True, slots=True)
class ManifestView:
    """A manifest of a repository, as its tag or digest resolves."""

    digest: Digest
    media_type: str
    size_bytes: int
    changed: int


@dataclass(frozen=True, slots=True)
class BlobView:
    """A blob that belongs to a repository; its bytes may be with another node."""

    size_bytes: int
    changed: int


@dataclass(frozen=True, slots=True)
class BlobFacts:
    """What the log knows of a blob: `pushed_ms` is the log time at which it was first recorded, about when its first
    push was acknowledged, `parts` the digests of its parts, empty where they are not known."""

    size_bytes: int
    pushed_ms: int
    parts: bytes


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest whose `subject` was asked for, as the referrers API lists it."""

    digest: Digest
    media_type: str
    size_bytes: int
    artifact_type: str | None
    annotations: dict[str, str]


class Views:
    """Reads the state in `folder`; one thread at a time. Raises StateRefused while there is no state yet, or it is of
    another version; any method may raise sqlite3.Error when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader = Reader(folder)
        self.cluster_id = generation.read_meta(self._reader.connection()).cluster_id

    def applied(self) -> int:
        """The index of the last entry that reads can see."""
        applied: int = self._row("SELECT applied FROM meta")[0]
        return applied

    def resolve(self, repository: RepositoryName, reference: Reference) -> ManifestView | None:
        """What a tag or digest stands for in this repository."""
        if isinstance(reference, Tag):
            row = self._row(_BY_TAG, repository.value, reference.value)
        else:
            row = self._row(_BY_DIGEST, repository.value, reference.packed)
        return ManifestView(Digest.from_bytes(row[0]), *row[1:]) if row else None

    def manifest(self, repository: RepositoryName, digest: Digest) -> tuple[ManifestView, bytes] | None:
        """A manifest of this repository with its bytes."""
        row = self._row(_WITH_BYTES, repository.value, digest.packed)
        return (ManifestView(digest, *row[1:4]), row[4]) if row else None

    def content(self, digest: Digest) -> bytes | None:
        """Manifest bytes, whichever repository has them: only for who may see one that does."""
        row = self._row("SELECT bytes FROM contents WHERE digest = ?", digest.packed)
        return row[0] if row else None

    def has_repository(self, repository: RepositoryName) -> bool:
        """Whether the repository has arisen (at its first blob, mount or manifest); it then stays."""
        return _repository(self._reader.connection(), repository) is not None

    def blob(self, repository: RepositoryName, digest: Digest) -> BlobView | None:
        """A blob, if it belongs to this repository."""
        row = self._row(_BLOB, repository.value, digest.packed)
        return BlobView(*row) if row else None

    def holders(self, digest: Digest) -> list[StoreId]:
        """The stores that hold a blob, whichever repository has it: only for who may see one that does."""
        return [StoreId(name) for name in _names(self._reader.connection(), _HOLDERS, digest.packed)]

    def held(self, store: StoreId, digests: Sequence[Digest]) -> set[Digest]:
        """Those of the blobs that the store is known to hold."""
        packed = [digest.packed for digest in digests]
        rows = select_in(self._reader.connection(), _HELD, (store,), packed)
        return {Digest.from_bytes(digest) for (digest,) in rows}

    def facts(self, digest: Digest) -> BlobFacts | None:
        """A blob, whichever repository has it; None if the log knows none."""
        row = self._row(_FACTS, digest.packed)
        return BlobFacts(*row) if row else None

    def repositories_with(self, digest: Digest, limit: int) -> list[str]:
        """Up to `limit` repositories that a blob belongs to."""
        return _names(self._reader.connection(), _LINKS, digest.packed, limit)

    def manifests_naming(self, digest: Digest, limit: int) -> list[tuple[str, Digest]]:
        """Up to `limit` manifests that name a blob, each with its repository."""
        rows = self._reader.connection().execute(_USERS, (digest.packed, limit)).fetchall()
        return [(name, Digest.from_bytes(packed)) for name, packed in rows]

    def image_blobs(self, repository: RepositoryName, digest: Digest, limit: int) -> list[tuple[Digest, int]]:
        """Up to `limit` blobs, each once and with its size, that a manifest of this repository and up to `limit` of
        those below it name."""
        connection = self._reader.connection()
        values = (_repository(connection, repository), digest.packed, limit)
        return [(Digest.from_bytes(packed), size) for packed, size in connection.execute(_IMAGE_BLOBS, values)]

    def companions(self, repository: RepositoryName, digest: Digest, limit: int) -> list[tuple[Digest, int]]:
        """Up to `limit` blobs, with their sizes, that the newest manifest of this repository names beside this one.
        Empty if more than MAX_NAMING name it: then it says little about which of them somebody is after."""
        naming = (
            self._reader.connection().execute(_NAMING, (repository.value, digest.packed, MAX_NAMING + 1)).fetchall()
        )
        if not 0 < len(naming) <= MAX_NAMING:
            return []
        rows = self._reader.connection().execute(_NAMED, (*naming[0], limit + 1)).fetchall()
        found = [(Digest.from_bytes(packed), size_bytes) for packed, size_bytes in rows]
        return [each for each in found if each[0] != digest][:limit]

    def tags(self, repository: RepositoryName, after: str | None, limit: int) -> list[str] | None:
        """Up to `limit` tags that follow `after` in ASCII order; None if the repository is unknown."""
        connection = self._reader.connection()
        identity = _repository(connection, repository)
        return None if identity is None else _names(connection, _TAGS, identity, _text(after), limit)

    def repositories(self, after: str | None, limit: int) -> list[str]:
        """Up to `limit` repositories that follow `after` in ASCII order: all that have arisen, also emptied ones."""
        return _names(self._reader.connection(), _REPOSITORIES, _text(after), limit)

    def referrers(
        self, repository: RepositoryName, subject: Digest, artifact_type: str | None, after: Digest | None, limit: int
    ) -> list[Referrer]:
        """Up to `limit` manifests of this repository that refer to `subject`, in the order of their packed digests;
        only those of `artifact_type` unless it is None. The subject need not exist."""
        values = [repository.value, subject.packed, after.packed if after else b"", limit]
        query = _ALL_REFERRERS
        if artifact_type is not None:
            query = _REFERRERS_OF_TYPE
            values.append(_text(artifact_type))
        rows = self._reader.connection().execute(query, values).fetchall()
        return [
            Referrer(Digest.from_bytes(digest), media_type, size_bytes, kind, dict(msgpack.unpackb(annotations)))
            for digest, media_type, size_bytes, kind, annotations in rows
        ]

    def has_store(self, store: StoreId) -> bool:
        """Whether this store has ever been recorded as the holder of a blob."""
        return self._row("SELECT 1 FROM stores WHERE name = ?", store) is not None

    def missing(self, repository: RepositoryName, blobs: Sequence[Digest], manifests: Sequence[Digest]) -> list[Digest]:
        """Those blobs that do not belong to the repository, then those manifests that are not in it."""
        connection = self._reader.connection()
        identity = _repository(connection, repository)
        return [
            digest
            for query, digests in ((_LINKED, blobs), (_PRESENT, manifests))
            for digest in _absent(connection, query, identity, digests)
        ]

    def hash(self) -> tuple[int, str]:
        """The applied index and the state hash there. Takes time in proportion to the state; has a connection of its
        own, so that it may run in another thread."""
        connection = open_reader(self._folder)
        try:
            connection.execute("BEGIN")
            return generation.read_meta(connection).applied, fingerprint(connection)
        finally:
            connection.close()

    def close(self) -> None:
        """Idempotent."""
        self._reader.close()

    def _row(self, query: str, *values: object) -> Any:
        return self._reader.connection().execute(query, values).fetchone()


def _names(connection: sqlite3.Connection, query: str, *values: object) -> list[str]:
    return [name for (name,) in connection.execute(query, values).fetchall()]


def _repository(connection: sqlite3.Connection, repository: RepositoryName) -> int | None:
    row = connection.execute("SELECT id FROM repositories WHERE name = ?", (repository.value,)).fetchone()
    return row[0] if row else None


def _absent(
    connection: sqlite3.Connection, query: str, repository: int | None, digests: Sequence[Digest]
) -> list[Digest]:
    packed = [digest.packed for digest in digests]
    here = {digest for (digest,) in select_in(connection, query, (repository,), packed)}
    return [digest for digest, key in zip(digests, packed, strict=True) if key not in here]


def _text(text: str | None) -> str:
    # What cannot be UTF-8 sorts somewhere rather than raising: callers pass what a client sent.
    return (text or "").encode("utf-8", "replace").decode()
