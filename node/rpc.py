"""Calls between a node's gateways and its keeper: gRPC on a Unix socket, msgpack bodies, no generated code.

What a call can come to is in its answer, `[status, value]`; exceptions do not cross the wire. A call that breaks off is
LogUnavailable: it may have happened. Nothing here repeats a call; `consensus.proposer` does, under the same request id.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import grpc
import grpc.aio
import msgpack

from consensus.codec import decode_command, decode_outcome, encode_command, encode_outcome
from consensus.commands import Command, Outcome
from consensus.errors import InvalidCommand, LogFull, LogUnavailable
from consensus.log import LogStatus

SERVICE = "meridian.Keeper"
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_IN_FLIGHT = 1024
CALL_SECONDS = 5.0
STATUS_SECONDS = 1.0
STOP_SECONDS = 3.0

BOUNDS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
# gRPC itself drops calls by chance, as CANCELLED, from 1,000 on that a busy loop has not taken up yet; ours has to be
# the bound that is met first, as its answer says what happened. Above the second number it drops all of them.
_PENDING = [
    ("grpc.server.max_pending_requests", 16 * MAX_IN_FLIGHT),
    ("grpc.server.max_pending_requests_hard_limit", 32 * MAX_IN_FLIGHT),
]
RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


Call = Callable[..., Awaitable[Any]]


class Answer(StrEnum):
    """How a call ended."""

    OK = "ok"
    FULL = "full"
    UNAVAILABLE = "unavailable"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class KeeperStatus:
    """Where the keeper stands: its process, the last entry applied, the last committed and the first kept one; the term
    and who leads in it (None while unknown). `current` says whether it has lately made sure of having applied all that
    was acknowledged anywhere."""

    pid: int
    applied: int
    commit: int
    first: int
    term: int
    steward: str | None
    current: bool


class Keeper(Protocol):
    """What is served: what stands before a replica."""

    @property
    def applied(self) -> int:
        """See Replica."""

    @property
    def status(self) -> LogStatus:
        """See Replica."""

    @property
    def current(self) -> bool:
        """See KeeperStatus."""

    async def enrol(self, name: str) -> int:
        """See Channel."""

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        """See Channel."""

    async def sync(self) -> int:
        """See Replica."""


class _Service:
    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._in_flight = 0

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        calls: dict[str, Call] = {
            "Enrol": self._enrol,
            "Propose": self._propose,
            "Sync": self._sync,
            "Status": self._status,
        }
        methods = {name: grpc.unary_unary_rpc_method_handler(self._answering(call)) for name, call in calls.items()}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _answering(self, call: Call) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(request: bytes, _: Any) -> bytes:
            if self._in_flight >= MAX_IN_FLIGHT:
                return pack((Answer.UNAVAILABLE, f"{MAX_IN_FLIGHT} calls are under way already"))
            self._in_flight += 1
            try:
                return pack((Answer.OK, await call(*unpack(request))))
            except LogFull as error:
                return pack((Answer.FULL, str(error)))
            except LogUnavailable as error:
                return pack((Answer.UNAVAILABLE, str(error)))
            except (InvalidCommand, TypeError) as error:
                return pack((Answer.INVALID, str(error)))
            finally:
                self._in_flight -= 1

        return answer

    async def _enrol(self, name: str) -> int:
        return await self._keeper.enrol(name)

    async def _propose(self, proposer: int, sequence: int, acknowledged: int, command: bytes) -> bytes:
        outcome = await self._keeper.propose(proposer, sequence, acknowledged, decode_command(command))
        return encode_outcome(outcome)

    async def _sync(self) -> int:
        return await self._keeper.sync()

    async def _status(self) -> tuple[object, ...]:
        log = self._keeper.status
        status = KeeperStatus(
            pid=os.getpid(),
            applied=self._keeper.applied,
            commit=log.commit,
            first=log.first,
            term=log.term,
            steward=log.steward,
            current=self._keeper.current,
        )
        return astuple(status)


@asynccontextmanager
async def serve_keeper(keeper: Keeper, socket: Path) -> AsyncIterator[None]:
    """Answers gateways while the block runs; calls under way at its end have STOP_SECONDS. The socket's path must be
    free. Raises OSError."""
    async with serving(_Service(keeper).handler(), socket, options=_PENDING, stop_seconds=STOP_SECONDS):
        yield


class KeeperClient:
    """A gateway's way to the keeper. Implements consensus.proposer.Channel; reconnects by itself."""

    def __init__(self, socket: Path, *, call_seconds: float = CALL_SECONDS) -> None:
        self._call_seconds = call_seconds
        self._channel = grpc.aio.insecure_channel(uri_of(socket), options=[*BOUNDS, *RECONNECT])
        names = ("Enrol", "Propose", "Sync", "Status")
        self._calls = {name: self._channel.unary_unary(f"/{SERVICE}/{name}", None, None) for name in names}

    async def enrol(self, name: str) -> int:
        """See Channel."""
        return int(await self._call("Enrol", name))

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        """See Channel."""
        answer = await self._call("Propose", proposer, sequence, acknowledged, encode_command(command))
        try:
            return decode_outcome(answer)
        except InvalidCommand as error:
            raise LogUnavailable(f"the keeper's answer cannot be read: {error}") from error

    async def sync(self) -> int:
        """See Replica. Raises LogUnavailable."""
        return int(await self._call("Sync"))

    async def status(self) -> KeeperStatus:
        """Raises LogUnavailable when there is no answer within STATUS_SECONDS."""
        return KeeperStatus(*await self._call("Status", seconds=STATUS_SECONDS))

    async def close(self) -> None:
        """Calls under way end with LogUnavailable."""
        await self._channel.close(None)

    async def _call(self, name: str, *arguments: object, seconds: float | None = None) -> Any:
        timeout = seconds or self._call_seconds
        try:
            answer = await self._calls[name](pack(arguments), timeout=timeout, wait_for_ready=True)
            status, value = unpack(answer)
        except grpc.aio.AioRpcError as error:
            raise LogUnavailable(f"no answer from the keeper: {error.details() or error.code().name}") from error
        except (grpc.aio.UsageError, InvalidCommand, ValueError) as error:
            raise LogUnavailable(f"no answer from the keeper: {error}") from error
        match status:
            case Answer.OK:
                return value
            case Answer.FULL:
                raise LogFull(value)
            case Answer.INVALID:
                raise InvalidCommand(value)
            case _:
                raise LogUnavailable(value)


