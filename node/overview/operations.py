"""The HTTP interface of the admin address under /meridian/v1/, as data: what is served and what describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from node.overview.shapes import (
    BlobStatus,
    BringRequest,
    BringStatus,
    ImageStatus,
    MemberStatus,
    MemberStatuses,
    NodeStatus,
    Problems,
    Shape,
)

PREFIX = "/meridian/v1"
DESCRIPTION_PATH = f"{PREFIX}/openapi.json"
DIGEST = "a digest, as sha256:<64 hexadecimal digits>"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path: `parameters` of the path with their meaning, what a request's body is, what an answer of
    each status is (None: any JSON object)."""

    name: str
    path: str
    summary: str
    answers: Mapping[int, type[Shape] | None]
    method: str = "get"
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: type[Shape] | None = None


_IMAGE_PATH = f"{PREFIX}/replication/images/{{repository}}/manifests/{{reference}}"
_IMAGE = {
    "repository": "the name of a repository, which may hold slashes",
    "reference": "a tag, or the digest of a manifest; a digest is looked up in the state at hand first",
}
_REFUSALS: dict[int, type[Shape]] = {400: Problems, 404: Problems, 503: Problems}

STATUS = Operation("getStatus", f"{PREFIX}/status", "How this node is.", {200: NodeStatus})
OWN = Operation(
    "getReplication",
    f"{PREFIX}/replication",
    "Replication at this member: what is on its way here, what was brought, what failed and why, and how late.",
    {200: MemberStatus, 503: Problems},
)
REGIONS = Operation(
    "getReplicationOfAll",
    f"{PREFIX}/replication/regions",
    "The same of every member, each asked now; one that cannot be reached is in the answer, with the reason.",
    {200: MemberStatuses, 503: Problems},
)
BLOB = Operation(
    "getBlob",
    f"{PREFIX}/replication/blobs/{{digest}}",
    "Where a blob is, who names it, and why it is not elsewhere. Each member's store is asked; nothing is fetched.",
    {200: BlobStatus, **_REFUSALS},
    parameters={"digest": DIGEST},
)
IMAGE = Operation(
    "getImage",
    _IMAGE_PATH,
    "How much of an image, with all that is below an index, each member holds. Nothing is fetched.",
    {200: ImageStatus, 413: Problems, **_REFUSALS},
    parameters=_IMAGE,
)
BRING = Operation(
    "bringImage",
    _IMAGE_PATH,
    "Have members bring what they lack of an image, behind what clients wait for; the answer does not wait for it.",
    {202: BringStatus, 413: Problems, 415: Problems, **_REFUSALS},
    method="post",
    parameters=_IMAGE,
    body=BringRequest,
)
DESCRIPTION = Operation("getDescription", DESCRIPTION_PATH, "This description.", {200: None})

OPERATIONS = (STATUS, OWN, REGIONS, BLOB, IMAGE, BRING, DESCRIPTION)
