"""Calls between a node's gateways and its replicator: gRPC on a Unix socket, msgpack bodies, as in `node.rpc`.

`Follow` is answered by a stream of small tuples; a blob's bytes never cross it, gateways read them from the file that
grows. Its messages, of which the first comes at once and others at least every few seconds:

    ("wait",)               the request has been taken
    ("arrival", id, n)      what comes is in this arrival; the bytes asked for can be read up to n
    ("limit", n)            they can be read up to n, as before or further
    ("whole", id)           all that was asked for is right; "": the blob was here already
    ("failed", kind, text)  the class of a TransferError or StoreError, and what it says
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from consensus.errors import UNDECODABLE, InvalidCommand, InvalidName
from consensus.names import Digest, StoreId
from consensus.parts import are_parts_of
from node.rpc import BOUNDS, RECONNECT, STATUS_SECONDS, pack, serving, unpack, uri_of
from replication import sources, stores
from replication.directory import Directory
from replication.fetcher import Fetcher, FetcherStatus
from replication.reports import MemberReport, ReplicatorReport
from replication.sources import TransferError, TransfersSilent, Wanted
from replication.stores import StoreError
from replication.transfer import HEARTBEAT_SECONDS

SERVICE = "meridian.Replicator"
BEGIN_SECONDS = 6.0  # in which a replicator that has died is there again
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
MAX_AHEAD_BLOBS = 256  # in one call
MAX_AHEAD_PARTS = 256 * 1024  # bytes of their digests in one message

_KINDS: dict[str, type[TransferError | StoreError]] = {
    kind.__name__: kind
    for module, root in ((sources, TransferError), (stores, StoreError))
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, root) and kind is not stores.DigestMismatch
}


@dataclass(frozen=True, slots=True)
class ReplicatorStatus:
    """Its process, and what FetcherStatus says."""

    pid: int
    transfers: int
    followings: int
    flows: int
    waiting: int


class _Service:
    def __init__(self, fetcher: Fetcher, directory: Directory | None) -> None:
        self._fetcher = fetcher
        self._directory = directory

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        methods: dict[str, Any] = {
            "Follow": grpc.unary_stream_rpc_method_handler(self._follow),
            "Ahead": grpc.unary_unary_rpc_method_handler(self._ahead),
            "Report": grpc.unary_unary_rpc_method_handler(self._report),
            "Status": grpc.unary_unary_rpc_method_handler(self._status),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _follow(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        blob, start, stop = unpack(request)
        wanted = _decode(blob)
        yield pack(("wait",))
        try:
            async with aclosing(self._messages(wanted, start, stop)) as messages:
                async for message in messages:
                    yield pack(message)
        except (TransferError, StoreError) as error:
            kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS)
            yield pack(("failed", kind, str(error)))

    async def _messages(self, wanted: Wanted, start: int, stop: int) -> AsyncGenerator[tuple[object, ...], None]:
        following = self._fetcher.follow(wanted, start, stop)
        transfer, introduced = following.transfer, False
        try:
            async for limit in following.updates():
                if introduced or transfer.arrival is None:
                    yield ("limit", limit)
                else:
                    introduced = True
                    yield ("arrival", transfer.arrival.arrival_id, limit)
            yield ("whole", transfer.arrival.arrival_id if transfer.arrival else "")
        finally:
            following.leave()

    async def _ahead(self, request: bytes, _: Any) -> bytes:
        self._fetcher.ahead([_decode(blob) for blob in unpack(request)[:MAX_AHEAD_BLOBS]])
        return pack(())

    async def _status(self, request: bytes, _: Any) -> bytes:
        status: FetcherStatus = self._fetcher.status
        return pack((os.getpid(), *astuple(status)))

    async def _report(self, request: bytes, _: Any) -> bytes:
        met = self._directory.met.values() if self._directory else ()
        members = [MemberReport(member=each.member, region=each.region, store=each.store_id) for each in met]
        return msgspec.msgpack.encode(self._fetcher.report(os.getpid(), members))


@asynccontextmanager
async def serve_replicator(
    fetcher: Fetcher, socket: Path, *, directory: Directory | None = None
) -> AsyncIterator[None]:
    """Answers gateways while the block runs. The socket's path must be free. `directory` is of the other
    members. Raises OSError."""
    async with serving(_Service(fetcher, directory).handler(), socket):
        yield


class ReplicatorClient:
    """A gateway's way to the replicator; reconnects by itself."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(uri_of(socket), options=[*BOUNDS, *RECONNECT])
        self._follow = self._channel.unary_stream(f"/{SERVICE}/Follow", None, None)
        self._ahead = self._channel.unary_unary(f"/{SERVICE}/Ahead", None, None)
        self._status = self._channel.unary_unary(f"/{SERVICE}/Status", None, None)
        self._report = self._channel.unary_unary(f"/{SERVICE}/Report", None, None)

    async def follow(self, wanted: Wanted, start: int, stop: int) -> AsyncGenerator[tuple[Any, ...], None]:
        """The messages but for "wait" and "failed", which is raised: TransferError, StoreError. Raises TransfersSilent
        if the replicator is not there in BEGIN_SECONDS, goes away, or says nothing for SILENCE_SECONDS."""
        call = self._follow(pack((_encode(wanted), start, stop)), wait_for_ready=True)
        seconds = BEGIN_SECONDS
        try:
            while True:
                async with asyncio.timeout(seconds):
                    found = await call.read()
                if not isinstance(found, bytes):  # the end of the stream
                    raise TransfersSilent("the process that brings blobs here has gone away", wanted.digest)
                seconds = SILENCE_SECONDS
                match message := unpack(found):
                    case ("failed", kind, text):
                        raise _error(kind, text, wanted.digest)
                    case ("wait",):
                        pass
                    case _:
                        yield message
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, TimeoutError, InvalidCommand) as error:
            raise TransfersSilent("the process that brings blobs here does not answer", wanted.digest) from error
        finally:
            call.cancel()

    async def ahead(self, wanted: Sequence[Wanted]) -> bool:
        """These are likely to be asked for soon. False if that could not be told; nothing is raised."""
        try:
            for some in _messages_of(wanted[:MAX_AHEAD_BLOBS]):
                await self._ahead(pack([_encode(each) for each in some]), timeout=STATUS_SECONDS)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError):
            return False
        return True

    async def status(self) -> ReplicatorStatus | None:
        """None if there is no answer within STATUS_SECONDS."""
        try:
            return ReplicatorStatus(*unpack(await self._status(pack(()), timeout=STATUS_SECONDS, wait_for_ready=True)))
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, InvalidCommand, TypeError):
            return None

    async def report(self) -> ReplicatorReport | None:
        """All that it says of its work; None if there is no answer within STATUS_SECONDS."""
        try:
            answer = await self._report(pack(()), timeout=STATUS_SECONDS, wait_for_ready=True)
            return msgspec.msgpack.decode(answer, type=ReplicatorReport)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, *UNDECODABLE):
            return None

    async def close(self) -> None:
        """Calls under way end."""
        await self._channel.close(None)