@asynccontextmanager
async def serving(
    handler: grpc.GenericRpcHandler[bytes, bytes],
    socket: Path,
    *,
    options: Sequence[tuple[str, int]] = (),
    stop_seconds: float | None = None,
) -> AsyncIterator[None]:
    """Answers calls while the block runs; those under way at its end have `stop_seconds`. The socket's path must be
    free. Raises OSError."""
    server = grpc.aio.server(options=[*BOUNDS, *options])
    server.add_generic_rpc_handlers((handler,))
    try:
        server.add_insecure_port(uri_of(socket))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {socket}: {error}") from error
    await server.start()
    try:
        yield
    finally:
        await server.stop(stop_seconds)


def uri_of(socket: Path) -> str:
    """Of a Unix socket. gRPC reads an address as a URI: what a path may hold (% ? # , and more) would mean something
    else there."""
    return f"unix:{quote(os.fsencode(socket))}"


def pack(values: object) -> bytes:
    """A message."""
    packed: bytes = msgpack.packb(values, use_bin_type=True)
    return packed


def unpack(message: bytes) -> tuple[Any, ...]:
    """The inverse of `pack` for a tuple. Raises InvalidCommand."""
    try:
        values = msgpack.unpackb(message, use_list=False, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise InvalidCommand(f"not msgpack: {error}") from error
    if not isinstance(values, tuple):
        raise InvalidCommand("not a list of arguments")
    return values
