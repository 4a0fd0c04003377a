"""The write-ahead log on disk: numbered, checksummed, synced records in segments that are files.

Promises:

- What `append` returned for is on disk and survives power loss. One call is one write and one sync, however many
  entries it holds; a crash inside it leaves a prefix of them, or none.
- Opening cuts a torn write, which was never acknowledged, and refuses damage to what was (LogCorrupt).
- A full disk is survived: nothing of the call's entries stays in the log, later calls go on once there is room.
- A failed sync is final. The kernel may have dropped the pages and would report the next sync as a success, so
  the log refuses everything from then on and only a new process, reading from the disk, can say what is there.

Entries are numbered 1, 2, 3 ... without gaps. One thread appends; any thread reads, trims or asks.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from consensus import cuts, disk, entropy, segments
from consensus.errors import LogCorrupt, LogError, LogFull, LogTrimmed, LogUnavailable
from consensus.folderlock import lock_folder
from consensus.log import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, Entry

DEFAULT_SEGMENT_BYTES = 64 * 1024 * 1024

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MARK_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
_UNFINISHED = ".new"

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Segment:
    """One file: `end` is the length that holds synced records, `last` the last of them (first - 1 while empty).
    `marks` are (index, offset) of some records, every _MARK_BYTES or so, where reading can start."""

    path: Path
    first: int
    salt: int
    last: int
    end: int = segments.HEADER_BYTES
    marks: list[tuple[int, int]] = field(default_factory=list)

    def mark(self, index: int, offset: int) -> None:
        if not self.marks or offset - self.marks[-1][1] >= _MARK_BYTES:
            self.marks.append((index, offset))

    def offset_before(self, index: int) -> int:
        position = bisect_right(self.marks, index, key=lambda mark: mark[0])
        return self.marks[position - 1][1] if position else segments.HEADER_BYTES


class Wal:
    """The files of one log folder, held by one process."""

    def __init__(self, folder: Path, segment_bytes: int, lock: int, found: tuple[_Segment, ...]) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._lock = lock
        self._changing = threading.Lock()  # held while `_segments` is replaced
        self._segments = found
        self._commit = found[-1].last if found else 0
        self._active = -1
        self._failure: str | None = None

    @classmethod
    def open(cls, folder: Path, *, segment_bytes: int = DEFAULT_SEGMENT_BYTES, lock_seconds: float = 10.0) -> Self:
        """Opens or creates the log; reads all of it once, so it takes a second or so for each 256 MiB.

        Raises LogCorrupt, LogFull, and LogUnavailable if another process holds the folder for `lock_seconds` or the
        disk fails.
        """
        lock = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(folder, lock_seconds)
            wal = cls(folder, segment_bytes, lock, _recover(folder))
            if wal._segments:
                wal._activate(wal._segments[-1].path)
            else:
                wal._start_segment(1)
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, OSError):
                raise LogUnavailable(f"cannot open the log in {folder}: {error}") from error
            raise
        return wal

    @property
    def first(self) -> int:
        """The lowest index kept; `commit` + 1 when nothing is."""
        return self._segments[0].first

    @property
    def commit(self) -> int:
        """The highest index that is on disk; 0 in a log that never held anything."""
        return self._commit

    def append(self, payloads: Sequence[bytes]) -> int:
        """Writes and syncs the entries; returns the index of the first, the others follow it.

        Raises LogFull (none of them is in the log, now or later) and LogUnavailable (they may be; the log has failed
        for good). Each payload has at most `segments.MAX_ENTRY_BYTES`.
        """
        if self._failure is not None:
            raise LogUnavailable(self._failure)
        if self._segments[-1].end >= self._segment_bytes:
            self._start_segment(self._commit + 1)
        segment = self._segments[-1]
        parts: list[bytes] = []
        for index, payload in enumerate(payloads, start=self._commit + 1):
            parts.append(segments.encode_record_head(index, payload, durable=segment.end, salt=segment.salt))
            parts.append(payload)
        self._write(segment, b"".join(parts))
        first = self._commit + 1
        for payload in payloads:
            segment.last += 1
            segment.mark(segment.last, segment.end)
            segment.end += segments.RECORD_BYTES + len(payload)
        self._commit = segment.last
        return first

    def read(self, after: int) -> tuple[Entry, ...]:
        """Up to MAX_BATCH_ENTRIES and about MAX_BATCH_BYTES of the entries behind `after`; none only if there is none.

        Raises LogTrimmed, LogCorrupt (damage since the log was opened) and LogUnavailable (the disk fails).
        """
        commit, held = self._commit, self._segments
        if after + 1 < held[0].first:
            raise LogTrimmed(f"entries up to {held[0].first - 1} have been trimmed, those after {after} were asked for")
        if after >= commit:
            return ()
        position = bisect_right(held, after + 1, key=lambda segment: segment.first) - 1
        segment = held[position]
        last = held[position + 1].first - 1 if position + 1 < len(held) else commit
        try:
            return _read_batch(segment, after, last)
        except FileNotFoundError:
            if segment.first < self.first:
                raise LogTrimmed(f"the entries after {after} have just been trimmed") from None
            raise LogCorrupt(f"{segment.path} has been removed from under the running node; restart it") from None
        except OSError as error:
            raise LogUnavailable(f"cannot read {segment.path}: {error}") from error

    def trim(self, upto: int, *, keep_bytes: int = 0) -> None:
        """Removes whole segments of entries <= `upto`, oldest first, never the one being written, and only while the
        segments that stay have `keep_bytes`. Raises LogUnavailable (closed, failed, or the disk fails)."""
        with self._changing:
            if self._failure is not None:
                raise LogUnavailable(self._failure)
            kept = sum(segment.end for segment in self._segments)
            for segment in self._segments[:-1]:
                kept -= segment.end
                if segment.last > upto or kept < keep_bytes:
                    return
                self._segments = self._segments[1:]
                self._remove(segment)

    def cut(self, after: int) -> None:
        """Takes back the entries behind `after`, durably, for an engine whose newest entries may not stand. A crash
        inside it leaves some of them, never a gap. Raises LogUnavailable (the log has failed for good), LogCorrupt
        (nothing was cut), ValueError when `after` has been trimmed."""
        if self._failure is not None:
            raise LogUnavailable(self._failure)
        if after >= self._commit:
            return
        with self._changing:
            if after < self.first - 1:
                raise ValueError(f"entry {after} has been trimmed, the log begins at {self.first}")
            try:
                kept = [segment for segment in self._segments if segment.first <= after + 1]
                segment = _shortened(kept[-1], after)
                self._commit = after
                self._drop_segments(self._segments[len(kept) :])
                self._activate(segment.path)
                announced = cuts.announce(segment.path, segment.end)
                os.ftruncate(self._active, segment.end)
                disk.sync_data(self._active)
                cuts.forget([announced])
            except OSError as error:
                raise self.fail(f"cannot cut the log in {self._folder}: {error}; it has failed for good") from error
            self._segments = (*kept[:-1], segment)

    def reset(self, first: int) -> None:
        """Forgets every entry; the next one is numbered `first`. A crash inside it leaves all of them, the oldest of
        them, or none. Nobody may be reading. Raises LogFull, LogUnavailable."""
        if self._failure is not None:
            raise LogUnavailable(self._failure)
        try:
            with self._changing:
                self._drop_segments(self._segments)
        except OSError as error:
            raise self.fail(f"cannot empty the log in {self._folder}: {error}; it has failed for good") from error
        self._commit = first - 1
        self._start_segment(first)
        with self._changing:
            self._segments = self._segments[-1:]

    def _drop_segments(self, dropped: Sequence[_Segment]) -> None:
        """Removes the newest segments, newest first: a crash leaves no gap."""
        if dropped and self._active >= 0:
            os.close(self._active)
            self._active = -1
        for segment in reversed(dropped):
            segment.path.unlink(missing_ok=True)
            disk.sync_folder(self._folder)

    def _remove(self, segment: _Segment) -> None:
        try:
            segment.path.unlink(missing_ok=True)
            # For each one: a crash must not bring back an older segment without those behind it.
            disk.sync_folder(self._folder)
        except OSError as error:
            raise LogUnavailable(f"cannot trim the log in {self._folder}: {error}") from error

    def fail(self, reason: str) -> LogUnavailable:
        """From now on every append is refused with `reason`; returns the error to raise."""
        self._failure = reason
        return LogUnavailable(reason)

    def close(self) -> None:
        """Lets go of the folder; nothing is pending, because `append` leaves nothing unsynced. Idempotent."""
        with self._changing:
            self._failure = self._failure or "the log is closed"
            for descriptor in (self._active, self._lock):
                if descriptor >= 0:
                    os.close(descriptor)
            self._active = self._lock = -1

    def _activate(self, path: Path) -> None:
        if self._active < 0:
            self._active = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def _write(self, segment: _Segment, content: bytes) -> None:
        try:
            disk.write_all(self._active, content, segment.end)
        except OSError as error:
            self._cut_back(segment, error)
            raise LogFull(f"no room in {self._folder}: {error.strerror}") from error
        try:
            disk.sync_data(self._active)
        except OSError as error:
            raise self.fail(f"cannot sync {segment.path}: {error}; the log has failed for good") from error

    def _cut_back(self, segment: _Segment, cause: OSError) -> None:
        """After a failed write; synced, because "never in the log" has to survive a power loss as well."""
        if cause.errno not in _FULL:
            raise self.fail(f"cannot write {segment.path}: {cause}; the log has failed for good") from cause
        try:
            os.ftruncate(self._active, segment.end)
            disk.sync_data(self._active)
        except OSError as error:
            raise self.fail(f"cannot cut {segment.path} back: {error}; the log has failed for good") from error

    def _start_segment(self, first: int) -> None:
        """A segment gets its name only when its header is on disk; both are before any record in it is acknowledged."""
        path = self._folder / segments.segment_name(first)
        unfinished = path.with_suffix(_UNFINISHED)
        salt = int.from_bytes(entropy.token_bytes(4), "little")
        descriptor = -1
        try:
            descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            disk.write_all(descriptor, segments.encode_header(first, salt), 0)
        except OSError as error:
            raise self._abandon(descriptor, unfinished, error) from error
        try:
            disk.sync_file(descriptor)
            unfinished.rename(path)
            disk.sync_folder(self._folder)
        except OSError as error:
            os.close(descriptor)
            raise self.fail(f"cannot make {path} durable: {error}; the log has failed for good") from error
        if self._active >= 0:
            os.close(self._active)
        self._active = descriptor
        with self._changing:
            self._segments = (*self._segments, _Segment(path, first, salt, first - 1))

    def _abandon(self, descriptor: int, unfinished: Path, cause: OSError) -> LogError:
        if descriptor >= 0:
            os.close(descriptor)
            unfinished.unlink(missing_ok=True)
        if cause.errno in _FULL:
            return LogFull(f"no room for a new segment in {self._folder}: {cause.strerror}")
        return self.fail(f"cannot create {unfinished}: {cause}; the log has failed for good")


def _read_batch(segment: _Segment, after: int, last: int) -> tuple[Entry, ...]:
    batch: list[Entry] = []
    size = 0
    with segment.path.open("rb", buffering=_READ_BYTES) as file:
        for _, index, payload in segments.read_records(file, segment.salt, segment.offset_before(after + 1)):
            if index > after:
                batch.append(Entry(index, payload))
                size += len(payload)
            if index >= last or len(batch) >= MAX_BATCH_ENTRIES or size >= MAX_BATCH_BYTES:
                break
    if not batch:
        raise LogCorrupt(
            segments.damage(segment.path, segment.offset_before(after + 1), f"entry {after + 1} is damaged")
        )
    return tuple(batch)


def _shortened(segment: _Segment, last: int) -> _Segment:
    end, reached = segments.HEADER_BYTES, segment.first - 1
    with segment.path.open("rb", buffering=_READ_BYTES) as file:
        for offset, index, payload in segments.read_records(file, segment.salt, segment.offset_before(last + 1)):
            if index > last:
                reached, end = index - 1, offset
                break
            reached, end = index, offset + segments.RECORD_BYTES + len(payload)
    if reached != last:
        raise LogCorrupt(segments.damage(segment.path, end, f"the entries up to {last} cannot be read back"))
    marks = [(index, offset) for index, offset in segment.marks if index <= last]
    return _Segment(segment.path, segment.first, segment.salt, last, end, marks)


def _recover(folder: Path) -> tuple[_Segment, ...]:
    """Reads and checks every segment; cuts a torn write at the end of the last one."""
    for unfinished in folder.glob(f"*{_UNFINISHED}"):
        unfinished.unlink()
    unfinished_cuts = cuts.resume(folder)
    paths = sorted(path for path in folder.glob("*.log") if path.stem.isdecimal() and len(path.stem) == 20)
    # A predecessor may have been killed after it made these and before it synced them: what is read below counts as
    # committed, so it must be on disk, and be read from there.
    disk.sync_folder(folder.parent)
    disk.sync_folder(folder)
    if paths:
        _settle_on_disk(paths[-1])
    cuts.forget(unfinished_cuts)  # the one that there can be was of the newest segment
    found: list[_Segment] = []
    for path in paths:
        segment = _recover_segment(path, is_last=path == paths[-1])
        if found and segment.first != found[-1].last + 1:
            missing = f"entries {found[-1].last + 1} to {segment.first - 1} are missing before this segment"
            raise LogCorrupt(segments.damage(path, 0, missing))
        found.append(segment)
    return tuple(found)


def _settle_on_disk(path: Path) -> None:
    with path.open("rb+", buffering=0) as file:
        disk.sync_data(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _recover_segment(path: Path, *, is_last: bool) -> _Segment:
    first = int(path.stem)
    with path.open("rb+", buffering=_READ_BYTES) as file:
        segment = _Segment(path, first, segments.read_salt(file, path, first), first - 1)
        for offset, index, payload in segments.read_records(file, segment.salt, segments.HEADER_BYTES):
            if index != segment.last + 1:
                raise LogCorrupt(segments.damage(path, offset, f"entry {index} follows entry {segment.last}"))
            segment.mark(index, offset)
            segment.last = index
            segment.end = offset + segments.RECORD_BYTES + len(payload)
        size = os.fstat(file.fileno()).st_size
        if segment.end == size:
            return segment
        proof = segments.find_proof_of_damage(file, segment.salt, segment.end)
        if proof is not None or not is_last:
            behind = f"whole records follow at offset {proof}" if proof is not None else "whole segments follow it"
            what = f"the record behind entry {segment.last} is damaged, and {behind}"
            raise LogCorrupt(segments.damage(path, segment.end, what))
        _logger.warning("log_tail_cut", extra={"path": str(path), "offset": segment.end, "bytes": size - segment.end})
        os.ftruncate(file.fileno(), segment.end)
        disk.sync_data(file.fileno())
    return segment
