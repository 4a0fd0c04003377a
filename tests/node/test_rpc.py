import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgpack
import pytest
import uvloop

from consensus.codec import encode_command
from consensus.commands import Command, DeleteBlob, EnrolProposer, Outcome, Reason, RecordBlobs, Status
from consensus.errors import InvalidCommand, LogFull, LogUnavailable
from consensus.log import LogStatus
from consensus.names import Digest, RepositoryName, StoreId
from consensus.proposer import Proposer
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from node import rpc
from node.counter import Counter
from node.rpc import KeeperClient, KeeperStatus, serve_keeper

NAME = RepositoryName("team/app")
DIGEST = Digest("sha256", "a" * 64)
COMMAND = DeleteBlob(NAME, DIGEST)
RECORD = RecordBlobs(NAME, StoreId("0" * 32), ())
OUTCOME = Outcome(Status.REFUSED, 7, 5, Reason.BLOB_IN_USE, (DIGEST,), created=True)


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


@dataclass
class Scripted:
    """A keeper whose answers the test chooses."""

    answer: Callable[[], Awaitable[Outcome]]
    calls: list[tuple[int, int, int, Command]] = field(default_factory=list)
    applied: int = 41
    current: bool = True
    status: LogStatus = field(default_factory=lambda: LogStatus(1, "solo", True, 3, 42))

    async def enrol(self, name: str) -> int:
        return len(name)

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        self.calls.append((proposer, sequence, acknowledged, command))
        return await self.answer()

    async def sync(self) -> int:
        return 42


def channel_to(socket: Path) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"unix:{socket}")


async def done() -> Outcome:
    return OUTCOME


@asynccontextmanager
async def client_of(socket: Path) -> AsyncIterator[KeeperClient]:
    # A busy machine takes seconds to send a thousand calls; none of them may reach its deadline meanwhile.
    client = KeeperClient(socket, call_seconds=60)
    try:
        async with asyncio.timeout(60):
            yield client
    finally:
        await client.close()


@on_uvloop
async def test_calls_and_answers(tmp_path: Path) -> None:
    keeper = Scripted(done)
    async with serve_keeper(keeper, tmp_path / "s"), client_of(tmp_path / "s") as client:
        assert await client.enrol("abc") == 3
        assert await client.propose(1, 2, 1, COMMAND) == OUTCOME
        assert keeper.calls == [(1, 2, 1, COMMAND)]
        assert await client.sync() == 42
        status = await client.status()
        assert status == KeeperStatus(status.pid, applied=41, commit=42, first=3, term=1, steward="solo", current=True)


@pytest.mark.parametrize("name", ["a%20b", "a?b#c", "a:b;c", "a b&c=d", "ä\udcff", "a\\b"])
@on_uvloop
async def test_a_socket_may_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    socket = tmp_path / name / "s"
    async with serve_keeper(Scripted(done), socket), client_of(socket) as client:
        assert await client.enrol("abc") == 3
        assert socket.is_socket()


@pytest.mark.parametrize("error", [LogFull("full"), LogUnavailable("away"), InvalidCommand("bad")])
@on_uvloop
async def test_failures_arrive_as_what_they_were(tmp_path: Path, error: Exception) -> None:
    async def fail() -> Outcome:
        raise error

    async with serve_keeper(Scripted(fail), tmp_path / "s"), client_of(tmp_path / "s") as client:
        with pytest.raises(type(error), match=str(error)):
            await client.propose(1, 2, 1, COMMAND)