def _messages_of(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """In messages that are not too large: each has at most twice MAX_AHEAD_PARTS."""
    some: list[Wanted] = []
    for each in wanted:
        some.append(each)
        if sum(len(one.parts) for one in some) >= MAX_AHEAD_PARTS:
            yield some
            some = []
    if some:
        yield some


def _encode(wanted: Wanted) -> tuple[object, ...]:
    return str(wanted.digest), wanted.size_bytes, wanted.holders, wanted.parts, wanted.pushed_ms


def _decode(blob: Any) -> Wanted:
    """Raises InvalidCommand."""
    try:
        name, size_bytes, holders, parts, pushed_ms = blob
        holders = tuple(StoreId(holder) for holder in holders)
        wanted = Wanted(Digest.parse(name), int(size_bytes), holders, bytes(parts), int(pushed_ms))
        if not are_parts_of(wanted.parts, wanted.size_bytes):
            raise InvalidCommand("the parts are not those of such a blob")
    except (InvalidName, TypeError, ValueError) as error:
        raise InvalidCommand(f"not a blob: {error}") from error
    return wanted


def _error(kind: str, text: str, digest: Digest) -> TransferError | StoreError:
    found = _KINDS.get(kind, TransferError)
    return found(text, digest) if issubclass(found, TransferError) else found(text)
