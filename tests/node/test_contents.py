from __future__ import annotations

from consensus.names import Digest
from node.contents import ContentCache


class Library:
    """Contents by digest, and which of them were asked for."""

    def __init__(self, contents: dict[Digest, bytes]) -> None:
        self.contents = contents
        self.asked: list[Digest] = []

    def load(self, digest: Digest) -> bytes | None:
        self.asked.append(digest)
        return self.contents.get(digest)


DIGESTS = [Digest("sha256", f"{number:064x}") for number in range(20)]


def test_a_content_is_loaded_once() -> None:
    library = Library({DIGESTS[0]: b"content"})
    cache = ContentCache(64 * 1024, library.load)
    assert [cache.get(DIGESTS[0]) for _ in range(3)] == [b"content"] * 3
    assert library.asked == [DIGESTS[0]]


def test_what_does_not_exist_is_asked_for_again() -> None:
    library = Library({})
    cache = ContentCache(64 * 1024, library.load)
    assert cache.get(DIGESTS[0]) is None
    library.contents[DIGESTS[0]] = b"late"
    assert cache.get(DIGESTS[0]) == b"late"


def test_the_least_recently_used_go_beyond_the_bound() -> None:
    library = Library(dict.fromkeys(DIGESTS, b"x" * 1024))
    cache = ContentCache(10 * 1536, library.load)
    for digest in DIGESTS[:10]:
        cache.get(digest)
    cache.get(DIGESTS[0])  # used again: the second is now the oldest
    cache.get(DIGESTS[10])
    library.asked.clear()
    cache.get(DIGESTS[0])
    assert library.asked == []
    cache.get(DIGESTS[1])
    assert library.asked == [DIGESTS[1]]


def test_a_content_that_would_drive_out_too_much_is_not_kept() -> None:
    library = Library({DIGESTS[0]: b"x" * 8192})
    cache = ContentCache(16 * 1024, library.load)
    cache.get(DIGESTS[0])
    cache.get(DIGESTS[0])
    assert len(library.asked) == 2


def test_a_cache_of_no_size_keeps_nothing() -> None:
    library = Library({DIGESTS[0]: b""})
    cache = ContentCache(0, library.load)
    assert cache.get(DIGESTS[0]) == b""
    assert cache.get(DIGESTS[0]) == b""
    assert len(library.asked) == 2
