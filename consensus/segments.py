"""The format of one segment, a file of the write-ahead log, and how it is read back.

    segment  header, then records without gaps; integers are little-endian
    header   magic (8 bytes), format version (u32), first index (u64), salt (u32), CRC-32 of what precedes (u32)
    record   head, payload
    head     magic (4 bytes), payload length (u32), index (u64), durable (u64), CRC-32 of the payload and of the head

The head's CRC starts from the segment's random salt. So neither blocks left over from a removed segment nor bytes that
a client sent inside a payload can pass for a record of this file.

`durable` is the length up to which the file had been synced when the record was written. It tells what a checksum
cannot: a bad record with a later one behind it may be a torn write (both were in one unsynced write and the disk kept
only the second) or damage to something that was already safe. It is damage exactly if a later record says so.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from consensus.errors import LogCorrupt
from consensus.log import MAX_PAYLOAD_BYTES

VERSION = 1
MAX_ENTRY_BYTES = MAX_PAYLOAD_BYTES + 1024  # an engine may put something of its own before a payload

_HEADER_MAGIC = b"MRDNWAL\n"
_HEADER = struct.Struct("<8sIQII")
_RECORD_MAGIC = b"\xf5MR\xa9"
_RECORD = struct.Struct("<4sIQQII")
_SEARCH_BYTES = 1024 * 1024
_U32 = struct.Struct("<I")

HEADER_BYTES = _HEADER.size
RECORD_BYTES = _RECORD.size  # what a record takes beside its payload

Record = tuple[int, int, bytes]  # offset of the record in its file, index, payload


def segment_name(first: int) -> str:
    """The file name of the segment whose first record is `first`."""
    return f"{first:020d}.log"


def encode_header(first: int, salt: int) -> bytes:
    """The first bytes of a segment."""
    body = _HEADER.pack(_HEADER_MAGIC, VERSION, first, salt, 0)[: -_U32.size]
    return body + _U32.pack(zlib.crc32(body))


def read_salt(file: BinaryIO, path: Path, first: int) -> int:
    """Reads the header, which must be that of the segment starting at `first`, and returns the salt.

    Raises LogCorrupt. A segment gets its name only once its header is synced, so a bad one is never a torn write.
    """
    file.seek(0)
    content = file.read(HEADER_BYTES)
    body, checksum = content[: -_U32.size], content[-_U32.size :]
    if len(content) < HEADER_BYTES or _U32.pack(zlib.crc32(body)) != checksum:
        raise LogCorrupt(damage(path, 0, "the segment's header is damaged"))
    magic, version, index, salt, _ = _HEADER.unpack(content)
    if magic != _HEADER_MAGIC or version != VERSION:
        raise LogCorrupt(f"{path}: not a log segment of format {VERSION}; it was written by another version")
    if index != first:
        raise LogCorrupt(damage(path, 0, f"the header says that the segment starts at entry {index}"))
    return int(salt)


def encode_record_head(index: int, payload: bytes, *, durable: int, salt: int) -> bytes:
    """What precedes `payload` in the file."""
    head = _RECORD.pack(_RECORD_MAGIC, len(payload), index, durable, zlib.crc32(payload), 0)[: -_U32.size]
    return head + _U32.pack(zlib.crc32(head, salt))


def read_records(file: BinaryIO, salt: int, offset: int) -> Iterator[Record]:
    """The records from `offset` on, up to the end of the file or the first that is not valid."""
    file.seek(offset)
    while (head := _parse_head(file.read(RECORD_BYTES), salt)) is not None:
        length, index, _, checksum = head
        payload = file.read(length)
        if len(payload) != length or zlib.crc32(payload) != checksum:
            return
        yield offset, index, payload
        offset += RECORD_BYTES + length


def find_proof_of_damage(file: BinaryIO, salt: int, bad: int) -> int | None:
    """The offset of a record behind the bad one at offset `bad` that proves that `bad` had been synced before, or None:
    then everything from `bad` on is one torn write, none of it ever acknowledged."""
    position = bad + 1
    while True:
        file.seek(position)
        window = file.read(_SEARCH_BYTES)
        found = window.find(_RECORD_MAGIC)
        while found >= 0 and found + RECORD_BYTES <= len(window):
            head = _parse_head(window[found : found + RECORD_BYTES], salt)
            if head is not None and head[2] > bad:
                return position + found
            found = window.find(_RECORD_MAGIC, found + 1)
        if len(window) < _SEARCH_BYTES:
            return None
        position += len(window) - RECORD_BYTES + 1


def damage(path: Path, offset: int, what: str) -> str:
    """The message of a LogCorrupt: where, what, and what an operator can do."""
    return (
        f"{path}, offset {offset}: {what}. Nothing was changed. The log is damaged on disk; do not edit or delete its "
        f"files. Look at the disk's health and at the bytes (xxd -s {offset} -l 256 {path}), then restore this node's "
        f"data folder from a backup, or let the node rejoin as a new member and copy its data from a peer."
    )


def _parse_head(content: bytes, salt: int) -> tuple[int, int, int, int] | None:
    """(payload length, index, durable, payload CRC), or None if these bytes are no head of this segment."""
    if len(content) < RECORD_BYTES:
        return None
    magic, length, index, durable, payload_checksum, checksum = _RECORD.unpack(content)
    if magic != _RECORD_MAGIC or length > MAX_ENTRY_BYTES or zlib.crc32(content[: -_U32.size], salt) != checksum:
        return None
    return length, index, durable, payload_checksum
