"""Snapshots between replicas: one is taken when a node asks for what no log keeps any more, and one is fetched when
this node is the one that asks. Neither holds up the entries that are being applied for longer than a step of the copy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Self, TypeVar, cast

import grpc

from consensus.archive import Archive, Taking
from consensus.errors import SnapshotError, SnapshotUnavailable
from consensus.log import Bridged
from consensus.partial import Partial
from consensus.raft.snapshots import Fetching, SnapshotService
from consensus.snapshot import VerifiedSnapshot
from consensus.state import State

FETCH_SECONDS = 3600.0

_PAUSE_SECONDS = 1.0

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

InThread = Callable[[Callable[[], _T]], Awaitable[_T]]


class Bridge:
    """One node's snapshots. `connect` gives a channel to a node by its name, which the caller of it closes.

    Blocking work runs in threads; what touches the state runs where the caller's `in_thread` says.
    """

    def __init__(
        self, log: Bridged, archive: Archive, incoming: Partial, cluster_id: str, connect: Callable[[str], grpc.Channel]
    ) -> None:
        self._log = log
        self._archive = archive
        self._incoming = incoming
        self._cluster_id = cluster_id
        self._connect = connect
        self._wanted = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @classmethod
    def open(
        cls, log: Bridged, folder: Path, cluster_id: str, connect: Callable[[str], grpc.Channel], *, free_bytes: int = 0
    ) -> Self:
        """On the snapshots in `folder`, which lies on the file system of the state. Blocks. Raises OSError."""
        archive = Archive.open(folder / "taken", free_bytes=free_bytes)
        incoming = Partial.open(folder / "incoming", free_bytes=free_bytes)
        return cls(log, archive, incoming, cluster_id, connect)

    def service(self) -> SnapshotService:
        """What other nodes ask for snapshots."""
        return SnapshotService(self._archive, self._cluster_id, self._want)

    async def take_when_wanted(self, state: State, in_thread: InThread[object]) -> None:
        """Takes a snapshot whenever another node needs one, for ever. Failures are logged, and the node asks again."""
        while True:
            await self._wanted.wait()
            try:
                await self._take(state, in_thread)
            except (SnapshotError, OSError) as error:
                _logger.warning("snapshot_not_taken", extra={"reason": str(error)})
                await asyncio.sleep(_PAUSE_SECONDS)
            # Who has asked meanwhile finds this one, or asks again.
            self._wanted.clear()

    async def fetched(self, after: Callable[[], int]) -> VerifiedSnapshot:
        """Returns once this node needed a snapshot and has it; `after` says at which entry its state is."""
        while True:
            sender = await self._log.behind()
            try:
                return await self._fetch(sender, after())
            except (SnapshotError, OSError) as error:
                _logger.warning("snapshot_not_fetched", extra={"peer": sender, "reason": str(error)})
                await asyncio.sleep(_PAUSE_SECONDS)

    async def install(
        self, snapshot: VerifiedSnapshot, put_in_force: Callable[[VerifiedSnapshot], Awaitable[None]]
    ) -> None:
        """In this order, so that a crash leaves a log and a state that fit: the log expects it, the state becomes it,
        the log goes on behind it."""
        base = (snapshot.manifest.applied, snapshot.manifest.term)
        await self._log.expect(base)
        await put_in_force(snapshot)
        await self._log.restart(base)
        await asyncio.to_thread(self._incoming.discard)
        _logger.info("snapshot_installed", extra={"applied": base[0]})

    def close(self) -> None:
        """What has come of a snapshot stays for later. Idempotent."""
        self._incoming.close()

    def _want(self, _: int) -> None:
        self._loop.call_soon_threadsafe(self._wanted.set)

    async def _take(self, state: State, in_thread: InThread[object]) -> None:
        taking = cast(Taking, await in_thread(partial(self._archive.begin, state)))
        try:
            while await in_thread(taking.step):
                pass
            term = await self._log.term_at(taking.applied)
            if term is None:
                raise SnapshotUnavailable(f"entry {taking.applied} has been trimmed meanwhile")  # noqa: TRY301
            manifest = await asyncio.to_thread(taking.finish, term)
        except BaseException:
            await in_thread(taking.abandon)
            raise
        _logger.info("snapshot_taken", extra={"applied": manifest.applied, "bytes": manifest.size_bytes})

    async def _fetch(self, sender: str, after: int) -> VerifiedSnapshot:
        fetching = Fetching(self._incoming, self._cluster_id, after=after)
        channel = self._connect(sender)
        try:
            await asyncio.to_thread(partial(fetching.fetch, [channel], seconds=FETCH_SECONDS))
            return await asyncio.to_thread(self._incoming.verify, self._cluster_id)
        finally:
            fetching.cancel()
            channel.close()
