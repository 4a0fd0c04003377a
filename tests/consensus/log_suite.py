"""What every log engine has to pass: subclass `LogSuite` in a test module and give it the fixture `open_log`.

Nothing here relies on dense indexes, on a term or on who the steward is.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from consensus.errors import InvalidCommand, LogTrimmed, LogUnavailable
from consensus.log import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, Entry, Log

# Opens the same log whenever it is called, once the one it gave before is closed. Trimming must work in units of
# 64 KiB at most, so that the suite can see it happen.
OpenLog = Callable[[], Awaitable[Log]]

DEADLINE_SECONDS = 30.0
MIB = 1024 * 1024


async def read(log: Log, after: int, count: int) -> list[Entry]:
    """The first `count` entries behind `after` that are not blank, waiting for them; checks what the port says of
    batches."""
    found: list[Entry] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for batch in log.entries(after):
            assert batch
            assert len(batch) <= MAX_BATCH_ENTRIES
            assert sum(len(entry.payload) for entry in batch[:-1]) < MAX_BATCH_BYTES
            found += [entry for entry in batch if not entry.blank]
            if len(found) >= count:
                break
    indexes = [after] + [entry.index for entry in found]
    assert all(low < high for low, high in itertools.pairwise(indexes))
    return found[:count]


async def fill(log: Log, count: int, size: int) -> list[int]:
    """Appends one after the other, so that an engine cannot put them all in one unit of trimming."""
    return [await log.append(number.to_bytes(4, "big") * (size // 4)) for number in range(count)]


class LogSuite:
    """The promises of `consensus.log.Log`."""

    @pytest.fixture
    def open_log(self) -> OpenLog:
        raise NotImplementedError

    async def test_an_empty_log_keeps_nothing(self, open_log: OpenLog) -> None:
        log = await open_log()
        assert log.status.first <= log.status.commit + 1
        assert await log.barrier() == log.status.commit
        waiting = asyncio.create_task(read(log, 0, 1))
        index = await log.append(b"first")
        assert await waiting == [Entry(index, b"first")]
        await log.close()

    async def test_indexes_rise_in_the_order_of_appends(self, open_log: OpenLog) -> None:
        log = await open_log()
        indexes = await fill(log, 20, 16)
        assert indexes == sorted(set(indexes))
        assert log.status.commit >= indexes[-1]
        await log.close()

    async def test_entries_come_back_in_order_with_the_index_their_append_returned(self, open_log: OpenLog) -> None:
        log = await open_log()
        payloads = [b"entry %d" % number for number in range(300)]
        async with asyncio.timeout(DEADLINE_SECONDS):
            indexes = await asyncio.gather(*(log.append(payload) for payload in payloads))
        found = await read(log, 0, len(payloads))
        assert {entry.index: entry.payload for entry in found} == dict(zip(indexes, payloads, strict=True))
        await log.close()

    async def test_reading_starts_behind_any_entry(self, open_log: OpenLog) -> None:
        log = await open_log()
        indexes = await fill(log, 50, 16)
        for position in (0, 1, 25, 48):
            found = await read(log, indexes[position], 49 - position)
            assert [entry.index for entry in found] == indexes[position + 1 :]
        await log.close()

    async def test_acknowledged_entries_outlive_the_engine(self, open_log: OpenLog) -> None:
        log = await open_log()
        written = {await log.append(b"before %d" % number): b"before %d" % number for number in range(30)}
        await log.close()
        for generation in range(3):
            log = await open_log()
            assert log.status.commit >= max(written)
            written[await log.append(b"generation %d" % generation)] = b"generation %d" % generation
            await log.close()
        log = await open_log()
        found = await read(log, 0, len(written))
        assert {entry.index: entry.payload for entry in found} == written
        await log.close()

    @pytest.mark.parametrize("payload", [b"", b"\x00" * 5000, b"x" * 128 * 1024, b"y" * 4 * MIB])
    async def test_any_bytes_up_to_4_mib_pass(self, open_log: OpenLog, payload: bytes) -> None:
        log = await open_log()
        index = await log.append(payload)
        assert await read(log, index - 1, 1) == [Entry(index, payload)]
        await log.close()
        log = await open_log()
        assert await read(log, index - 1, 1) == [Entry(index, payload)]
        await log.close()

    async def test_a_larger_entry_is_refused(self, open_log: OpenLog) -> None:
        log = await open_log()
        with pytest.raises(InvalidCommand, match="4194304"):
            await log.append(bytes(4 * MIB + 1))
        index = await log.append(b"next")
        assert await read(log, 0, 1) == [Entry(index, b"next")]
        await log.close()

    async def test_batches_are_bounded_in_entries_and_bytes(self, open_log: OpenLog) -> None:
        log = await open_log()
        await asyncio.gather(*(log.append(b"small") for _ in range(2 * MAX_BATCH_ENTRIES + 1)))
        await asyncio.gather(*(log.append(bytes(MIB)) for _ in range(6)))
        await read(log, 0, 2 * MAX_BATCH_ENTRIES + 7)
        await log.close()
        log = await open_log()
        await read(log, 0, 2 * MAX_BATCH_ENTRIES + 7)
        await log.close()

    async def test_a_reader_waits_for_what_comes(self, open_log: OpenLog) -> None:
        log = await open_log()
        reading = asyncio.create_task(read(log, 0, 3))
        for number in range(3):
            await asyncio.sleep(0)
            await log.append(b"%d" % number)
        assert [entry.payload for entry in await reading] == [b"0", b"1", b"2"]
        await log.close()

    async def test_readers_catch_up_while_others_append(self, open_log: OpenLog) -> None:
        log = await open_log()
        payloads = [number.to_bytes(4, "big") * 64 for number in range(3000)]
        await asyncio.gather(*(log.append(payload) for payload in payloads[:1000]))
        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read(log, 0, len(payloads))) for _ in range(3)]
            for start in range(1000, len(payloads), 100):
                await asyncio.gather(*(log.append(payload) for payload in payloads[start : start + 100]))
        expected = sorted(payloads)
        assert [sorted(entry.payload for entry in reader.result()) == expected for reader in readers] == [True] * 3
        assert readers[0].result() == readers[1].result() == readers[2].result()
        await log.close()

    async def test_a_barrier_covers_what_was_acknowledged(self, open_log: OpenLog) -> None:
        log = await open_log()
        for number in range(5):
            index = await log.append(b"%d" % number)
            assert await log.barrier() >= index
        await log.close()

    async def test_trimming_forgets_old_entries_only(self, open_log: OpenLog) -> None:
        log = await open_log()
        indexes = await fill(log, 300, 1024)
        await log.trim(indexes[249])
        first = log.status.first
        assert indexes[0] < first <= indexes[249] + 1
        with pytest.raises(LogTrimmed):
            await read(log, 0, 1)
        with pytest.raises(LogTrimmed):
            await read(log, first - 2, 1)
        kept = [index for index in indexes if index >= first]
        assert [entry.index for entry in await read(log, first - 1, len(kept))] == kept
        await log.close()
        log = await open_log()
        assert log.status.first == first
        assert await log.append(b"next") > indexes[-1]
        with pytest.raises(LogTrimmed):
            await read(log, 0, 1)
        assert [entry.index for entry in await read(log, first - 1, len(kept))] == kept
        await log.close()

    async def test_trimming_everything_never_gives_an_index_twice(self, open_log: OpenLog) -> None:
        log = await open_log()
        last = (await fill(log, 200, 1024))[-1]
        await log.trim(last + 1000)
        assert log.status.first <= last + 1
        await log.close()
        log = await open_log()
        assert log.status.commit >= last
        index = await log.append(b"next")
        assert index > last
        assert await read(log, last, 1) == [Entry(index, b"next")]
        await log.close()

    async def test_trimming_keeps_the_newest_bytes(self, open_log: OpenLog) -> None:
        log = await open_log()
        indexes = await fill(log, 300, 1024)
        await log.trim(indexes[-1], keep_bytes=MIB)
        assert log.status.first <= indexes[0]
        assert (await read(log, 0, 1))[0].index == indexes[0]
        await log.trim(indexes[-1], keep_bytes=100 * 1024)
        assert indexes[0] < log.status.first <= indexes[200]
        await log.close()

    async def test_trimming_goes_on_beside_appends_and_readers(self, open_log: OpenLog) -> None:
        log = await open_log()
        seen: list[Entry] = []

        async def follow() -> None:
            async for batch in log.entries(0):
                seen.extend(entry for entry in batch if not entry.blank)
                if len(seen) == 400:
                    return

        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            for number in range(400):
                await log.append(number.to_bytes(4, "big") * 256)
                if number % 50 == 49 and seen:
                    await log.trim(seen[-1].index)
        assert [entry.payload[:4] for entry in seen] == [number.to_bytes(4, "big") for number in range(400)]
        assert log.status.first > seen[0].index
        await log.close()

    async def test_a_cancelled_append_holds_nothing_up(self, open_log: OpenLog) -> None:
        log = await open_log()
        tasks = [asyncio.create_task(log.append(b"%d" % number)) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        answered = {result: b"%d" % number for number, result in enumerate(results) if isinstance(result, int)}
        assert len(answered) >= 10
        index = await log.append(b"after")
        found = {entry.index: entry.payload for entry in await read(log, 0, len(answered)) if entry.index in answered}
        found |= {entry.index: entry.payload for entry in await read(log, max(answered) - 1, 1)}
        assert found.items() <= answered.items()
        assert index > max(answered)
        await log.close()

    async def test_closing_ends_appends_and_readers(self, open_log: OpenLog) -> None:
        log = await open_log()
        await log.append(b"first")
        waiting = asyncio.create_task(_read_to_the_end(log))
        appends = [asyncio.create_task(log.append(b"%d" % number)) for number in range(100)]
        await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await log.close()
            results = await asyncio.gather(*appends, return_exceptions=True)
            await waiting
        assert all(isinstance(result, int | LogUnavailable) for result in results)
        acknowledged = [result for result in results if isinstance(result, int)]
        log = await open_log()
        found = await read(log, 0, 1 + len(acknowledged))
        assert {entry.index for entry in found} >= set(acknowledged)
        await log.close()

    async def test_a_closed_log_refuses_everything(self, open_log: OpenLog) -> None:
        log = await open_log()
        await log.append(b"first")
        await log.close()
        await log.close()
        with pytest.raises(LogUnavailable):
            await log.append(b"second")
        with pytest.raises(LogUnavailable):
            await log.barrier()
        with pytest.raises(LogUnavailable):
            await log.trim(1)
        assert [batch async for batch in log.entries(0)] == []
        assert log.status.commit >= 1


async def _read_to_the_end(log: Log) -> int:
    return sum([len(batch) async for batch in log.entries(0)])
