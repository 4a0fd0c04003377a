"""What is asked and answered about replication, between members, by the admin address and for programs.

The same types encode the answers, decode them in the command line and describe them in the OpenAPI document. Times that
end in `_ms` are milliseconds of the wall clock.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from replication.reports import FailureReport, ReplicatorReport, TransferReport

MAX_DIGESTS = 1000  # in one request
MAX_NAMED = 20  # repositories, manifests and missing blobs in one answer
MAX_IMAGE_BLOBS = 10_000
MAX_MEMBERS = 64
MAX_BODY_BYTES = 256 * 1024

DigestText = Annotated[str, Meta(max_length=160)]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What travels as JSON."""


class Digests(Shape, frozen=True):
    """Blobs that something is asked about. `report`: whether the answer is to hold what the replicator says too, which
    of several requests about one thing only one has to ask for."""

    digests: Annotated[tuple[DigestText, ...], Meta(max_length=MAX_DIGESTS)]
    report: bool = True


class MemberStatus(Shape, frozen=True):
    """Replication at one member: "ok" with a report; "silent" if its replicator does not answer, "unreachable" if it
    does not itself, each with a reason; "alone" where there is no cluster. `region` is "" while it is not known."""

    member: str
    region: str
    state: Literal["ok", "silent", "unreachable", "alone"]
    reason: str = ""
    replication: ReplicatorReport | None = None


class MemberStatuses(Shape, frozen=True):
    """Replication at every member, the one that was asked first."""

    members: tuple[MemberStatus, ...]


class Holdings(Shape, frozen=True):
    """Which of the blobs that were asked about a member's store holds. Of any blobs: which are on their way there or
    wait for their turn, and what became of the last try to bring others. `replicator`: whether that one said so."""

    member: str
    region: str
    store_id: str
    held: tuple[str, ...]
    arriving: tuple[TransferReport, ...]
    waiting: tuple[str, ...]
    failures: tuple[FailureReport, ...]
    replicator: bool


class Demanded(Shape, frozen=True):
    """What came of asking a member to bring blobs: so many are brought, were held, are unknown to its log so far."""

    member: str
    region: str
    asked: int
    held: int
    unknown: int


class BlobAtMember(Shape, frozen=True):
    """A blob at one member. `recorded`: whether the log says that it is held there. `reason` says it in words."""

    member: str
    region: str
    state: Literal["held", "arriving", "missing", "unreachable"]
    recorded: bool
    received_bytes: int
    bytes_per_second: float
    failure: FailureReport | None
    reason: str


class ManifestName(Shape, frozen=True):
    """A manifest of a repository."""

    repository: str
    digest: str


class BlobStatus(Shape, frozen=True):
    """Where a blob is. `repositories` have it and `manifests` name it, of each at most MAX_NAMED; `lost_stores` are
    stores that the log names and that no member is known to have."""

    digest: str
    size_bytes: int
    pushed_ms: int
    repositories: tuple[str, ...]
    manifests: tuple[ManifestName, ...]
    members: tuple[BlobAtMember, ...]
    lost_stores: tuple[str, ...]


class MissingBlob(Shape, frozen=True):
    """A blob of an image that a member lacks."""

    digest: str
    size_bytes: int
    reason: str


class ImageAtMember(Shape, frozen=True):
    """How much of an image one member holds. `missing` names at most MAX_NAMED of what it lacks."""

    member: str
    region: str
    state: Literal["complete", "incomplete", "unreachable"]
    held_blobs: int
    held_bytes: int
    arriving_bytes: int
    bytes_per_second: float
    missing: tuple[MissingBlob, ...]
    reason: str


class ImageStatus(Shape, frozen=True):
    """Where the blobs of an image are: those that its manifest names, and the manifests below it."""

    repository: str
    digest: str
    blobs: int
    size_bytes: int
    members: tuple[ImageAtMember, ...]


class BringRequest(Shape, frozen=True):
    """Which members are to bring what they lack of an image; null: all of them."""

    members: Annotated[tuple[Annotated[str, Meta(max_length=63)], ...], Meta(max_length=MAX_MEMBERS)] | None = None


class BringAtMember(Shape, frozen=True):
    """What came of it at one member: as in Demanded, unless it is unreachable."""

    member: str
    region: str
    state: Literal["ok", "unreachable"]
    asked: int
    held: int
    unknown: int
    reason: str


class BringStatus(Shape, frozen=True):
    """What came of it."""

    members: tuple[BringAtMember, ...]


class Problem(Shape, frozen=True):
    """Why there is no answer."""

    code: Literal["INVALID", "UNKNOWN", "TOO_LARGE", "UNAVAILABLE"]
    message: str


class Problems(Shape, frozen=True):
    """In the form of the registry's errors."""

    errors: tuple[Problem, ...]


class NodeStatus(Shape, frozen=True):
    """How a node is."""

    region: str
    node: str
    version: str
    uptime_seconds: int
    applied: int | None
    commit: int | None
    term: int | None
    steward: str | None
    keeper_pid: int | None
    replicator_pid: int | None
    fetches: int | None
    gateway_pid: int
    gateways: int
    free_bytes: int | None
    uploads: int | None
