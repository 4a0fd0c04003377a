"""What became of the blobs that were brought, or were not, and how fast those under way come. Does no I/O."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

from consensus import clock
from consensus.names import Digest
from replication.reports import (
    MAX_FAILURES,
    MAX_LAGS,
    MAX_REASON_CHARACTERS,
    RATE_SECONDS,
    FailureReport,
    LagReport,
    MemberReport,
    ReplicatorReport,
    SourceReport,
    TotalsReport,
    TransferReport,
)
from replication.transfer import Transfer

MIN_SAMPLE_SECONDS = 0.25

Members = Sequence[MemberReport]


class Meter:
    """How fast a number rises, over the last RATE_SECONDS."""

    def __init__(self, now: float, total: int = 0) -> None:
        self._samples = deque([(now, total)])

    def look(self, now: float, total: int) -> None:
        """It is `total` now. Looks that follow too soon count as one."""
        samples = self._samples
        if len(samples) > 1 and now - samples[-2][0] < MIN_SAMPLE_SECONDS:
            samples.pop()
        samples.append((now, total))
        while len(samples) > 2 and now - samples[1][0] >= RATE_SECONDS:
            samples.popleft()

    @property
    def rate(self) -> float:
        """A second."""
        (began, before), (now, total) = self._samples[0], self._samples[-1]
        return (total - before) / (now - began) if now > began else 0.0


class Chronicle:
    """Of one fetcher, since its start."""

    def __init__(self) -> None:
        self._since_ms = clock.wall_ms()
        self.misses = 0
        self._kept = 0
        self._received_bytes = 0
        self._failed: Counter[str] = Counter()
        self._failures: dict[Digest, FailureReport] = {}  # the newest last
        self._lags: deque[float] = deque(maxlen=MAX_LAGS)
        self._meters: dict[Digest, Meter] = {}

    def missed(self) -> None:
        """A blob was asked for that is not here."""
        self.misses += 1

    def began(self, digest: Digest) -> None:
        """The blob is on its way."""
        self._meters[digest] = Meter(clock.monotonic())

    def looked(self, transfers: Iterable[Transfer]) -> None:
        """Takes note of how far they are; to be called each second or so."""
        now = clock.monotonic()
        for transfer in transfers:
            self._meters[transfer.wanted.digest].look(now, transfer.received_bytes)

    def ended(self, transfer: Transfer) -> None:
        """The blob is here, or it is not on its way any more."""
        self._meters.pop(transfer.wanted.digest, None)
        self._received_bytes += transfer.received_bytes
        if transfer.failure:
            self.failed(transfer.wanted.digest, transfer.failure)

    def kept(self, digest: Digest, lag_seconds: float | None) -> None:
        """A blob was brought; so long after its push, if that is known."""
        self._kept += 1
        self._failures.pop(digest, None)
        if lag_seconds is not None:
            self._lags.append(lag_seconds)

    def failed(self, digest: Digest, error: Exception) -> None:
        """A blob could not be brought."""
        cause = type(error).__name__
        self._failed[cause] += 1
        before = self._failures.pop(digest, None)
        self._failures[digest] = FailureReport(
            digest=str(digest),
            cause=cause,
            reason=str(error)[:MAX_REASON_CHARACTERS],
            times=before.times + 1 if before else 1,
            at_ms=clock.wall_ms(),
        )
        if len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def report(
        self, transfers: Iterable[Transfer], *, pid: int, waiting: Iterable[Digest], members: Members
    ) -> ReplicatorReport:
        """All of it. `members` are those that have been met, with their stores."""
        names = {each.store: each.member for each in members}
        under_way = tuple(transfers)
        self.looked(under_way)
        totals = TotalsReport(
            misses=self.misses,
            kept=self._kept,
            failed=dict(self._failed),
            received_bytes=self._received_bytes + sum(each.received_bytes for each in under_way),
        )
        return ReplicatorReport(
            pid=pid,
            since_ms=self._since_ms,
            waiting=tuple(map(str, waiting)),
            transfers=tuple(self._describe(transfer, names) for transfer in under_way),
            totals=totals,
            failures=tuple(reversed(self._failures.values())),
            lag=_lag(self._lags),
            members=tuple(members),
        )

    def _describe(self, transfer: Transfer, names: Mapping[str, str]) -> TransferReport:
        flows = transfer.flows_by_store
        return TransferReport(
            digest=str(transfer.wanted.digest),
            size_bytes=transfer.wanted.size_bytes,
            received_bytes=transfer.arrival.pieces.received_bytes if transfer.arrival else 0,
            verified_bytes=transfer.checked_bytes,
            bytes_per_second=round(self._meters[transfer.wanted.digest].rate, 1),
            seconds=round(clock.monotonic() - transfer.began, 3),
            followers=len(transfer.followings),
            flows=transfer.flows,
            sources=tuple(
                SourceReport(store=store, member=names.get(store, ""), flows=flows[store])
                for store in sorted({*flows, *transfer.givers})
            ),
            troubles={str(trouble): count for trouble, count in transfer.troubles.items()},
        )


def _lag(lags: Iterable[float]) -> LagReport:
    ordered = sorted(lags)

    def share(part: float) -> float | None:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3) if ordered else None

    return LagReport(count=len(ordered), p50_seconds=share(0.5), p99_seconds=share(0.99))
