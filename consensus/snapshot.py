"""What a snapshot is: a copy of the state database as of one entry of the log, and a manifest of what it must be.

The manifest names the hash of each chunk, so that what arrives is verified piece by piece, and a snapshot is named by
the hash of its manifest: equal names, equal bytes, whoever sends them.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import msgpack

from consensus import generation
from consensus.errors import SnapshotDamaged, SnapshotRefused, StateRefused

CHUNK_BYTES = 1024 * 1024
MAX_CHUNKS = 30_000  # a manifest stays below a MiB
MAX_MANIFEST_BYTES = 1024 * 1024

_VERSION = 2
_HASH_BYTES = 32
_NAME = re.compile(r"[0-9]{1,19}-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`applied` is the index of the last entry in it and `term` that entry's term in the log; `chunks` are the SHA-256
    of the file's pieces of CHUNK_BYTES, one after the other."""

    cluster_id: str
    schema_version: int
    applied: int
    term: int
    size_bytes: int
    chunks: bytes

    @property
    def name(self) -> str:
        """Names this snapshot wherever it is; begins with its index."""
        return _name(self.applied, self.encode())

    def encode(self) -> bytes:
        """For the disk and the wire."""
        packed: bytes = msgpack.packb((_VERSION, *astuple(self)))
        return packed

    @classmethod
    def decode(cls, data: bytes, name: str | None = None) -> Manifest:
        """Raises SnapshotDamaged for what is no manifest of this version, or not that of the snapshot `name`."""
        try:
            fields: Any = msgpack.unpackb(data) if len(data) <= MAX_MANIFEST_BYTES else None
        except (ValueError, msgpack.UnpackException) as error:
            raise SnapshotDamaged(f"not the manifest of a snapshot: {error}") from error
        if not _is_manifest(fields):
            raise SnapshotDamaged("not the manifest of a snapshot that this version knows")
        manifest = cls(*fields[1:])
        if name is not None and _name(manifest.applied, data) != name:
            raise SnapshotDamaged(f"not the manifest of snapshot {name}")
        return manifest

    def verify_chunk(self, offset: int, chunk: bytes) -> None:
        """Raises SnapshotDamaged unless these are exactly the bytes of the chunk that begins at `offset`."""
        number, inside = divmod(offset, CHUNK_BYTES)
        expected = self.chunks[number * _HASH_BYTES :][:_HASH_BYTES]
        length = min(CHUNK_BYTES, self.size_bytes - offset)
        if inside or len(chunk) != length or hashlib.sha256(chunk).digest() != expected:
            raise SnapshotDamaged(f"the chunk at {offset} of snapshot {self.name} is not what its manifest says")


@dataclass(frozen=True, slots=True)
class VerifiedSnapshot:
    """A file that `verify` found to be what its manifest says, fit to be installed on this node."""

    path: Path
    manifest: Manifest


def is_name(text: object) -> bool:
    """Whether it can name a snapshot; then it is safe in a path."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def describe(path: Path, term: int) -> Manifest:
    """The manifest of a copy of the state; reads all of it. Raises StateRefused, OSError and sqlite3.Error, and
    SnapshotRefused when it is too large to be sent."""
    with closing(generation.open_whole(path)) as connection:
        meta = generation.read_meta(connection)
    size_bytes, chunks = 0, []
    for chunk in _chunks(path):
        size_bytes += len(chunk)
        chunks.append(hashlib.sha256(chunk).digest())
    if len(chunks) > MAX_CHUNKS:
        raise SnapshotRefused(f"a state of {size_bytes} bytes is larger than a snapshot may be")
    return Manifest(meta.cluster_id, meta.schema_version, meta.applied, term, size_bytes, b"".join(chunks))


def verify(path: Path, manifest: Manifest, cluster_id: str) -> VerifiedSnapshot:
    """Reads all of the file and lets SQLite check it; nothing else may use it meanwhile.

    Raises SnapshotRefused (another cluster or schema), SnapshotDamaged (not what the manifest says), OSError.
    """
    if manifest.cluster_id != cluster_id:
        raise SnapshotRefused(f"the snapshot is of cluster {manifest.cluster_id}, this node of {cluster_id}")
    if manifest.schema_version != generation.SCHEMA_VERSION:
        raise SnapshotRefused(
            f"the snapshot has schema {manifest.schema_version}, this version knows {generation.SCHEMA_VERSION}: "
            "let all nodes run the same Meridian"
        )
    size_bytes = 0
    for chunk in _chunks(path):
        manifest.verify_chunk(size_bytes, chunk)
        size_bytes += len(chunk)
    if size_bytes != manifest.size_bytes:
        raise SnapshotDamaged(f"{path} does not hold all of snapshot {manifest.name}")
    try:
        with closing(generation.open_whole(path)) as connection:
            (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            meta = generation.read_meta(connection)
    except (sqlite3.Error, StateRefused) as error:
        raise SnapshotDamaged(f"snapshot {manifest.name} is no sound database: {error}") from error
    if finding != "ok":
        raise SnapshotDamaged(f"snapshot {manifest.name} is no sound database: {finding}")
    if (meta.cluster_id, meta.applied) != (manifest.cluster_id, manifest.applied):
        raise SnapshotDamaged(f"snapshot {manifest.name} holds entry {meta.applied} of cluster {meta.cluster_id}")
    return VerifiedSnapshot(path, manifest)


def _name(applied: int, encoded: bytes) -> str:
    return f"{applied}-{hashlib.sha256(encoded).hexdigest()[:32]}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _is_manifest(fields: Any) -> bool:
    match fields:
        case [int(version), str(cluster_id), int(), int(applied), int(term), int(size), bytes(chunks)]:
            count = -(-size // CHUNK_BYTES)
            return (
                version == _VERSION
                and len(cluster_id) <= 255
                and 0 <= applied < 2**63
                and 0 <= term < 2**63
                and 0 < count <= MAX_CHUNKS
                and len(chunks) == count * _HASH_BYTES
            )
    return False
