"""Everything a node tells about itself: metrics, log lines, the access log, and where traces begin.

Metrics are declared in `Metrics` and nowhere else. Each process keeps its values in files of a common folder, so that
any one of them can answer for the whole node. No label is ever a repository, a digest or anything a client chooses.

`RequestObserver` is what a gateway calls for each request; log lines are made in `node.logs`, spans in `node.tracing`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from consensus import clock
from node import config
from node.logs import AccessLog, configure_logging, timestamp

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

    from node.tracing import Tracing

REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
DISK_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
SYNC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# Routes that members ask for again and again: their lines would say nothing.
POLLED = frozenset({"inventory", "replication", "holdings", "demands"})
# A blob may be brought as soon as it is pushed, or when somebody asks for it weeks later.
LAG_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0, 604800.0)
METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"})

__all__ = [
    "Metrics",
    "RequestObserver",
    "RequestRecord",
    "child_ended",
    "configure_logging",
    "metrics",
    "observe_transfer",
    "prepare_metrics",
    "render_metrics",
]

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Values live in memory-mapped files. They get their blocks when made: writing to a hole of a full disk is a SIGBUS.
_FILES = {"counter": 1 << 19, "histogram": 1 << 20, "gauge_livesum": 1 << 16, "gauge_livemostrecent": 1 << 16}
_ENDED = 0  # stands for the processes that are no more


class Metrics:
    """Every metric of a node. Units are in the names; counters end in `_total`."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def gauge(name: str, text: str, *, summed: bool = False) -> Gauge:
            return Gauge(name, text, multiprocess_mode="livesum" if summed else "livemostrecent")

        labels = ["method", "route"]
        self.requests: Counter = Counter("meridian_http_requests_total", "Requests answered", [*labels, "status"])
        self.seconds: Histogram = Histogram(
            "meridian_http_request_seconds", "From a request's head to its last byte", labels, buckets=REQUEST_BUCKETS
        )
        self.bytes_in: Counter = Counter("meridian_http_received_bytes_total", "Bytes of request bodies")
        self.bytes_out: Counter = Counter("meridian_http_sent_bytes_total", "Bytes of response bodies")
        self.in_flight: Gauge = gauge("meridian_http_in_flight", "Requests being served", summed=True)
        self.uploads: Gauge = gauge("meridian_uploads_open", "Uploads begun and not finished", summed=True)
        self.free_bytes: Gauge = gauge("meridian_store_free_bytes", "Free space below the blob store")
        self.commands: Counter = Counter("meridian_commands_total", "Commands applied", ["command", "status"])
        self.append_seconds: Histogram = Histogram(
            "meridian_log_append_seconds", "From a command's arrival at the log to its fsync", buckets=DISK_BUCKETS
        )
        self.applied: Gauge = gauge("meridian_applied_index", "The last log index committed to the state")
        self.commit: Gauge = gauge("meridian_commit_index", "The last log index known to be committed")
        self.term: Gauge = gauge("meridian_log_term", "The term of the log; it rises with each election")
        self.steward: Gauge = gauge("meridian_steward", "1 on the node that leads the log, else 0")
        self.current: Gauge = gauge("meridian_current", "1 if the state lately was the newest for sure, else 0")
        self.sync_seconds: Histogram = Histogram(
            "meridian_sync_seconds", "From asking what is acknowledged to having applied it", buckets=SYNC_BUCKETS
        )
        self.checkpoints: Counter = Counter("meridian_checkpoints_total", "Durable checkpoints of the state")
        self.trims: Counter = Counter("meridian_log_trims_total", "Times the log was trimmed")
        self.fetches: Counter = Counter("meridian_fetches_total", "Blobs fetched from other nodes", ["outcome"])
        self.fetched_bytes: Counter = Counter("meridian_fetched_bytes_total", "Bytes of blobs from other nodes")
        self.fetch_seconds: Histogram = Histogram(
            "meridian_fetch_seconds", "From a blob's first request to its verified end", buckets=REQUEST_BUCKETS
        )
        self.fetching: Gauge = gauge("meridian_fetches_in_progress", "Blobs on their way from other nodes")
        self.fetch_flows: Gauge = gauge("meridian_fetch_flows", "Requests for parts of them that are under way")
        self.fetch_troubles: Counter = Counter(
            "meridian_fetch_troubles_total", "Requests for parts of blobs that did not bring them", ["cause"]
        )
        self.copies: Gauge = Gauge(
            "meridian_copies_known",
            "Blobs that a member is known to hold beyond what the log says",
            ["member"],
            multiprocess_mode="livemostrecent",
        )
        self.misses: Counter = Counter("meridian_replication_misses_total", "Blobs asked for that were not here")
        self.lag_seconds: Histogram = Histogram(
            "meridian_replication_lag_seconds",
            "From a blob's acknowledged push to when it was held here too",
            buckets=LAG_BUCKETS,
        )
        self.restarts: Counter = Counter("meridian_process_restarts_total", "Restarts by the supervisor", ["process"])


