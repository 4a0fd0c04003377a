"""What refers to a manifest (end-12): signatures, bills of materials and their kin, as an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from consensus.names import Digest, RepositoryName
from consensus.views import Referrer
from node.gateway.gateway import Gateway
from node.gateway.pages import Page, next_link, parse_page
from node.gateway.requests import Request
from node.gateway.responses import Header, Response

INDEX = "application/vnd.oci.image.index.v1+json"
MAX_PAGE_BYTES = 4 * 1024 * 1024  # clients read no larger manifest, and this answer is one
_BATCH = 50  # with the largest annotations these are about as many bytes as a page
_HEAD = b'{"schemaVersion":2,"mediaType":"%s","manifests":[' % INDEX.encode()


async def get_referrers(gateway: Gateway, request: Request, repository: RepositoryName, text: str) -> Response:
    """end-12a, end-12b: 200 also for what nothing refers to, and for a repository that does not exist."""
    subject = Digest.parse(text)
    artifact_type = request.parameter("artifactType") or None
    page = parse_page(request, gateway.limits.page_size)
    listing = await gateway.registry.referrers(repository, subject, artifact_type)
    descriptors, last = _collect(listing, page)
    headers: list[Header] = [(b"content-type", INDEX.encode())]
    parameters = {"artifactType": artifact_type} if artifact_type else {}
    if artifact_type:
        headers.append((b"oci-filters-applied", b"artifactType"))
    if last:
        headers.append(next_link(f"/v2/{repository}/referrers/{subject}", page.limit, str(last), **parameters))
    return Response(200, headers, _HEAD + b",".join(descriptors) + b"]}")


def _collect(listing: Callable[[Digest | None, int], list[Referrer]], page: Page) -> tuple[list[bytes], Digest | None]:
    """The descriptors of one page, and its last digest if more follow."""
    descriptors: list[bytes] = []
    size = len(_HEAD) + 2
    after = Digest.parse(page.after) if page.after else None
    while len(descriptors) < page.limit:
        batch = listing(after, _BATCH)
        for referrer in batch:
            encoded = msgspec.json.encode(_descriptor(referrer))
            if len(descriptors) == page.limit or (descriptors and size + len(encoded) + 1 > MAX_PAGE_BYTES):
                return descriptors, after
            descriptors.append(encoded)
            size += len(encoded) + 1
            after = referrer.digest
        if len(batch) < _BATCH:
            return descriptors, None
    more = page.limit and listing(after, 1)
    return descriptors, after if more else None


def _descriptor(referrer: Referrer) -> dict[str, Any]:
    descriptor: dict[str, Any] = {
        "mediaType": referrer.media_type,
        "digest": str(referrer.digest),
        "size": referrer.size_bytes,
    }
    if referrer.artifact_type:
        descriptor["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        descriptor["annotations"] = referrer.annotations
    return descriptor
