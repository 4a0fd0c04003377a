"""What a node keeps on disk, part by part, as small programs that can be cut off at any change of the disk.

Each says `promise(...)` when its caller would be told that something is done, and checks the promises afterwards.
`chaos.powercuts` cuts them. They use the product's modules, or those of a copy with an fsync removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from chaos.durable_raft import BasePart, CutPart, VotePart
from chaos.durable_snapshots import ArchivePart, InstallPart, SwapPart
from chaos.part import Part, Promise, Tell
from chaos.volume import SECTOR_BYTES
from consensus import disk, generation, segments
from consensus.codec import encode
from consensus.commands import EnrolProposer, Envelope
from consensus.errors import LogFull
from consensus.log import Entry
from consensus.names import Digest, StoreId
from consensus.parts import PartsHash
from consensus.state import State
from consensus.wal import Wal
from node.authority import AuthorityError, publish
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from node.identity import Identity
from node.premises import make_folder
from replication.stores import BlobNotFound, StoreRefused


class LogPart:
    """The write-ahead log, in segments so small that each change of the disk comes up often."""

    name: ClassVar[str] = "log"
    covers: ClassVar[tuple[str, ...]] = ("consensus/wal.py",)
    dense: ClassVar[int] = 999
    repeats: ClassVar[int] = 1
    _SEGMENT_BYTES = 2500

    def prepare(self, folder: Path) -> None:
        """Nothing: a first start."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Batches and a trim."""
        with closing(Wal.open(folder / "wal", segment_bytes=self._SEGMENT_BYTES)) as wal:
            for number in range(6):
                self._append(wal, f"act {number}", promise)
            wal.trim(wal.commit - 4)

    def go_on(self, folder: Path, promise: Tell) -> None:
        """What is read at the start is applied and answered for, and nothing else is ever there."""
        with closing(Wal.open(folder / "wal", segment_bytes=self._SEGMENT_BYTES)) as wal:
            promise(("commit", wal.commit))
            for entry in _entries(wal):
                promise(("entry", entry.index, entry.payload.hex()))
            self._append(wal, "again", promise)

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """Promised entries are there, and those that could not be written stay away."""
        with closing(Wal.open(folder / "wal", segment_bytes=self._SEGMENT_BYTES)) as wal:
            held = {entry.index: entry.payload.hex() for entry in _entries(wal)}
            commit = wal.commit
            first = wal.first
        promised = {promise[1]: promise[2] for promise in promises if promise[0] == "entry"}
        highest = max(promised, default=0)
        assert commit >= highest, f"entry {highest} is lost: the log ends at {commit}"
        assert first <= max(1, highest - 3), f"entries up to {first - 1} are gone, of {highest}"
        wrong = [index for index, payload in promised.items() if index >= first and held.get(index) != payload]
        assert not wrong, f"entries {wrong} are not what was acknowledged"
        refused = {promise[1] for promise in promises if promise[0] == "refused"} & set(held.values())
        assert not refused, f"{len(refused)} entries are there that the log had refused"
        commits = [promise[1] for promise in promises if promise[0] == "commit"]
        later = [bytes.fromhex(payload) for index, payload in held.items() if commits and index > commits[-1]]
        assert not any(payload.startswith(b"act") for payload in later), "entries rose that a restart had not found"

    def _append(self, wal: Wal, text: str, promise: Tell) -> None:
        # Two entries a call. The second is the larger: a write that ends half-way has the first one whole.
        payloads = [f"{text} {number} ".encode() + bytes(4100 if number else 600) for number in (0, 1)]
        try:
            first = wal.append(payloads)
        except LogFull:
            for payload in payloads:
                promise(("refused", payload.hex()))
            return
        for index, payload in enumerate(payloads, start=first):
            promise(("entry", index, payload.hex()))


def _entries(wal: Wal) -> list[Entry]:
    found: list[Entry] = []
    after = wal.first - 1
    while batch := wal.read(after):
        found += batch
        after = batch[-1].index
    return found


