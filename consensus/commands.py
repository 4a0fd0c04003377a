"""Every command the log may carry, and what applying one can come to.

A command is a frozen dataclass; its encoding is versioned msgpack: an envelope
`[version, shard, proposer, sequence, acknowledged, time_ms, kind, fields]`. An unknown version, shard or kind is
refused, never guessed. A command touches one repository and takes at most MAX_COMMAND_BYTES encoded; a larger
manifest travels as `StageContent` parts and then a `PutManifest` without content.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from consensus.names import Digest, RepositoryName, StoreId, Tag

VERSION = 2
MAX_COMMAND_BYTES = 128 * 1024
MAX_STAGED_PART_BYTES = 96 * 1024
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


class Absent(Enum):
    """What a compare-and-swap expects when the tag must not exist yet (`If-None-Match: *`)."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT
Expected = Digest | Absent | None  # None: whatever is there


@dataclass(frozen=True, slots=True)
class BlobFact:
    """A verified blob: its digest, its size and the digests of its parts (`consensus.parts`), one after the other; none
    where it has no parts, or they are not known."""

    digest: Digest
    size_bytes: int
    parts: bytes = b""


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """What the gateway read from a manifest's bytes, so that apply never parses JSON.

    `blobs` are the config and layers that must be known (non-distributable layers left out), `manifests` an index's
    children, `subject` the manifest this one refers to (it need not exist). `artifact_type` is already resolved as the
    referrers API wants it (config media type as fallback for images; None where it must be omitted).
    """

    media_type: str
    artifact_type: str | None
    subject: Digest | None
    blobs: tuple[Digest, ...]
    manifests: tuple[Digest, ...]
    annotations: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class EnrolProposer:
    """A process that will propose asks for an identity: the index of this entry. `name` is for people."""

    name: str


@dataclass(frozen=True, slots=True)
class RecordBlobs:
    """These blobs are on `store`, fsynced, and belong to the repository."""

    repository: RepositoryName
    store: StoreId
    blobs: tuple[BlobFact, ...]


@dataclass(frozen=True, slots=True)
class MountBlob:
    """A blob known to the log joins the repository. With `source`, it must belong to that repository."""

    repository: RepositoryName
    digest: Digest
    source: RepositoryName | None


@dataclass(frozen=True, slots=True)
class StageContent:
    """Part `part` of `parts` (from 0) of manifest bytes too large for one command."""

    repository: RepositoryName
    digest: Digest
    part: int
    parts: int
    content: bytes


@dataclass(frozen=True, slots=True)
class PutManifest:
    """A manifest becomes visible, and with it its tags. `content` is None when it was staged.

    `expected` is compared with each tag's current digest first; a tag that already has this digest is no conflict.
    `sparse` admits an index whose children are not all here.
    """

    repository: RepositoryName
    digest: Digest
    size_bytes: int
    content: bytes | None
    facts: ManifestFacts
    tags: tuple[Tag, ...]
    expected: Expected
    sparse: bool


@dataclass(frozen=True, slots=True)
class DeleteTag:
    """The tag goes; the manifest stays. `expected` refuses if it is not a tag of that digest."""

    repository: RepositoryName
    tag: Tag
    expected: Digest | None


@dataclass(frozen=True, slots=True)
class DeleteManifest:
    """The manifest goes, and every tag that names it."""

    repository: RepositoryName
    digest: Digest


@dataclass(frozen=True, slots=True)
class DeleteBlob:
    """The blob leaves the repository; refused (BLOB_IN_USE) while a manifest there names it. Its bytes stay for the
    collector."""

    repository: RepositoryName
    digest: Digest


Command = EnrolProposer | RecordBlobs | MountBlob | StageContent | PutManifest | DeleteTag | DeleteManifest | DeleteBlob


@dataclass(frozen=True, slots=True)
class Envelope:
    """A command on its way: who proposed it (0: nobody, only EnrolProposer), its number there, and the proposer's
    watermark: every sequence up to `acknowledged` has been answered and will not be asked again."""

    proposer: int
    sequence: int
    acknowledged: int
    time_ms: int
    command: Command


class Status(StrEnum):
    """How applying a command ended."""

    DONE = "done"
    CONFLICT = "conflict"
    NOT_FOUND = "not_found"
    REFUSED = "refused"


class Reason(StrEnum):
    """Why it was not DONE."""

    NONE = ""
    TAG_MOVED = "tag_moved"  # CONFLICT: `digests` holds the current digest, or nothing if the tag is absent
    REPOSITORY_UNKNOWN = "repository_unknown"  # NOT_FOUND
    BLOB_UNKNOWN = "blob_unknown"  # NOT_FOUND: `digests` holds what is missing
    MANIFEST_UNKNOWN = "manifest_unknown"  # NOT_FOUND
    TAG_UNKNOWN = "tag_unknown"  # NOT_FOUND
    BLOB_IN_USE = "blob_in_use"  # REFUSED: `digests` holds (some of) the manifests that name it
    SIZE_MISMATCH = "size_mismatch"  # REFUSED: a blob or manifest is known with another size
    STAGE_INCOMPLETE = "stage_incomplete"  # REFUSED: PutManifest without all its parts; stage again
    PROPOSER_UNKNOWN = "proposer_unknown"  # REFUSED: not enrolled or expired; enrol again
    ALREADY_ANSWERED = "already_answered"  # REFUSED: at or below the proposer's watermark; never applied again
    MALFORMED = "malformed"  # REFUSED: an entry this version cannot decode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What applying came to: a value, kept in the state until the proposer acknowledges it.

    `index` is that of the first application; `changed` the highest change index of the rows looked at;
    `created` says that something new became visible.
    """

    status: Status
    index: int
    changed: int = 0
    reason: Reason = Reason.NONE
    digests: tuple[Digest, ...] = ()
    created: bool = False
