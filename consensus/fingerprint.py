"""One hash for the whole replicated state, to compare nodes by."""

from __future__ import annotations

import hashlib
import sqlite3

import msgpack

# Each in the order of its key. A content's bytes are left out: its digest stands for them, and apply has checked it.
_QUERIES = (
    "SELECT schema_version, cluster_id, applied, log_time_ms, catalog_changed FROM meta",
    "SELECT * FROM repositories ORDER BY id",
    "SELECT * FROM stores ORDER BY id",
    "SELECT * FROM blobs ORDER BY id",
    "SELECT * FROM holders ORDER BY blob, store",
    "SELECT * FROM links ORDER BY repository, blob",
    "SELECT id, digest, size_bytes FROM contents ORDER BY id",
    "SELECT * FROM manifests ORDER BY content, repository",
    "SELECT * FROM manifest_blobs ORDER BY repository, blob, content",
    "SELECT * FROM manifest_children ORDER BY content, repository, child",
    "SELECT * FROM tags ORDER BY repository, name",
    "SELECT * FROM referrers ORDER BY repository, subject, digest",
    "SELECT * FROM subjects ORDER BY repository, digest",
    "SELECT * FROM staged ORDER BY entry",
    "SELECT * FROM proposers ORDER BY id",
    "SELECT * FROM outcomes ORDER BY proposer, sequence",
)


def fingerprint(connection: sqlite3.Connection) -> str:
    """SHA-256 (hex) of every replicated row. The caller holds a transaction if others write meanwhile."""
    hasher = hashlib.sha256()
    pack = msgpack.Packer().pack
    for query in _QUERIES:
        hasher.update(pack(query))
        for row in connection.execute(query):
            hasher.update(pack(row))
    return hasher.hexdigest()
