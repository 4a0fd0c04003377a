"""Who this node is: drawn once, kept in `<data>/identity`, never changed.

The ids tie the log, the state and the blobs of a data folder to each other, so that a swapped disk or a copied folder
is noticed instead of mixed. The upload secret authenticates upload ids.

A member of a cluster has the cluster's id, which the configuration names, and is that member for good: its votes and
acknowledgements were given under this name. The data of a node that stands alone are no member's, and the reverse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from consensus import disk, entropy, smallfile
from consensus.names import StoreId
from node.config import Config

FORMATS = {False: 1, True: 2}  # of a node that stands alone, of a member
SECRET_BYTES = 32

_FILE = "identity"
_DEPENDENTS = ("wal", "state", "blobs")

_Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class IdentityRefused(Exception):
    """The file cannot be used, or is missing beside data that belong to one; the message says what to do."""


class _Header(msgspec.Struct, frozen=True):
    format: int


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: int
    cluster_id: _Id
    node_id: _Id
    store_id: _Id
    upload_secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    member: str = ""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The ids are 32 hexadecimal characters each; `member` is the name in the cluster, "" where there is none."""

    cluster_id: str
    node_id: str
    store_id: StoreId
    upload_secret: bytes
    member: str = ""

    @classmethod
    def of(cls, config: Config) -> Self:
        """Of the node that is configured so. Raises as `load_or_create` does."""
        if not config.cluster.members:
            return cls.load_or_create(config.data)
        return cls.load_or_create(config.data, cluster_id=config.cluster.id, member=config.node.name)

    @classmethod
    def load_or_create(cls, data: Path, *, cluster_id: str = "", member: str = "") -> Self:
        """Reads the identity of a data folder; in a new one draws it, durable when this returns. The caller holds the
        folder's lock. Of a member's, `cluster_id` is given and not drawn. Raises IdentityRefused, also when the folder
        is another's, and OSError."""
        found = cls._load(data)
        if found is None:
            return cls._create(data, cluster_id, member)
        _check_owner(data, found, cluster_id, member)
        return found

    @classmethod
    def _load(cls, data: Path) -> Self | None:
        path = data / _FILE
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        # Whoever made it may have been killed before it was durable; nothing may be built on it before it is.
        disk.sync_folder(data)
        try:
            found = msgspec.json.decode(content, type=_Header).format
            if found not in FORMATS.values():
                raise IdentityRefused(f"{path} has format {found}, which this version does not know: use a newer one")
            stored = msgspec.json.decode(content, type=_Stored)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise IdentityRefused(f"{path} is damaged ({error}): put it back from a backup of this node") from error
        return cls(
            cluster_id=stored.cluster_id,
            node_id=stored.node_id,
            store_id=StoreId(stored.store_id),
            upload_secret=stored.upload_secret,
            member=stored.member,
        )

    @classmethod
    def _create(cls, data: Path, cluster_id: str, member: str) -> Self:
        for name in _DEPENDENTS:
            if (data / name).exists():
                raise IdentityRefused(
                    f"{data / _FILE} is missing, but {data / name} is there: put the file back from a backup of this "
                    f"node, or move {data} away to begin with an empty one"
                )
        identity = cls(
            cluster_id=cluster_id or _draw_id(),
            node_id=_draw_id(),
            store_id=StoreId(_draw_id()),
            upload_secret=entropy.token_bytes(SECRET_BYTES),
            member=member,
        )
        stored = _Stored(
            FORMATS[bool(member)],
            identity.cluster_id,
            identity.node_id,
            identity.store_id,
            identity.upload_secret,
            member,
        )
        smallfile.put(data / _FILE, msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n")
        return identity


def _check_owner(data: Path, found: Identity, cluster_id: str, member: str) -> None:
    if found.member == member and (not member or found.cluster_id == cluster_id):
        return
    if not found.member:
        raise IdentityRefused(
            f"{data} holds the registry of a node that stands alone, which cannot become a member of a cluster: take "
            f"[cluster] members out to go on with it, or give member {member} an empty folder and push there again"
        )
    if not member:
        raise IdentityRefused(
            f"{data} belongs to {found.member} of cluster {found.cluster_id}, and the configuration names no members: "
            f"put [cluster] members back"
        )
    raise IdentityRefused(
        f"{data} belongs to {found.member} of cluster {found.cluster_id}, and the configuration is that of {member} of "
        f"cluster {cluster_id}: give each member of each cluster a data folder of its own"
    )


def _draw_id() -> str:
    return entropy.token_bytes(16).hex()
