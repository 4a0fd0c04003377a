"""The log that a node's configuration asks for: alone the write-ahead log, in a cluster a member's part of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consensus import clock, generation, smallfile
from consensus.solo import SoloLog
from node.config import Config
from node.identity import Identity

if TYPE_CHECKING:
    from consensus.bridge import Bridge
    from consensus.raft.engine import RaftLog
    from consensus.raft.relayed import RelayedHandlers
    from consensus.raft.transport import GrpcTransport

RESIGN_SECONDS = 1.5  # of what a keeper has for its end

_LOOK_SECONDS = 0.02

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """A log, and where it is a member's what bridges entries that no log keeps any more."""

    log: SoloLog | RaftLog
    bridge: Bridge | None = None


@asynccontextmanager
async def opened(config: Config, identity: Identity) -> AsyncIterator[Engine]:
    """The engine on the node's data folder; closed behind the block. Raises ConsensusError, OSError."""
    engine = _open_member(config, identity) if identity.member else _open_solo(config)
    try:
        yield engine
    finally:
        await engine.log.close()
        if engine.bridge:
            engine.bridge.close()


async def resign(raft: SoloLog | RaftLog) -> None:
    """Before a planned stop: lets another member lead, so that nobody has to wait for an election. Takes at most
    RESIGN_SECONDS; where it does not succeed the others elect."""
    if isinstance(raft, SoloLog) or not raft.status.is_steward:
        return
    resigned = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RESIGN_SECONDS):
            resigned = await raft.transfer() and await _follows(raft)
    log.info("keeper_resigned", extra={"handed_over": resigned})


async def _follows(raft: RaftLog) -> bool:
    """Once it does: what is on its way to the next steward has arrived then."""
    while raft.status.is_steward:  # noqa: ASYNC110  at a planned stop only, and bounded
        await asyncio.sleep(_LOOK_SECONDS)
    return True


def _open_solo(config: Config) -> Engine:
    wal = config.data / "wal"
    return Engine(SoloLog.open(wal, segment_bytes=config.log.segment_bytes, node_id=config.node.name))


def _open_member(config: Config, identity: Identity) -> Engine:
    from consensus.bridge import Bridge  # only a member pays for these
    from consensus.raft.engine import RaftLog
    from consensus.raft.relayed import RelayedHandlers

    handlers = RelayedHandlers()
    transport = _transport(config, identity, handlers)
    try:
        raft = RaftLog.open(
            config.data / "wal",
            me=identity.member,
            peers=tuple(_others(config)),
            transport=transport,
            applied=_applied(config.data / "state"),
            segment_bytes=config.log.segment_bytes,
        )
    except BaseException:
        transport.close()
        raise
    snapshots, free_bytes = config.data / "snapshots", config.limits.free_bytes
    bridge = Bridge.open(raft, snapshots, identity.cluster_id, transport.channel, free_bytes=free_bytes)
    handlers.add(bridge.service().handler())
    return Engine(raft, bridge)


def _transport(config: Config, identity: Identity, handlers: RelayedHandlers) -> GrpcTransport:
    from consensus.raft.transport import Credentials, GrpcTransport

    cluster = config.cluster
    return GrpcTransport(
        identity.member,
        config.listen.peers,
        _others(config),
        identity.cluster_id,
        Credentials(*(Path(file).read_bytes() for file in (cluster.ca, cluster.certificate, cluster.key))),
        incarnation=next_incarnation(config.data / "incarnation"),
        handlers=(handlers,),
    )


def _others(config: Config) -> dict[str, str]:
    return {name: address for name, address in config.cluster.addresses.items() if name != config.node.name}


def _applied(folder: Path) -> int:
    """Read before the log is opened, which shows that no predecessor applies any more: should one have, the replica
    finds log and state not to fit, and the next start does better."""
    path = generation.current(folder)
    if path is None:
        return 0
    connection = generation.open_reader(path)
    try:
        return generation.read_meta(connection).applied
    finally:
        connection.close()


def next_incarnation(path: Path) -> int:
    """Above that of every process before, also when the clock was set back; durable when this returns. A file that
    cannot be read is begun anew: the time is above what was drawn before, unless the clock was set back too."""
    try:
        last = int(path.read_text("ascii"))
    except (FileNotFoundError, ValueError):
        last = 0
    incarnation = max(last + 1, clock.wall_ms())
    smallfile.put(path, f"{incarnation}\n".encode("ascii"))
    return incarnation