class TornLogPart(LogPart):
    """A log whose last write, of two entries, was torn: the disk lost the first of them and kept the second."""

    name: ClassVar[str] = "torn log"
    repeats: ClassVar[int] = 12

    def prepare(self, folder: Path) -> None:
        """The second entry begins with a sector of its own, as large as a write to the first may be."""
        with closing(Wal.open(folder / "wal")):
            path = next((folder / "wal").glob("*.log"))
        with path.open("r+b") as file:
            salt = segments.read_salt(file, path, 1)
            first, second = self._payload(b"act 0"), b"act 1" * 100
            head = segments.encode_record_head(2, second, durable=segments.HEADER_BYTES, salt=salt)
            file.seek(segments.HEADER_BYTES)
            file.write(bytes(segments.RECORD_BYTES + len(first)) + head + second)
            file.flush()
            disk.sync_data(file.fileno())

    def act(self, folder: Path, promise: Tell) -> None:
        """Cut at the start; then another entry takes the place of the lost one."""
        with closing(Wal.open(folder / "wal")) as wal:
            promise(("commit", wal.commit))
            wal.append([self._payload(b"again")])

    def go_on(self, folder: Path, promise: Tell) -> None:
        """Nothing: what was cut off must not be back at the next start."""

    def _payload(self, text: bytes) -> bytes:
        return text.ljust(SECTOR_BYTES - segments.HEADER_BYTES - segments.RECORD_BYTES, b"\0")


class GenerationPart:
    """The file that names the database in force, before anything else syncs its folder."""

    name: ClassVar[str] = "generation"
    covers: ClassVar[tuple[str, ...]] = ("consensus/generation.py",)
    dense: ClassVar[int] = 20
    repeats: ClassVar[int] = 8

    def prepare(self, folder: Path) -> None:
        """Nothing: a first start."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Made, and put in force."""
        promise((generation.create(folder / "state", "0" * 32).name,))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """Nothing."""

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """It is in force."""
        found = generation.current(folder / "state")
        assert not promises or (found and found.name == promises[0][0]), "the database is no longer in force"


class StatePart:
    """The state database and the file that names it."""

    name: ClassVar[str] = "state"
    covers: ClassVar[tuple[str, ...]] = ("consensus/generation.py", "consensus/state.py", "SQLite")
    dense: ClassVar[int] = 90
    repeats: ClassVar[int] = 1
    _CLUSTER = "0" * 32

    def prepare(self, folder: Path) -> None:
        """Nothing: a first start."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Entries and checkpoints: below a checkpoint the log may be trimmed."""
        with closing(State.open(folder / "state", self._CLUSTER)) as state:
            for _ in range(4):
                after = state.applied
                command = EnrolProposer("chaos")
                payload = encode(Envelope(0, 0, 0, 1_700_000_000_000, command))
                state.apply([Entry(after + step, payload) for step in (1, 2, 3)])
                promise(("durable", state.checkpoint()))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """The same."""
        self.act(folder, promise)

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """The state opens and is not older than its last checkpoint."""
        with closing(State.open(folder / "state", self._CLUSTER)) as state:
            durable = max((promise[1] for promise in promises), default=0)
            assert state.applied >= durable, f"the state is at {state.applied}, {durable} was checkpointed"
            state.hash()


class PremisesPart:
    """The data folder and who the node is."""

    name: ClassVar[str] = "premises"
    covers: ClassVar[tuple[str, ...]] = ("node/premises.py", "node/identity.py", "consensus/smallfile.py")
    dense: ClassVar[int] = 999
    repeats: ClassVar[int] = 1

    def prepare(self, folder: Path) -> None:
        """Nothing: a first start."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Made and drawn, or found and read."""
        make_folder(folder / "node" / "data")
        promise((Identity.load_or_create(folder / "node" / "data").node_id,))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """The same."""
        self.act(folder, promise)

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """It never changes."""
        make_folder(folder / "node" / "data")
        now = Identity.load_or_create(folder / "node" / "data").node_id
        assert all(promise == (now,) for promise in promises), "the node has become another one"


class AuthorityPart:
    """A cluster's keys: they appear whole or not at all, and what is refused as made already stays."""

    name: ClassVar[str] = "authority"
    covers: ClassVar[tuple[str, ...]] = ("node/authority.py",)
    dense: ClassVar[int] = 999
    repeats: ClassVar[int] = 1
    _FILES: ClassVar[dict[str, bytes]] = {"ca.key": b"key" * 500, "nodes/eu-1/node.crt": b"certificate" * 500}

    def prepare(self, folder: Path) -> None:
        """Nothing."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Made, or there."""
        with contextlib.suppress(AuthorityError):
            publish(folder / "cluster" / "made", self._FILES)
        promise(("made",))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """The same."""
        self.act(folder, promise)

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """All of it, or nothing if nothing was promised."""
        made = folder / "cluster" / "made"
        if promises or made.exists():
            for name, content in self._FILES.items():
                assert (made / name).read_bytes() == content, f"{name} is damaged"


