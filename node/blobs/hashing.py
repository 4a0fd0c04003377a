"""SHA-256 and SHA-512 whose state can be kept and taken up again, by libcrypto's own context structures.

hashlib hides its state, so an upload taken up by another process would have to be read again from its first byte. The
contexts of SHA256_Init and its kin are plain memory that copies exactly. They are a deprecated interface: their layout
is tested once a process, and where it is not as expected hashlib takes over, without states to keep.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

ALGORITHMS = ("sha256", "sha512")

_ROOM_BYTES = 1024  # several times the larger context, so that a different libcrypto cannot write past the end
_FILLER = b"\xa5"


class RunningHash(Protocol):
    """A hash that grows by chunks. Not for use by two threads at once."""

    @property
    def algorithm(self) -> str:
        """One of ALGORITHMS."""

    def update(self, chunk: bytes) -> None:
        """Takes in `chunk` without copying it; lets other threads run meanwhile."""

    def hexdigest(self) -> str:
        """The hash of everything so far; more may follow."""

    def state(self) -> bytes | None:
        """What `restore_hash` goes on from, on this machine; None where states cannot be kept."""


def new_hash(algorithm: str) -> RunningHash:
    """The hash of nothing yet."""
    functions = _functions(algorithm)
    return ResumableHash(functions) if functions else PlainHash(algorithm)


def restore_hash(algorithm: str, state: bytes | None, size_bytes: int) -> RunningHash | None:
    """The hash that had taken in `size_bytes` when `state` was taken; None if the state cannot be used."""
    functions = _functions(algorithm) if algorithm in ALGORITHMS else None
    if functions is None or state is None or not functions.layout.fits(state, size_bytes):
        return None
    return ResumableHash(functions, state)


@dataclass(frozen=True, slots=True)
class _Layout:
    """A context: the hash words, the count of bits, one block of input and how many bytes of it are in use."""

    algorithm: str
    context_bytes: int
    words_bytes: int
    count_bytes: int
    block_bytes: int

    def fits(self, state: bytes, size_bytes: int) -> bool:
        """Whether the counters inside say `size_bytes`, which also keeps libcrypto within its block."""
        if len(state) != self.context_bytes:
            return False
        block = self.words_bytes + self.count_bytes
        bits = int.from_bytes(state[self.words_bytes : block], "little")
        (used,) = struct.unpack_from("<I", state, block + self.block_bytes)
        return bits == size_bytes * 8 and used == size_bytes % self.block_bytes


_LAYOUTS = {
    "sha256": _Layout("sha256", context_bytes=112, words_bytes=32, count_bytes=8, block_bytes=64),
    "sha512": _Layout("sha512", context_bytes=216, words_bytes=64, count_bytes=16, block_bytes=128),
}


@dataclass(frozen=True, slots=True)
class _Functions:
    layout: _Layout
    init: Callable[..., int]
    update: Callable[..., int]
    final: Callable[..., int]


class ResumableHash:
    """A RunningHash over a libcrypto context."""

    def __init__(self, functions: _Functions, state: bytes | None = None) -> None:
        self._functions = functions
        self._context = ctypes.create_string_buffer(_FILLER * _ROOM_BYTES, _ROOM_BYTES)
        if state is None:
            functions.init(self._context)
        else:
            ctypes.memmove(self._context, state, len(state))

    @property
    def algorithm(self) -> str:
        """One of ALGORITHMS."""
        return self._functions.layout.algorithm

    def update(self, chunk: bytes) -> None:
        """See RunningHash."""
        self._functions.update(self._context, chunk, len(chunk))

    def hexdigest(self) -> str:
        """See RunningHash."""
        context = ctypes.create_string_buffer(self._context.raw, _ROOM_BYTES)
        result = ctypes.create_string_buffer(64)
        self._functions.final(result, context)
        return result.raw[: self._functions.layout.words_bytes].hex()

    def state(self) -> bytes:
        """See RunningHash."""
        return self._context.raw[: self._functions.layout.context_bytes]

    def stayed_inside(self) -> bool:
        """Whether libcrypto left alone what lies behind the context, as it must."""
        size = self._functions.layout.context_bytes
        return self._context.raw[size:] == _FILLER * (_ROOM_BYTES - size)


class PlainHash:
    """A RunningHash by hashlib, without states."""

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)

    @property
    def algorithm(self) -> str:
        """One of ALGORITHMS."""
        return self._hash.name

    def update(self, chunk: bytes) -> None:
        """See RunningHash."""
        self._hash.update(chunk)

    def hexdigest(self) -> str:
        """See RunningHash."""
        return self._hash.hexdigest()

    def state(self) -> bytes | None:
        """See RunningHash."""
        return None


@lru_cache
def _functions(algorithm: str) -> _Functions | None:
    try:
        functions = _bind(_libcrypto(), algorithm)
    except (OSError, AttributeError):
        return None
    return functions if _behaves(functions) else None


def _libcrypto() -> ctypes.CDLL:
    """The libcrypto that hashlib itself is linked to: a symbol is looked up in a module's dependencies too."""
    spec = importlib.util.find_spec("_hashlib")
    if spec is None or spec.origin is None:
        raise OSError("no _hashlib")
    return ctypes.CDLL(spec.origin)


def _bind(library: ctypes.CDLL, algorithm: str) -> _Functions:
    prefix = algorithm.upper()

    def function(name: str, *arguments: Any) -> Callable[..., int]:
        found = library[f"{prefix}_{name}"]
        found.argtypes = arguments
        found.restype = ctypes.c_int
        return found

    return _Functions(
        _LAYOUTS[algorithm],
        init=function("Init", ctypes.c_void_p),
        update=function("Update", ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
        final=function("Final", ctypes.c_void_p, ctypes.c_void_p),
    )


def _behaves(functions: _Functions) -> bool:
    """Hashes a message cut at every offset around the block borders, through a kept state, and compares."""
    layout = functions.layout
    message = bytes(range(256)) * 3
    expected = hashlib.new(layout.algorithm, message).hexdigest()
    for cut in (0, 1, 55, 56, 63, 64, 65, 111, 112, 127, 128, 129, 255, 511, len(message)):
        first = ResumableHash(functions)
        first.update(message[:cut])
        state = first.state()
        if not first.stayed_inside() or not layout.fits(state, cut):
            return False
        second = ResumableHash(functions, state)
        second.update(message[cut:])
        if second.hexdigest() != expected or not second.stayed_inside():
            return False
    return hashlib.new(layout.algorithm, b"").hexdigest() == ResumableHash(functions).hexdigest()
