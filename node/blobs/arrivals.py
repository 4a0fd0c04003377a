"""Blobs on their way from other nodes, as folders of one folder: `<uuid>/data`, which fills in pieces, and `state`.

An arrival is held by one process (flock); gateways open `data` to read what they are told is there. What is left of one
that was broken off is taken up by the next that wants the blob, or removed once nobody has touched it for long.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from consensus import clock, entropy
from consensus.disk import sync_file
from consensus.names import Digest
from node.blobs import jobs
from node.blobs.filesystem import FileReader, FilesystemStore, disk_errors
from node.blobs.hashing import new_hash
from node.blobs.ledger import HEAD_BYTES, LedgerHead, read_entries, sum_of, write_entry
from node.blobs.session import discard, hold
from node.blobs.syscalls import start_write_back
from replication.pieces import Pieces, piece_bytes_of
from replication.proof import Proof, Proving
from replication.stores import BlobNotFound, DigestMismatch, StoreError, StoreFailed, StoreRefused

_READ_BYTES = 1024 * 1024
_ROOM_CHECK_BYTES = 16 * 1024 * 1024
_NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_OPEN_DATA = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class HeldArrival:
    """An arrival that this process holds. Everything here blocks and runs in threads: `append` for one piece at a time,
    `check` by one caller, the rest alone."""

    def __init__(self, store: FilesystemStore, folder: Path, lock: int, head: LedgerHead, proof: Proof | None) -> None:
        self.folder = folder
        self.pieces = Pieces(0, 1)
        self._store = store
        self._lock = lock
        self._head = head
        self._proof = proof
        self._proving: dict[int, Proving] = {}
        self._data = self._state = -1
        self._hash = new_hash(head.digest.algorithm)
        self._hashed = 0
        self._unchecked_bytes = 0  # written since there was room when last asked

    @classmethod
    def begin(cls, store: FilesystemStore, folder: Path, head: LedgerHead, proof: Proof | None) -> HeldArrival:
        """A new arrival in a new folder. Raises StoreFull, StoreFailed."""
        try:
            with disk_errors("beginning an arrival"):
                folder.mkdir(mode=0o700)
            arrival = cls(store, folder, hold(folder), head, proof)
            try:
                arrival._create()
            except BaseException:
                arrival.release()
                raise
        except StoreError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return arrival

    @classmethod
    def resume(cls, store: FilesystemStore, folder: Path, head: LedgerHead, proof: Proof | None) -> HeldArrival | None:
        """What is left of an arrival of the same blob; None if it is another's, held, or cannot be used. Raises
        StoreError."""
        if not _is_of(folder / "state", head):
            return None
        with suppress(StoreError):
            arrival = cls(store, folder, hold(folder), head, proof)
            try:
                with disk_errors("taking up an arrival"):
                    arrival._take_up()
            except BaseException:
                arrival.release()
                raise
            return arrival
        return None

    @property
    def held(self) -> bool:
        """Whether it has not been let go of."""
        return self._lock >= 0

    @property
    def missing_bytes(self) -> int:
        """How many have not come yet."""
        return self.pieces.size_bytes - self.pieces.received_bytes

    def append(self, piece: int, reached: int, chunk: bytes) -> tuple[int, int, bool]:
        """Writes `chunk` at `reached`, up to where the piece has come. Says up to where it is there now, up to where
        proven, and whether all was right. Raises StoreFull, StoreFailed."""
        self._unchecked_bytes += len(chunk)
        if self._unchecked_bytes >= _ROOM_CHECK_BYTES:
            self._unchecked_bytes = 0
            self._store.require_room()
        right, start, proven = True, self.pieces.start(piece), self.pieces.proven(piece)
        with disk_errors("writing an arrival"):
            proving = self._proving_at(piece, reached)
            view, position = memoryview(chunk), reached
            while view:
                count = os.pwrite(self._data, view, position)
                view, position = view[count:], position + count
            if proving:
                right = proving.add(chunk)
                position, proven = proving.position, proving.proven
            write_entry(self._state, piece, position - start)
        if position == self.pieces.stop(piece):
            self._proving.pop(piece, None)
            start_write_back(self._data, start, position - start)
        return position, proven, right

    def disbelieve(self) -> None:
        """See Arrival; `pieces` is the caller's. Raises StoreFull, StoreFailed."""
        self._proof = None
        self._proving.clear()
        self._head = replace(self._head, parts_sum=sum_of(b""))
        with disk_errors("writing an arrival"):
            for piece in range(self.pieces.count):
                write_entry(self._state, piece, self.pieces.proven(piece) - self.pieces.start(piece))
            self._write_head()

    def check(self, upto: int) -> int:
        """Hashes on, up to there at most; says how far. Raises StoreFailed."""
        with disk_errors("reading an arrival"):
            for part in self._read(self._hashed, upto):
                self._hash.update(part)
                self._hashed += len(part)
        return self._hashed

    def commit(self, digest: Digest) -> int:
        """See Arrival."""
        size_bytes = self.check(self.pieces.size_bytes)
        actual = Digest(digest.algorithm, self._hash.hexdigest())
        if actual != digest:
            raise DigestMismatch(digest, actual)
        if not self._store.confirm(digest, size_bytes):
            with disk_errors("syncing an arrival"):
                sync_file(self._data)
            self._store.adopt(self.folder / "data", digest, size_bytes)
        return size_bytes

    def release(self) -> None:
        """Lets go of it."""
        for descriptor in (self._data, self._state, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._state = self._lock = -1

    def remove(self) -> None:
        """Lets go of it and removes it. Raises StoreFailed."""
        try:
            with disk_errors("removing an arrival"), suppress(FileNotFoundError):
                shutil.rmtree(self.folder)
        finally:
            self.release()

    def _create(self) -> None:
        head = self._head
        with disk_errors("beginning an arrival"):
            self._data = os.open(self.folder / "data", _OPEN_DATA | os.O_CREAT | os.O_EXCL, 0o640)
            os.ftruncate(self._data, head.size_bytes)
            self._state = os.open(self.folder / "state", _OPEN_DATA | os.O_CREAT | os.O_EXCL, 0o640)
            self._write_head()
        self.pieces = Pieces(head.size_bytes, head.piece_bytes, provable=self._proof is not None)

    def _take_up(self) -> None:
        head = self._head
        self._data = os.open(self.folder / "data", _OPEN_DATA)
        self._state = os.open(self.folder / "state", _OPEN_DATA)
        found = LedgerHead.decode(os.pread(self._state, HEAD_BYTES, 0))
        if found is None or os.fstat(self._data).st_size != head.size_bytes:
            raise StoreFailed("the ledger of an arrival changed while it was opened")
        pieces = Pieces(head.size_bytes, head.piece_bytes)
        room = [pieces.stop(piece) - pieces.start(piece) for piece in range(pieces.count)]
        received = [min(entry, most) for entry, most in zip(read_entries(self._state, pieces.count), room, strict=True)]
        if found.incarnation != head.incarnation or (self._proof and found.parts_sum != head.parts_sum):
            # After a power loss a file may have its length and not its bytes.
            received = [self._right_bytes(pieces.start(piece), count) for piece, count in enumerate(received)]
            for piece, count in enumerate(received):
                write_entry(self._state, piece, count)
        if found != head:  # also where nothing is proven any more: what comes now must not count as proven later
            self._write_head()
        proven = [self._proven_bytes(pieces.start(piece), count) for piece, count in enumerate(received)]
        self.pieces = Pieces(head.size_bytes, head.piece_bytes, received, proven, provable=self._proof is not None)

    def _right_bytes(self, start: int, count: int) -> int:
        """How many of so many bytes of a piece are proven by reading them."""
        if self._proof is None:
            return 0
        proving = Proving(self._proof, start)
        all(proving.add(part) for part in self._read(start, start + count))
        return proving.proven - start

    def _proven_bytes(self, start: int, count: int) -> int:
        """How many of so many bytes of a piece are, if the ledger can be believed."""
        return self._proof.start(start + count) - start if self._proof else 0

    def _proving_at(self, piece: int, reached: int) -> Proving | None:
        """That of a piece that has come so far; what is not proven is read again if something has been dropped, or the
        arrival has been taken up."""
        proving = self._proving.get(piece)
        if self._proof and (proving is None or proving.position != reached):
            proving = self._proving[piece] = Proving(self._proof, self._proof.start(reached))
            for part in self._read(proving.position, reached):
                proving.add(part)
        return proving

    def _read(self, position: int, stop: int) -> Iterator[bytes]:
        while position < stop:
            part = os.pread(self._data, min(_READ_BYTES, stop - position), position)
            if not part:
                raise StoreFailed("an arrival's file became shorter while it was read")
            yield part
            position += len(part)

    def _write_head(self) -> None:
        if os.pwrite(self._state, self._head.encode(), 0) != HEAD_BYTES:
            raise StoreFailed("writing the ledger of an arrival")


def _is_of(state: Path, head: LedgerHead) -> bool:
    """Whether a ledger is one of the same blob, in the same pieces."""
    try:
        with state.open("rb") as file:
            found = LedgerHead.decode(file.read(HEAD_BYTES))
    except OSError:
        return False
    wanted = (head.digest, head.size_bytes, head.piece_bytes)
    return found is not None and (found.digest, found.size_bytes, found.piece_bytes) == wanted


class FilesystemArrival:
    """An Arrival."""

    def __init__(self, store: FilesystemStore, held: HeldArrival) -> None:
        self.pieces = held.pieces
        self._store = store
        self._held = held
        self._jobs: set[Future[Any]] = set()

    @property
    def arrival_id(self) -> str:
        """See Arrival."""
        return self._held.folder.name

    async def write(self, piece: int, chunk: bytes) -> bool:
        """See Arrival."""
        reached, proven, right = await self._run(partial(self._held.append, piece, self.pieces.reached(piece), chunk))
        self.pieces.move(piece, reached, proven)
        return bool(right)

    async def disbelieve(self) -> None:
        """See Arrival."""
        for piece in self.pieces.unproven():
            self.pieces.drop(piece)
        self.pieces.provable = False
        await self._run(self._held.disbelieve)

    async def check(self, upto: int) -> int:
        """See Arrival."""
        checked: int = await self._run(partial(self._held.check, upto))
        return checked

    async def commit(self, digest: Digest) -> int:
        """See Arrival."""
        size_bytes: int = await self._run(partial(self._held.commit, digest))
        return size_bytes

    async def suspend(self) -> None:
        """See Arrival."""
        await self._run(self._after_all(self._held.release))

    async def discard(self) -> None:
        """See Arrival."""
        await self._run(self._after_all(self._held.remove))

    async def _run(self, job: Any) -> Any:
        future = self._store.writers.submit(job)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return await jobs.finished(future)

    def _after_all(self, job: Any) -> Any:
        """Jobs whose callers were cancelled may still run; they were queued earlier, so they are running already."""
        others = [*self._jobs]

        def run() -> None:
            wait(others)
            job()

        return run


class FilesystemArrivals:
    """An ArrivalStore in one folder, which has to be on the file system of the blobs."""

    def __init__(self, folder: Path, store: FilesystemStore, incarnation: str) -> None:
        self._folder = folder
        self._store = store
        self._incarnation = incarnation
        self._room = threading.Lock()
        self._under_way: list[HeldArrival] = []

    @classmethod
    def open(cls, folder: Path, store: FilesystemStore, *, incarnation: str) -> FilesystemArrivals:
        """The arrivals in `folder`, made if need be; `incarnation` as for uploads. Blocks. Raises StoreRefused,
        StoreFull, StoreFailed."""
        with disk_errors(f"opening the arrivals in {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_dev != store.folder.stat().st_dev:
                raise StoreRefused(f"{folder} has to be on the same file system as {store.folder}")
        return cls(folder, store, incarnation)

    async def take_up(self, digest: Digest, size_bytes: int, parts: bytes = b"") -> FilesystemArrival:
        """See ArrivalStore."""
        head = LedgerHead(digest, size_bytes, piece_bytes_of(size_bytes), self._incarnation, sum_of(parts))
        job = partial(self._take_up, head, Proof.of(digest, size_bytes, parts))
        held = await jobs.obtain(self._store.writers, job, HeldArrival.release)
        return FilesystemArrival(self._store, held)

    async def reader(self, arrival_id: str, size_bytes: int) -> FileReader:
        """What has come of an arrival that any process of this node holds, or held a moment ago; it stays readable
        whatever becomes of it. Raises BlobNotFound if it is not there any more, StoreFailed."""
        if not _NAME.fullmatch(arrival_id):
            raise BlobNotFound(arrival_id[:64])
        job = partial(self._open, self._folder / arrival_id / "data", size_bytes)
        return await jobs.obtain(self._store.readers, job, FileReader.close)

    async def reap(self, idle_seconds: float) -> int:
        """See ArrivalStore."""
        return await jobs.run(self._store.writers, partial(self._reap, clock.wall_ms() / 1000 - idle_seconds))

    def _take_up(self, head: LedgerHead, proof: Proof | None) -> HeldArrival:
        left = (HeldArrival.resume(self._store, self._folder / name, head, proof) for name in self._names())
        found = next(filter(None, left), None)
        with self._room:
            try:
                self._require_room(found.missing_bytes if found else head.size_bytes)
                found = found or HeldArrival.begin(self._store, self._folder / entropy.new_uuid(), head, proof)
            except BaseException:
                if found:
                    found.release()
                raise
            self._under_way.append(found)
        return found

    def _require_room(self, size_bytes: int) -> None:
        """What the arrivals under way still lack counts as taken: nothing else keeps it for them, as a hole in a file
        takes no room before it is written to. Raises StoreFull."""
        self._under_way = [arrival for arrival in self._under_way if arrival.held]
        self._store.require_room(size_bytes + sum(arrival.missing_bytes for arrival in self._under_way))

    def _open(self, path: Path, size_bytes: int) -> FileReader:
        with disk_errors("opening an arrival"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise BlobNotFound(path.parent.name) from None
        return FileReader(self._store, descriptor, size_bytes)

    def _names(self) -> list[str]:
        with disk_errors("listing arrivals"):
            return [name for name in os.listdir(self._folder) if _NAME.fullmatch(name)]

    def _reap(self, before: float) -> int:
        reaped = 0
        for name in self._names():
            with suppress(StoreError):  # held, gone, or not to be removed now
                reaped += discard(self._folder / name, touched_before=before)
        return reaped
