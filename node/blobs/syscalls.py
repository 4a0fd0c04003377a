"""Two system calls of Linux that Python does not offer. Both may be refused, and nothing is lost but speed."""

from __future__ import annotations

import ctypes
import os

_OPENAT2 = 437  # the same on every architecture
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None)
_libc.syscall.restype = ctypes.c_long
_has_write_back = hasattr(_libc, "sync_file_range")  # musl leaves it out on some architectures
if _has_write_back:
    _libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_cached(path: str, flags: int) -> int | None:
    """An open file, if every part of its path is in the kernel's cache, so that nothing waits for the disk (openat2,
    Linux 5.12). None for any other reason: `os.open`, in a thread, tells which."""
    how = _OpenHow(flags, 0, _RESOLVE_CACHED)
    descriptor = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_long(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return int(descriptor) if descriptor >= 0 else None


def start_write_back(descriptor: int, offset: int, length: int) -> None:
    """Has the kernel begin to write a range to the disk, without waiting for it. Promises nothing: not durability, and
    no error is reported or taken from a later sync."""
    if _has_write_back:
        _libc.sync_file_range(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)
