"""Why a use case does not do what it was asked; each is the caller's to answer, none says how.

    RegistryError
    ├── RepositoryUnknown     nothing was ever pushed there
    ├── ManifestUnknown       no such tag or manifest in the repository
    ├── BlobUnknown           no such blob in the repository
    ├── BlobElsewhere         the blob belongs to the repository, and this node does not hold its bytes
    ├── BlobInUse             manifests of the repository name the blob
    ├── UploadUnknown         no such upload in the repository: never begun, finished, cancelled or expired
    ├── UploadOutOfOrder      the bytes do not follow those received
    ├── UploadLengthWrong     more or fewer bytes than announced
    ├── TooManyUploads        the bound on open uploads is reached
    ├── ContentTooLarge       more bytes than this registry accepts
    ├── ContentWrong          a manifest's bytes are not what the digest says
    ├── ManifestIncomplete    the manifest names blobs or manifests that the repository lacks
    ├── SizeConflict          the digest is known with another size
    ├── TagConflict           the tag is not what the caller expected
    ├── ConditionFailed       the digest is not what the caller expected, or excluded
    ├── Disabled              the configuration does not allow the operation
    ├── Undecided             whether the command was applied is not known: to be repeated
    └── StateUnconfirmed      whether this node's state is the newest is not known: to be repeated, or asked elsewhere

Beside these, use cases let through `ConsensusError` (names, manifests, the log) and `StoreError` (bytes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consensus.names import Digest, Reference, RepositoryName


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """An open upload as its client knows it: the token that names it and how many bytes have arrived."""

    repository: RepositoryName
    token: str
    upload_id: str
    offset: int


class RegistryError(Exception):
    """The root of what use cases raise."""


class RepositoryUnknown(RegistryError):
    """The repository does not exist."""

    def __init__(self, repository: RepositoryName) -> None:
        super().__init__(f"repository {repository} is not known")


class ManifestUnknown(RegistryError):
    """The repository has no such tag or manifest."""

    def __init__(self, repository: RepositoryName, reference: Reference) -> None:
        super().__init__(f"{reference} is not known in {repository}")
        self.reference = reference


class BlobUnknown(RegistryError):
    """The repository has no such blob."""

    def __init__(self, repository: RepositoryName, digest: Digest) -> None:
        super().__init__(f"blob is not known in {repository}")
        self.digest = digest


class BlobElsewhere(RegistryError):
    """The log knows the blob; the store of this node does not have it."""

    def __init__(self, digest: Digest) -> None:
        super().__init__("the blob's bytes are not on this node")
        self.digest = digest


class BlobInUse(RegistryError):
    """`manifests` are (some of) those that name the blob."""

    def __init__(self, manifests: Sequence[Digest]) -> None:
        super().__init__("the blob is named by manifests of the repository; delete those first")
        self.manifests = tuple(manifests)


class UploadUnknown(RegistryError):
    """No such upload in the repository."""

    def __init__(self) -> None:
        super().__init__("no such upload: never begun, finished, cancelled or expired")


class UploadOutOfOrder(RegistryError):
    """The next byte must be that at `progress.offset`."""

    def __init__(self, progress: UploadProgress) -> None:
        super().__init__(f"the next byte to send is {progress.offset}")
        self.progress = progress


class UploadLengthWrong(RegistryError):
    """The announced length and what came differ."""


class TooManyUploads(RegistryError):
    """The node has `limit` open uploads."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} uploads are open, the most that this node allows")


class ContentTooLarge(RegistryError):
    """Over `limit` bytes."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} takes at most {limit} bytes here")
        self.limit = limit


class ContentWrong(RegistryError):
    """The bytes hash to `actual`."""

    def __init__(self, expected: Digest, actual: Digest) -> None:
        super().__init__(f"content is {actual}, not {expected}")
        self.expected = expected
        self.actual = actual


class ManifestIncomplete(RegistryError):
    """`missing` is not empty: what has to be pushed or mounted first."""

    def __init__(self, missing: Sequence[Digest]) -> None:
        super().__init__("the manifest names what the repository does not have")
        self.missing = tuple(missing)


class SizeConflict(RegistryError):
    """The same digest is known with another size."""


class TagConflict(RegistryError):
    """The tag names `current` (None: it does not exist)."""

    def __init__(self, current: Digest | None) -> None:
        super().__init__(f"the tag is at {current}" if current else "the tag does not exist")
        self.current = current


class ConditionFailed(RegistryError):
    """If-Match or If-None-Match excludes `current`, which is all that its digest can ever name."""

    def __init__(self, current: Digest) -> None:
        super().__init__(f"If-Match or If-None-Match excludes {current}")
        self.current = current


class Disabled(RegistryError):
    """An operation that the configuration turns off."""


class Undecided(RegistryError):
    """The command may or may not have been applied."""


class StateUnconfirmed(RegistryError):
    """No steward has confirmed in time that this node's state is the newest, and an older one is not shown."""