@on_uvloop
async def test_calls_wait_for_a_keeper_that_is_about_to_come(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s") as client:
        call = asyncio.create_task(client.sync())
        await asyncio.sleep(0.2)
        assert not call.done()
        async with serve_keeper(Scripted(done), tmp_path / "s"):
            assert await call == 42


@on_uvloop
async def test_no_keeper_is_unavailable_within_the_deadline(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s") as client:
        began = asyncio.get_running_loop().time()
        with pytest.raises(LogUnavailable):
            await client.status()
        assert asyncio.get_running_loop().time() - began < 3 * rpc.STATUS_SECONDS


@on_uvloop
async def test_a_keeper_that_returns_is_found_again(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s") as client:
        for _ in range(3):
            async with serve_keeper(Scripted(done), tmp_path / "s"):
                assert await client.sync() == 42


@on_uvloop
async def test_calls_under_way_are_unavailable_when_the_keeper_is_not_answering(tmp_path: Path) -> None:
    stuck = asyncio.Event()

    async def never() -> Outcome:
        await stuck.wait()
        return OUTCOME

    async with serve_keeper(Scripted(never), tmp_path / "s"):
        client = KeeperClient(tmp_path / "s")
        call = asyncio.create_task(client.propose(1, 2, 1, COMMAND))
        await client.sync()
        await client.close()
        with pytest.raises((LogUnavailable, asyncio.CancelledError)):
            await call
        with pytest.raises(LogUnavailable):
            await client.sync()
        stuck.set()


@on_uvloop
async def test_calls_under_way_are_bounded(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def wait() -> Outcome:
        await go_on.wait()
        return OUTCOME

    keeper = Scripted(wait)
    async with serve_keeper(keeper, tmp_path / "s"), client_of(tmp_path / "s") as client:
        # Far more than gRPC would let wait before it began to drop some by chance.
        too_many = 2 * rpc.MAX_IN_FLIGHT
        calls = [asyncio.create_task(client.propose(1, n, 0, COMMAND)) for n in range(rpc.MAX_IN_FLIGHT + too_many)]
        for refused in islice(asyncio.as_completed(calls), too_many):
            with pytest.raises(LogUnavailable, match="under way"):
                await refused
        go_on.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes.count(OUTCOME) == rpc.MAX_IN_FLIGHT


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"\xc1", msgpack.packb(7), msgpack.packb([]), msgpack.packb([1, 2, 3, b"x"]), msgpack.packb([1, 2, 3, 4])],
)
@on_uvloop
async def test_requests_that_do_not_parse_are_invalid(tmp_path: Path, request_bytes: bytes) -> None:
    async with serve_keeper(Scripted(done), tmp_path / "s"), channel_to(tmp_path / "s") as channel:
        answer = await channel.unary_unary(f"/{rpc.SERVICE}/Propose", None, None)(request_bytes, timeout=5)
        assert msgpack.unpackb(answer)[0] == "invalid"


@on_uvloop
async def test_messages_are_bounded(tmp_path: Path) -> None:
    async with serve_keeper(Scripted(done), tmp_path / "s"), channel_to(tmp_path / "s") as channel:
        call = channel.unary_unary(f"/{rpc.SERVICE}/Enrol", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"a" * (rpc.MAX_MESSAGE_BYTES + 1), timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@on_uvloop
async def test_a_proposer_changes_a_real_replica_through_it(tmp_path: Path) -> None:
    log = await asyncio.to_thread(SoloLog.open, tmp_path / "wal")
    state = State.open(tmp_path / "state", "c" * 32)
    try:
        async with (
            Replica.open(log, state) as replica,
            serve_keeper(Counter(replica), tmp_path / "s"),
            client_of(tmp_path / "s") as client,
        ):
            proposer = Proposer(client, "gateway-0")
            outcomes = await asyncio.gather(*(proposer.propose(COMMAND) for _ in range(50)))
            assert {outcome.status for outcome in outcomes} == {Status.NOT_FOUND}
            assert (await client.status()).applied == await client.sync() == 51
    finally:
        await log.close()
        state.close()


def test_commands_fit_into_messages() -> None:
    assert len(encode_command(EnrolProposer("a" * 255))) < rpc.MAX_MESSAGE_BYTES
    assert len(encode_command(RECORD)) < rpc.MAX_MESSAGE_BYTES
