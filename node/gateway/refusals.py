"""What can be wrong with a request besides what it asks for; `node.gateway.errors` says how each is answered.

RequestRefused
├── RouteUnknown            no such endpoint
├── MethodNotAllowed        the endpoint has other methods
├── MalformedRequest        a header or parameter that does not parse
│   ├── MalformedRange      a Content-Range that does not
│   ├── LengthMismatch      Content-Range and Content-Length contradict each other
│   └── TooManyParameters   more of them, or more tags, than one request may have
├── TagImpossible           no manifest can have such a tag
├── TypeNotAcceptable       the manifest's type is not among those that the client accepts
├── RangeUnsatisfiable      no byte of the blob lies in the range
└── Overloaded              a bound on memory is reached: to be repeated
ClientGone                  the connection ended: there is nobody to answer
"""

from __future__ import annotations

from collections.abc import Iterable

from consensus.errors import InvalidName


class RequestRefused(Exception):
    """The root of what a request gets wrong; the message is for the client."""


class RouteUnknown(RequestRefused):
    """No endpoint has this path."""


class MethodNotAllowed(RequestRefused):
    """The endpoint exists; the answer lists what it takes."""

    def __init__(self, method: str, allowed: Iterable[str]) -> None:
        super().__init__(f"{method[:20]} is not supported here; {', '.join(allowed)} are")


class MalformedRequest(RequestRefused):
    """A header or parameter that does not parse, or contradicts another."""


class MalformedRange(MalformedRequest):
    """Content-Range is not `<first>-<last>`."""


class LengthMismatch(MalformedRequest):
    """Content-Range and Content-Length name different lengths."""


class TooManyParameters(MalformedRequest):
    """More parameters, or more of them tags, than are taken at once."""


class TagImpossible(RequestRefused):
    """What is read or deleted by a tag that does not parse; `invalid` says why it does not."""

    def __init__(self, invalid: InvalidName) -> None:
        super().__init__(str(invalid))
        self.invalid = invalid


class TypeNotAcceptable(RequestRefused):
    """`media_type` is what there is."""

    def __init__(self, media_type: str) -> None:
        super().__init__(f"the manifest is {media_type}, which the Accept header does not include")
        self.media_type = media_type


class RangeUnsatisfiable(RequestRefused):
    """The blob has `size_bytes`."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the blob has {size_bytes} bytes")
        self.size_bytes = size_bytes


class Overloaded(RequestRefused):
    """This process holds as much for its clients as it may."""


class ClientGone(Exception):
    """The client went away before it had its answer."""