@cache
def metrics() -> Metrics:
    """The metrics of this process. Where their files cannot be made they are kept by the process alone; that is decided
    here, so this comes before anything that imports prometheus_client, which looks for the variable at its import."""
    folder = config.environment().get(_FOLDER)
    if folder:
        try:
            _allocate(Path(folder), os.getpid())
        except OSError as error:
            logging.getLogger(__name__).warning("metrics_not_shared", extra={"error": str(error)})
            config.export(_FOLDER, None)
    return Metrics()


def observe_transfer(record: TransferRecord) -> None:
    """A blob has come from another node, or has not."""
    metrics().fetches.labels(record.outcome).inc()
    metrics().fetched_bytes.inc(record.received_bytes)
    metrics().fetch_seconds.observe(record.seconds)
    for cause, count in record.troubles.items():
        metrics().fetch_troubles.labels(cause).inc(count)
    if record.lag_seconds is not None:
        metrics().lag_seconds.observe(record.lag_seconds)


def prepare_metrics(folder: Path) -> dict[str, str]:
    """Makes the folder of the metrics, empty but for the caller's own files: it will count when others die, and that
    may be because the disk is full. The supervisor calls it before anything else of this module and hands the variables
    that it returns to every process it starts. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()
    with contextlib.suppress(OSError):  # then `metrics` finds the same, and says so
        _allocate(folder, os.getpid())
    config.export(_FOLDER, str(folder))
    return {_FOLDER: str(folder)}


def child_ended(pid: int) -> None:
    """Adds the counts of a process that is no more to those of its predecessors and drops its gauges, so that restarts
    cost no space and take nothing back. Called by the supervisor only."""
    metrics()
    folder = config.environment().get(_FOLDER)
    if not folder:
        return
    with contextlib.suppress(OSError, struct.error, RuntimeError), _locked(Path(folder), fcntl.LOCK_EX):
        for prefix in _FILES:
            file = Path(folder, f"{prefix}_{pid}.db")
            if file.exists() and not prefix.startswith("gauge"):
                _bury(file, Path(folder, f"{prefix}_{_ENDED}.db"))
            file.unlink(missing_ok=True)


def render_metrics() -> tuple[bytes, str]:
    """The metrics of the whole node as (body, content type). Blocks for a few milliseconds."""
    metrics()
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    name = config.environment().get(_FOLDER)
    if not name:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    folder = Path(name)

    class Shared:
        def collect(self) -> Any:
            with _locked(folder, fcntl.LOCK_SH):
                files = [str(file) for file in folder.glob("*.db") if _has_values(file)]
                return MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]

    registry = CollectorRegistry()
    registry.register(Shared())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _allocate(folder: Path, pid: int) -> None:
    for prefix, size_bytes in _FILES.items():
        with Path(folder, f"{prefix}_{pid}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)


def _has_values(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) not in {b"", b"\0\0\0\0"}


def _bury(file: Path, grave: Path) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    _allocate(grave.parent, _ENDED)
    total: Any = MmapedDict(str(grave))  # type: ignore[no-untyped-call]
    try:
        for key, value, stamp, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            total.write_value(key, total.read_value(key)[0] + value, stamp)
    finally:
        total.close()


@contextlib.contextmanager
def _locked(folder: Path, mode: int) -> Iterator[None]:
    with Path(folder, "lock").open("ab") as file:
        fcntl.flock(file, mode)
        yield


class TransferRecord(Protocol):
    """What is known of a blob's transfer once it is over."""

    @property
    def outcome(self) -> str:
        """One of few words."""

    @property
    def seconds(self) -> float:
        """From its begin."""

    @property
    def received_bytes(self) -> int:
        """From all of its sources."""

    @property
    def troubles(self) -> Mapping[str, int]:
        """Requests that failed, by their cause, which is one of few words."""

    @property
    def lag_seconds(self) -> float | None:
        """From the blob's acknowledged push to when it was held here; None if it is not, or that is not known."""


