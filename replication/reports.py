"""What a replicator says of its work: shapes that are the same between processes, between members and for people.

All of them are bounded: transfers by the fetcher, the others here. Times are seconds, or milliseconds of the wall clock
(`_ms`); a rate is of the last RATE_SECONDS.
"""

from __future__ import annotations

import msgspec

MAX_FAILURES = 50
MAX_LAGS = 1000
MAX_REASON_CHARACTERS = 300
RATE_SECONDS = 5.0


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """A store that a blob comes from; `member` is "" while nobody is known to have it."""

    store: str
    member: str
    flows: int


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """A blob on its way here. `received_bytes` are there, `verified_bytes` of them are hashed; `followers` wait for
    them. `troubles` are requests for parts that failed, by cause."""

    digest: str
    size_bytes: int
    received_bytes: int
    verified_bytes: int
    bytes_per_second: float
    seconds: float
    followers: int
    flows: int
    sources: tuple[SourceReport, ...]
    troubles: dict[str, int]


class FailureReport(msgspec.Struct, frozen=True, kw_only=True):
    """A blob that could not be brought, `times` times so far, the last time at `at_ms`."""

    digest: str
    cause: str
    reason: str
    times: int
    at_ms: int


class TotalsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Since the replicator's start. `misses` are blobs that were asked for and were not here, `failed` those that did
    not come, by cause."""

    misses: int
    kept: int
    failed: dict[str, int]
    received_bytes: int


class LagReport(msgspec.Struct, frozen=True, kw_only=True):
    """From acknowledged push to held here, of the last MAX_LAGS blobs that were brought."""

    count: int
    p50_seconds: float | None
    p99_seconds: float | None


class MemberReport(msgspec.Struct, frozen=True, kw_only=True):
    """Another member, as it has last said of itself; it may be gone since."""

    member: str
    region: str
    store: str


class ReplicatorReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that a replicator says. `waiting` are the digests of blobs that will be brought when their turn comes."""

    pid: int
    since_ms: int
    waiting: tuple[str, ...]
    transfers: tuple[TransferReport, ...]
    totals: TotalsReport
    failures: tuple[FailureReport, ...]
    lag: LagReport
    members: tuple[MemberReport, ...]
