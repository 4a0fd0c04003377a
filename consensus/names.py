"""The vocabulary of content. Parsing is the only way in: a value of these types is well formed.

Sources: distribution-spec v1.1 "Pulling manifests" (names, tags), image-spec descriptor.md "Digests".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

from consensus.errors import InvalidName

MAX_REPOSITORY_CHARACTERS = 255
StoreId = NewType("StoreId", str)  # 32 hexadecimal characters, drawn once when a store is made, never used again

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_ALGORITHM_CODE = {"sha256": 1, "sha512": 2}
_ALGORITHM_OF_CODE = {code: name for name, code in _ALGORITHM_CODE.items()}
_HEX = re.compile(r"[0-9a-f]+")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_REGION = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content address: `sha256:<64 hex>` or `sha512:<128 hex>`, lower case."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises InvalidName for anything but the two registered algorithms in their exact form."""
        return _parse_digest(text)

    @classmethod
    def from_bytes(cls, packed: bytes) -> Digest:
        """The inverse of `packed`; raises InvalidName."""
        algorithm = _ALGORITHM_OF_CODE.get(packed[0]) if packed else None
        if algorithm is None or len(packed) != 1 + _HEX_LENGTH[algorithm] // 2:
            raise InvalidName("digest", packed.hex(), "not a packed digest")
        return cls(algorithm, packed[1:].hex())

    @property
    def packed(self) -> bytes:
        """One byte for the algorithm and the raw hash: 33 or 65 bytes, as stored in the state."""
        return bytes((_ALGORITHM_CODE[self.algorithm],)) + bytes.fromhex(self.hex)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@lru_cache(maxsize=4096)
def _parse_digest(text: str) -> Digest:
    algorithm, separator, encoded = text.partition(":")
    if not separator:
        raise InvalidName("digest", text, "expected <algorithm>:<hex>")
    length = _HEX_LENGTH.get(algorithm)
    if length is None:
        raise InvalidName("digest", text, "unsupported algorithm; sha256 and sha512 are supported")
    if len(encoded) != length or not _HEX.fullmatch(encoded):
        raise InvalidName("digest", text, f"{algorithm} takes {length} lower-case hexadecimal characters")
    return Digest(algorithm, encoded)


@dataclass(frozen=True, slots=True, order=True)
class RepositoryName:
    """`<name>` of the specification: path components of any depth, at most 255 characters in all."""

    value: str

    @classmethod
    def parse(cls, text: str) -> RepositoryName:
        """Raises InvalidName."""
        return _parse_repository(text)

    def __str__(self) -> str:
        return self.value


@lru_cache(maxsize=4096)
def _parse_repository(text: str) -> RepositoryName:
    if len(text) > MAX_REPOSITORY_CHARACTERS:
        raise InvalidName("repository", text, f"longer than {MAX_REPOSITORY_CHARACTERS} characters")
    if not _REPOSITORY.fullmatch(text):
        raise InvalidName(
            "repository", text, "components are lower-case letters and digits, separated by . _ __ - or /"
        )
    return RepositoryName(text)


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """A name for a manifest within a repository, at most 128 characters."""

    value: str

    @classmethod
    def parse(cls, text: str) -> Tag:
        """Raises InvalidName."""
        if not _TAG.fullmatch(text):
            raise InvalidName("tag", text, "at most 128 letters, digits, '_', '.', '-', not starting with '.' or '-'")
        return cls(text)

    def __str__(self) -> str:
        return self.value


Reference = Tag | Digest


def parse_reference(text: str) -> Reference:
    """`<tag-or-digest>`: whatever holds a colon must be a digest. Raises InvalidName."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """The name of a region: `[a-z][a-z0-9-]{0,31}`."""

    value: str

    @classmethod
    def parse(cls, text: str) -> Region:
        """Raises InvalidName."""
        if not _REGION.fullmatch(text):
            raise InvalidName("region", text, "a lower-case letter, then up to 31 letters, digits or '-'")
        return cls(text)

    def __str__(self) -> str:
        return self.value


def parse_media_type(text: str) -> str:
    """`type/subtype` (RFC 6838, section 4.2); parameters behind a ';' are dropped. Raises InvalidName."""
    bare = text.partition(";")[0].strip()
    if not _MEDIA_TYPE.fullmatch(bare):
        raise InvalidName("media type", text, "expected type/subtype")
    return bare