class RequestRecord(Protocol):
    """What the gateway knows of a request once it is over."""

    @property
    def request_id(self) -> str:
        """As the client was told."""

    @property
    def method(self) -> str:
        """As the client sent it."""

    @property
    def route(self) -> str:
        """One of the gateway's routes, never a path."""

    @property
    def status(self) -> int:
        """As sent; 499 if the client went away first."""

    @property
    def seconds(self) -> float:
        """From the request's head to the last byte of the answer."""

    @property
    def bytes_in(self) -> int:
        """Of the body received."""

    @property
    def bytes_out(self) -> int:
        """Of the body sent."""

    @property
    def repository(self) -> str:
        """Empty where there is none."""

    @property
    def client(self) -> str:
        """The address that the request came from."""

    @property
    def traceparent(self) -> str:
        """The request's header of that name, or ""."""


class RequestObserver:
    """Counts, logs and traces requests. One for each gateway; called for every request, so it must stay cheap."""

    def __init__(self, process: str, telemetry: config.Telemetry, *, descriptor: int = 2) -> None:
        self._process = process
        self._metrics = metrics()
        self._access = AccessLog(descriptor) if telemetry.access_log else None
        self._tracing = _start_tracing(process, telemetry)
        self._counts: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    def began(self) -> None:
        """A request's head has arrived; the call at its end must follow."""
        self._metrics.in_flight.inc()

    def __call__(self, record: RequestRecord) -> None:
        """A request is over."""
        key = (record.method, record.route, record.status)
        count, observe = self._counts.get(key) or self._children(key)
        self._metrics.in_flight.dec()
        count()
        observe(record.seconds)
        if record.bytes_in:
            self._metrics.bytes_in.inc(record.bytes_in)
        if record.bytes_out:
            self._metrics.bytes_out.inc(record.bytes_out)
        trace = self._tracing.record(record) if self._tracing else ""
        if self._access and (record.route not in POLLED or record.status >= 400):
            self._access.write(self._line(record, trace))

    def close(self) -> None:
        """Writes and sends what is still waiting; blocks for at most some seconds where traces are exported."""
        if self._access:
            self._access.flush()
        if self._tracing:
            self._tracing.close()

    def _children(self, key: tuple[str, str, int]) -> tuple[Callable[[], None], Callable[[float], None]]:
        method = key[0] if key[0] in METHODS else "OTHER"
        children = (
            self._metrics.requests.labels(method, key[1], str(key[2])).inc,
            self._metrics.seconds.labels(method, key[1]).observe,
        )
        if method == key[0]:
            self._counts[key] = children
        return children

    def _line(self, record: RequestRecord, trace: str) -> dict[str, object]:
        line: dict[str, object] = {
            "time": timestamp(clock.wall_ms()),
            "level": "info",
            "process": self._process,
            "event": "request",
            "request_id": record.request_id,
            "client": record.client,
            "method": record.method,
            "route": record.route,
            "repository": record.repository,
            "status": record.status,
            "seconds": round(record.seconds, 6),
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
        }
        if trace:
            line["trace_id"] = trace
        return line


def _start_tracing(process: str, telemetry: config.Telemetry) -> Tracing | None:
    if not telemetry.otlp_endpoint:
        return None
    from node.tracing import Tracing  # OpenTelemetry costs memory and start-up time: only who asks for it pays

    return Tracing(process, telemetry.otlp_endpoint, telemetry.trace_ratio)