class BlobPart:
    """Blobs: pushed, pushed again, deleted."""

    name: ClassVar[str] = "blobs"
    covers: ClassVar[tuple[str, ...]] = ("node/blobs/",)
    dense: ClassVar[int] = 999
    repeats: ClassVar[int] = 1
    _STORE = StoreId("1" * 32)

    def prepare(self, folder: Path) -> None:
        """An empty store."""
        self._store(folder).close()

    def act(self, folder: Path, promise: Tell) -> None:
        """Three pushes, one of them a second time, and a delete."""
        asyncio.run(self._push(folder, ("one", "two", "one", "three"), promise))
        with closing(self._store(folder)) as store:
            promise(("in doubt", "two"))
            asyncio.run(store.delete(_digest("two")))
            promise(("gone", "two"))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """A client repeats its push: what an earlier process left is good enough only if it is durable."""
        asyncio.run(self._push(folder, ("one", "three", "four"), promise))

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """What was pushed is there byte for byte, what was deleted is not."""
        last = {promise[1]: promise[0] for promise in promises}
        with closing(self._store(folder)) as store:
            for text, promised in last.items():
                found = asyncio.run(self._read(store, text))
                if promised == "held":
                    assert found == _content(text), f"blob {text} is {'lost' if found is None else 'damaged'}"
                elif promised == "in doubt":
                    assert found in {None, _content(text)}, f"blob {text} is damaged"
                else:
                    assert found is None, f"blob {text} is back"

    def _store(self, folder: Path) -> FilesystemStore:
        return FilesystemStore.at(folder / "blobs", store_id=self._STORE, free_bytes=0)

    async def _push(self, folder: Path, texts: Sequence[str], promise: Tell) -> None:
        with closing(self._store(folder)) as store:
            uploads = FilesystemUploads.open(folder / "uploads", store, incarnation="chaos")
            for text in texts:
                upload = await uploads.begin()
                await upload.write(_content(text))
                await upload.commit(_digest(text))
                promise(("held", text))

    async def _read(self, store: FilesystemStore, text: str) -> bytes | None:
        try:
            reader = await store.open(_digest(text))
        except BlobNotFound:
            return None
        with closing(reader):
            return await reader.read(0, reader.size_bytes)


class StoreBirthPart(BlobPart):
    """The blob store made by a first start, with its hundreds of folders."""

    name: ClassVar[str] = "store birth"
    dense: ClassVar[int] = 10
    repeats: ClassVar[int] = 4

    def prepare(self, folder: Path) -> None:
        """Nothing."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Made."""
        self._store(folder).close()
        promise(("made", ""))

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """It is this store and takes blobs; none but itself may have it."""
        if ("made", "") in promises:
            assert _refuses_another(folder / "blobs"), "another store may have its folder"
        super().check(folder, [promise for promise in promises if promise[0] != "made"])
        asyncio.run(self._push(folder, [f"after {number}" for number in range(3)], lambda _: None))


class ArrivalPart(BlobPart):
    """Blobs that come from other nodes: broken off, gone on with and committed."""

    name: ClassVar[str] = "arrivals"
    _TEXT = "one " * 75  # long enough to have parts
    _KEPT = 700_000  # bytes that are there when it is broken off, up to the middle of a part

    def act(self, folder: Path, promise: Tell) -> None:
        """One that comes whole."""
        asyncio.run(self._fetch(folder, self._TEXT, "before", promise))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """What was left counts only if it is what it should be."""
        asyncio.run(self._fetch(folder, self._TEXT, "after", promise))

    async def _fetch(self, folder: Path, text: str, incarnation: str, promise: Tell) -> None:
        content, digest, parts = _content(text), _digest(text), PartsHash()
        parts.update(content)
        with closing(self._store(folder)) as store:
            arrivals = FilesystemArrivals.open(folder / "arrivals", store, incarnation=incarnation)
            for stop in (self._KEPT, len(content)):
                arrival = await arrivals.take_up(digest, len(content), parts.digests(len(content)))
                assert await arrival.write(0, content[arrival.pieces.reached(0) : stop])
                if stop < len(content):
                    await arrival.suspend()
            await arrival.commit(digest)
            promise(("held", text))
            await arrival.discard()


PARTS: tuple[Part, ...] = (
    LogPart(),
    TornLogPart(),
    CutPart(),
    VotePart(),
    BasePart(),
    GenerationPart(),
    StatePart(),
    SwapPart(),
    InstallPart(),
    ArchivePart(),
    PremisesPart(),
    AuthorityPart(),
    BlobPart(),
    StoreBirthPart(),
    ArrivalPart(),
)


def _refuses_another(folder: Path) -> bool:
    try:
        FilesystemStore.at(folder, store_id=StoreId("2" * 32), free_bytes=0).close()
    except StoreRefused:
        return True
    return False


def _content(text: str) -> bytes:
    return text.encode() * 5000


def _digest(text: str) -> Digest:
    return Digest("sha256", hashlib.sha256(_content(text)).hexdigest())
