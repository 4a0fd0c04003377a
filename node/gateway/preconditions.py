"""If-Match and If-None-Match (RFC 9110, section 13.1). The entity tag of a manifest or blob is its digest in quotes.

A weak tag (`W/"..."`) never meets If-Match, as the RFC has it; for If-None-Match on a read it counts like a strong one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from consensus.errors import InvalidName
from consensus.names import Digest
from node.conditions import ANYTHING, UNCONDITIONAL, Condition, Names
from node.errors import ConditionFailed
from node.gateway.refusals import MalformedRequest
from node.gateway.requests import Request

MAX_ENTITY_TAGS = 32
_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]{0,512})"')


def entity_tag(digest: Digest) -> bytes:
    """The strong entity tag of what has this digest."""
    return b'"%s"' % str(digest).encode()


def is_fresh(request: Request, digest: Digest) -> bool:
    """Whether the client has it already, by its If-None-Match: the answer is then 304. A list that does not parse
    counts as absent."""
    return b"if-none-match" in request.headers and _lists(request, b"if-none-match", digest, weak=True)


def require_match(request: Request, digest: Digest) -> None:
    """What a read expects of it, by its If-Match. A list that does not parse names nothing. Raises ConditionFailed."""
    if b"if-match" in request.headers and not _lists(request, b"if-match", digest, weak=False):
        raise ConditionFailed(digest)


def parse_condition(request: Request) -> Condition:
    """What a write expects of the tag, or of what has the digest. Raises MalformedRequest."""
    match = _names(request, b"if-match")
    none_match = _names(request, b"if-none-match")
    return UNCONDITIONAL if match is None and none_match is None else Condition(match, none_match)


def _lists(request: Request, header: bytes, digest: Digest, *, weak: bool) -> bool:
    text = ",".join(request.header_lines(header))
    if text.strip() == "*":
        return True
    tags = filter(None, map(_ENTITY_TAG.fullmatch, map(str.strip, text.split(","))))
    return any(tag[2] == str(digest) and (weak or not tag[1]) for tag in tags)


def _names(request: Request, header: bytes) -> Names | None:
    lines = request.header_lines(header)
    if not lines:
        return None
    text = ",".join(lines).strip()
    return ANYTHING if text == "*" else _digests(header.decode(), text.split(","))


def _digests(header: str, elements: Sequence[str]) -> frozenset[Digest]:
    if len(elements) > MAX_ENTITY_TAGS:
        raise MalformedRequest(f"{header} takes at most {MAX_ENTITY_TAGS} entity tags")
    digests = set()
    for element in elements:
        parsed = _ENTITY_TAG.fullmatch(element.strip())
        try:
            digest = Digest.parse(parsed[2]) if parsed else None
        except InvalidName:
            digest = None
        if parsed is None or digest is None:
            raise MalformedRequest(f'{header} takes * or digests in quotes, such as "sha256:..."')
        if not parsed[1]:
            digests.add(digest)
    return frozenset(digests)
