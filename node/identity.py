"""Who this node is: drawn once, kept in `<data>/identity`, never changed.

The ids tie the log, the state and the blobs of a data folder to each other, so that a swapped disk or a copied folder
is noticed instead of mixed. The upload secret authenticates upload ids.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from consensus import disk, entropy
from consensus.names import StoreId

FORMAT = 1
SECRET_BYTES = 32

_FILE = "identity"
_TEMPORARY = "identity.new"
_DEPENDENTS = ("wal", "state", "blobs")

_Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class IdentityRefused(Exception):
    """The file cannot be used, or is missing beside data that belong to one; the message says what to do."""


class _Header(msgspec.Struct, frozen=True):
    format: int


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    cluster_id: _Id
    node_id: _Id
    store_id: _Id
    upload_secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The ids are 32 hexadecimal characters each."""

    cluster_id: str
    node_id: str
    store_id: StoreId
    upload_secret: bytes

    @classmethod
    def load_or_create(cls, data: Path) -> Self:
        """Reads the identity of a data folder; in a new one draws it, durable when this returns. The caller holds the
        folder's lock. Raises IdentityRefused, OSError."""
        path = data / _FILE
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return cls._create(data)
        # Whoever made it may have been killed before it was durable; nothing may be built on it before it is.
        disk.sync_folder(data)
        try:
            found = msgspec.json.decode(content, type=_Header).format
            if found != FORMAT:
                raise IdentityRefused(f"{path} has format {found}, this version knows {FORMAT}: use a newer one")
            stored = msgspec.json.decode(content, type=_Stored)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise IdentityRefused(f"{path} is damaged ({error}): put it back from a backup of this node") from error
        return cls(
            cluster_id=stored.cluster_id,
            node_id=stored.node_id,
            store_id=StoreId(stored.store_id),
            upload_secret=stored.upload_secret,
        )

    @classmethod
    def _create(cls, data: Path) -> Self:
        for name in _DEPENDENTS:
            if (data / name).exists():
                raise IdentityRefused(
                    f"{data / _FILE} is missing, but {data / name} is there: put the file back from a backup of this "
                    f"node, or move {data} away to begin with an empty one"
                )
        identity = cls(
            cluster_id=_draw_id(),
            node_id=_draw_id(),
            store_id=StoreId(_draw_id()),
            upload_secret=entropy.token_bytes(SECRET_BYTES),
        )
        stored = _Stored(FORMAT, identity.cluster_id, identity.node_id, identity.store_id, identity.upload_secret)
        _write(data, msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n")
        return identity


def _draw_id() -> str:
    return entropy.token_bytes(16).hex()


def _write(folder: Path, content: bytes) -> None:
    temporary = folder / _TEMPORARY
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        disk.sync_file(descriptor)
    temporary.rename(folder / _FILE)
    disk.sync_folder(folder)
