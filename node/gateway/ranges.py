"""Byte ranges: of blobs that are read (RFC 9110, section 14) and of chunks that are written (distribution-spec)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from node.gateway.refusals import LengthMismatch, MalformedRange, RangeUnsatisfiable
from node.uploads import Span

_ONE_RANGE = re.compile(r"bytes\s*=\s*(?:([0-9]{1,30})-([0-9]{0,30})|-([0-9]{1,30}))\s*", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes from `start` up to but without `stop`."""

    start: int
    stop: int


def parse_range(text: str | None, size_bytes: int) -> Slice | None:
    """The part of a blob that a Range header asks for; None where the whole is the right answer: no header, another
    unit, several ranges, or what does not parse. Raises RangeUnsatisfiable."""
    match = _ONE_RANGE.fullmatch(text) if text else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(int(suffix), size_bytes)
        if not int(suffix):
            raise RangeUnsatisfiable(size_bytes)
        return Slice(size_bytes - length, size_bytes) if length else None
    start = int(first)
    stop = min(int(last) + 1, size_bytes) if last else size_bytes
    if start >= stop:
        raise RangeUnsatisfiable(size_bytes)
    return Slice(start, stop)


def parse_content_range(text: str | None, content_length: int | None) -> Span | None:
    """Where a chunk belongs, if it says so: `<first>-<last>`, both included. Raises MalformedRange, LengthMismatch."""
    if text is None:
        return None
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or int(match[2]) < int(match[1]):
        raise MalformedRange("Content-Range takes <first>-<last>, both included, in decimal digits")
    span = Span(int(match[1]), int(match[2]) - int(match[1]) + 1)
    if content_length is not None and content_length != span.length:
        raise LengthMismatch(f"Content-Range names {span.length} bytes, Content-Length {content_length}")
    return span
