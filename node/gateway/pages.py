"""Pages of listings: `n` and `last`, and the Link to the next page (RFC 8288)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from node.gateway.refusals import MalformedRequest
from node.gateway.requests import Request
from node.gateway.responses import Header

MAX_LAST_CHARACTERS = 512
_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_SMALL_DIGITS = 18  # what has more is beyond any page however it goes on


@dataclass(frozen=True, slots=True)
class Page:
    """Up to `limit` entries that follow `after`."""

    limit: int
    after: str | None


def parse_page(request: Request, most: int) -> Page:
    """The page that is asked for; `n` beyond `most`, and none at all, count as `most`. Raises MalformedRequest."""
    number, last = request.parameter("n"), request.parameter("last")
    if last is not None and len(last) > MAX_LAST_CHARACTERS:
        raise MalformedRequest(f"last takes at most {MAX_LAST_CHARACTERS} characters")
    return Page(most if number is None else min(_parse_number(number), most), last or None)


def _parse_number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise MalformedRequest("n takes decimal digits")
    return int(text.lstrip("0")[:_SMALL_DIGITS] or "0")


def next_link(path: str, limit: int, last: str, **parameters: str) -> Header:
    """The header that leads to what follows `last`."""
    query = urlencode({"n": str(limit), "last": last, **parameters}, quote_via=quote, safe=":/")
    return (b"link", f'<{path}?{query}>; rel="next"'.encode())
