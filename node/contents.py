"""Manifests' bytes in memory: by digest only, so that nothing here can be out of date."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from consensus.names import Digest

_ENTRY_BYTES = 512  # what an entry takes besides its content
_LARGEST_SHARE = 8  # content over this part of the cache would drive out too much


class ContentCache:
    """The most recently used contents, `limit_bytes` in all, in front of `load`."""

    def __init__(self, limit_bytes: int, load: Callable[[Digest], bytes | None]) -> None:
        self._limit_bytes = limit_bytes
        self._load = load
        self._contents: OrderedDict[Digest, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, digest: Digest) -> bytes | None:
        """The content, or None if there is none. Raises what `load` raises."""
        content = self._contents.get(digest)
        if content is not None:
            self._contents.move_to_end(digest)
            return content
        content = self._load(digest)
        if content is not None:
            self._keep(digest, content)
        return content

    def _keep(self, digest: Digest, content: bytes) -> None:
        if len(content) + _ENTRY_BYTES > self._limit_bytes // _LARGEST_SHARE:
            return
        self._contents[digest] = content
        self._bytes += len(content) + _ENTRY_BYTES
        while self._bytes > self._limit_bytes:
            _, dropped = self._contents.popitem(last=False)
            self._bytes -= len(dropped) + _ENTRY_BYTES
