"""Traces by OpenTelemetry: one span for each sampled request, sent by OTLP over HTTP. Imported only where configured.

A request that came with a `traceparent` (W3C Trace Context) keeps its caller's decision; of the others a share is
sampled. A span is made when its request is over, so that nothing is spent on those that are not sampled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from consensus import clock

if TYPE_CHECKING:
    from node.telemetry import RequestRecord

EXPORT_SECONDS = 5.0
QUEUE_SPANS = 2048


class Tracing:
    """Exports in a thread of its own through a bounded queue; spans beyond it are dropped."""

    def __init__(self, process: str, endpoint: str, ratio: float) -> None:
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=EXPORT_SECONDS)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "meridian", "service.instance.id": process}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS))
        self._tracer = self._provider.get_tracer("meridian")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, request: RequestRecord) -> str:
        """The trace id (hexadecimal) of a request that has just ended, or "" if it is not sampled."""
        parent = self._propagator.extract({"traceparent": request.traceparent})
        ended = clock.wall_ms() * 1_000_000
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=ended - int(request.seconds * 1_000_000_000),
        )
        if not span.is_recording():
            return ""
        span.set_attributes(
            {
                "http.request.method": request.method,
                "http.route": request.route,
                "http.response.status_code": request.status,
                "meridian.request_id": request.request_id,
                "meridian.repository": request.repository,
            }
        )
        span.end(ended)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Sends what is queued, for at most a few seconds."""
        self._provider.force_flush(int(EXPORT_SECONDS * 1000))
        self._provider.shutdown()
