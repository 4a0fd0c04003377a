"""The copies of a cluster, as this node's replicator knows them: what it tells of its own, and hears from the others.

Whatever goes wrong here costs knowledge of copies, never a transfer: it is logged, and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from consensus import clock, generation
from consensus.errors import StateRefused
from consensus.names import Digest, StoreId
from consensus.views import Views
from node import telemetry
from node.blobs import jobs
from node.blobs.filesystem import FilesystemStore
from node.inventory import Inventory, InventoryReader, inventory_file
from node.launch import Launch
from replication.directory import Directory, PeerError, PeerUnreachable, PeerWrong
from replication.inventory import INVENTORY_PATH, Copies, NoCopies, Page
from replication.requests import PeerAnswer, PeerRequest
from replication.stores import BlobNotFound, StoreError

POLL_SECONDS = 1.0
MORE_SECONDS = 0.02  # between two pages of which the first was not the last
MOST_PAUSE_SECONDS = 8.0  # where a member does not answer, or not with an inventory
ANSWER_SECONDS = 10.0

WALK_SECONDS = 30.0  # between two walks through the store, and WALK_REST times as long as one takes
WALK_REST = 5.0
WALK_BLOBS = 256  # at a time
WALK_SHARE = 4.0  # it rests so many times as long as it works

T = TypeVar("T")
log = logging.getLogger(__name__)


class Members(Protocol):
    """The way to the other members."""

    @property
    def directory(self) -> Directory:
        """Which of them is which store."""

    async def request(self, member: str, request: PeerRequest) -> PeerAnswer:
        """Raises PeerError."""


@asynccontextmanager
async def exchanging(launch: Launch, blobs: FilesystemStore, members: Members) -> AsyncIterator[Copies]:
    """Tells the others of copies here, and hears of theirs, while the block runs."""
    exchange = Exchange(launch, blobs, members)
    running = asyncio.create_task(exchange.run())
    running.add_done_callback(_report)
    try:
        yield exchange
    finally:
        running.cancel()
        await asyncio.wait([running])


class Exchange:
    """See replication.inventory.Copies: none, until the inventory has been opened."""

    def __init__(self, launch: Launch, blobs: FilesystemStore, members: Members) -> None:
        self._launch = launch
        self._blobs = blobs
        self._members = members
        self._copies: Copies = NoCopies()

    def holders(self, digest: Digest) -> Sequence[StoreId]:
        """See Copies."""
        return self._copies.holders(digest)

    def kept(self, digest: Digest) -> None:
        """See Copies. What is not told for want of an inventory is found in the store later."""
        self._copies.kept(digest)

    def untrue(self, store: StoreId, digest: Digest) -> None:
        """See Copies."""
        self._copies.untrue(store, digest)

    async def run(self) -> None:
        """Until cancelled."""
        config = self._launch.config
        others = [name for name in config.cluster.transfer_addresses if name != config.node.name]
        with ThreadPoolExecutor(1, thread_name_prefix="inventory") as worker:
            inventories = await self._opened(inventory_file(config, self._launch.incarnation), worker)
            self._copies = inventories
            with closing(inventories):
                async with asyncio.TaskGroup() as group:
                    group.create_task(inventories.walk(config.data / "state"))
                    for name in others:
                        group.create_task(inventories.follow(name, self._members))

    async def _opened(self, file: Path, worker: ThreadPoolExecutor) -> Inventories:
        """Tries again and again; why it has to is logged once."""
        pause = POLL_SECONDS
        while True:
            try:
                job = partial(Inventories.open, file, self._blobs, worker)
                return await jobs.obtain(self._blobs.writers, job, Inventories.close)
            except (sqlite3.Error, OSError) as error:
                if pause == POLL_SECONDS:
                    log.warning("inventory_failed", extra={"reason": str(error)})
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE_SECONDS)


class Inventories:
    """See replication.inventory.Copies. All writing is done by one thread, in the order in which it was asked for."""

    def __init__(
        self, inventory: Inventory, reader: InventoryReader, blobs: FilesystemStore, worker: ThreadPoolExecutor
    ) -> None:
        self._inventory = inventory
        self._reader = reader
        self._blobs = blobs
        self._worker = worker

    @classmethod
    def open(cls, file: Path, blobs: FilesystemStore, worker: ThreadPoolExecutor) -> Inventories:
        """On the inventory in `file`. `worker` has one thread. Blocks. Raises sqlite3.Error, OSError."""
        inventory = Inventory.open(file, blobs.store_id)
        try:
            return cls(inventory, InventoryReader(file), blobs, worker)
        except BaseException:
            inventory.close()
            raise

    def close(self) -> None:
        """Once what was asked for is written."""
        self._worker.shutdown()
        self._reader.close()
        self._inventory.close()

    def holders(self, digest: Digest) -> tuple[StoreId, ...]:
        """See Copies. Takes some microseconds."""
        try:
            return self._reader.holders(digest)
        except sqlite3.Error as error:
            log.warning("inventory_failed", extra={"reason": str(error)})
            return ()

    def kept(self, digest: Digest) -> None:
        """See Copies."""
        self._write(partial(self._inventory.kept, digest.packed))

    def untrue(self, store: StoreId, digest: Digest) -> None:
        """See Copies."""
        self._write(partial(self._inventory.untrue, store, digest))

    async def follow(self, member: str, members: Members) -> None:
        """Hears of the member's copies. Until cancelled."""
        pause, known, said = POLL_SECONDS, telemetry.metrics().copies.labels(member), ""
        count = partial(self._inventory.count, member)
        with suppress(sqlite3.Error):  # of what was heard before this process began
            known.set(await self._run(count))
        while True:
            try:
                more = await self._hear(member, members)
                known.set(await self._run(count))
                pause, said = MORE_SECONDS if more else POLL_SECONDS, ""
            except (PeerError, sqlite3.Error) as error:
                pause = min(2 * max(pause, POLL_SECONDS), MOST_PAUSE_SECONDS)
                if not isinstance(error, PeerUnreachable) and str(error) != said:
                    said = str(error)
                    log.warning("inventory_refused", extra={"member": member, "reason": said[:300]})
            await asyncio.sleep(pause)

    async def walk(self, state: Path) -> None:
        """Looks through the store and the inventory of it, again and again. Until cancelled."""
        while True:
            began = clock.monotonic()
            try:
                while generation.current(state) is None:  # noqa: ASYNC110  the keeper makes it when it first starts
                    await asyncio.sleep(POLL_SECONDS)
                async with self._views(state) as views:
                    await self._walk_store(views)
                    await self._run(self._inventory.walked)
                    await self._walk_inventory(views)
            except (StoreError, StateRefused, sqlite3.Error, OSError) as error:
                log.warning("inventory_not_walked", extra={"reason": str(error)})
                await asyncio.sleep(MOST_PAUSE_SECONDS)
            else:
                await asyncio.sleep(max(WALK_SECONDS, WALK_REST * (clock.monotonic() - began)))

    async def _hear(self, member: str, members: Members) -> bool:
        standing = await self._run(partial(self._inventory.standing, member))
        request = PeerRequest(
            "GET", f"{INVENTORY_PATH}?{standing.query}", (), None, waits=False, answer_seconds=ANSWER_SECONDS
        )
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await members.request(member, request)
        except TimeoutError as error:
            raise PeerUnreachable(f"{member} takes too long for its inventory") from error
        if answer.status != 200:
            raise PeerUnreachable(f"{member} answers with status {answer.status}")
        page = Page.decode(answer.body)
        await self._require_own(member, StoreId(page.store_id), members.directory)
        await self._run(partial(self._inventory.take, member, page))
        return page.more

    async def _require_own(self, member: str, store: StoreId, directory: Directory) -> None:
        """Raises PeerWrong for a member that speaks for another's store, PeerError if it does not say which it has."""
        if store == self._blobs.store_id:
            raise PeerWrong(f"{member} says that it is this node")
        if store != await directory.store_of(member):
            directory.forget(member)  # it may have become another since it was asked
            raise PeerWrong(f"{member} tells of store {store}, which is not its own")

    async def _walk_store(self, views: Views) -> None:
        found: list[Digest] = []
        async for digest in self._blobs.digests():
            found.append(digest)
            if len(found) == WALK_BLOBS:
                await self._paced(partial(self._add, views, found))
                found = []
        await self._run(partial(self._add, views, found))

    async def _walk_inventory(self, views: Views) -> None:
        after: bytes | None = b""
        while after is not None:
            after = await self._paced(partial(self._check, views, after))

    def _add(self, views: Views, digests: list[Digest]) -> None:
        """Of what is in the store: all but what the log says of it."""
        recorded = views.held(self._blobs.store_id, digests)
        self._inventory.change((digest.packed for digest in digests if digest not in recorded), held=True)

    def _check(self, views: Views, after: bytes) -> bytes | None:
        """Of what is told: whether it is still here, and not in the log. Returns where the next begin."""
        own = self._inventory.own(after, WALK_BLOBS)
        digests = [Digest.from_bytes(packed) for packed in own]
        recorded = views.held(self._blobs.store_id, digests)
        gone = [digest.packed for digest in digests if digest in recorded or not self._is_here(digest)]
        self._inventory.change(gone, held=False)
        return own[-1] if len(own) == WALK_BLOBS else None

    def _is_here(self, digest: Digest) -> bool:
        try:
            self._blobs.size_of(digest)
        except BlobNotFound:
            return False
        return True

    @asynccontextmanager
    async def _views(self, state: Path) -> AsyncIterator[Views]:
        views = await jobs.obtain(self._worker, partial(Views, state), Views.close)
        try:
            yield views
        finally:
            self._write(views.close)  # behind what still reads them

    async def _paced(self, job: Callable[[], T]) -> T:
        began = clock.monotonic()
        done = await self._run(job)
        await asyncio.sleep(WALK_SHARE * (clock.monotonic() - began))
        return done

    async def _run(self, job: Callable[[], T]) -> T:
        return await jobs.run(self._worker, job)

    def _write(self, job: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the node ends
            self._worker.submit(job).add_done_callback(_report)


def _report(done: Future[None] | asyncio.Task[None]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.warning("inventory_failed", extra={"reason": str(error)}, exc_info=error)
