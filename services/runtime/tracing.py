"""OpenTelemetry spans: an optional extra, loaded only when an endpoint is given.

A request's span begins in the guard, `stage` makes one within it, the trace context
travels as W3C `traceparent`. Spans carry versions, numbers and reasons; nothing personal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from services.errors import Fault
from services.ports import (
    AssembledNetwork,
    Assembler,
    Buffer,
    GeneratedBlocks,
    GenerationRequest,
    Mapper,
)
from services.runtime.checks import SettingsError
from services.runtime.context import exemplar, traceparent

_ACTIVE: ContextVar[Span | None] = ContextVar("span", default=None)
_INSTALL = "install the pinned packages of requirements/tracing.txt"


@dataclass(frozen=True)
class TracingSettings:
    """endpoint: URL of an OTLP collector over gRPC, for example http://127.0.0.1:4317; http is
        plain text, https is TLS. None: no tracing.
    ratio: the part of requests that is recorded, 0 to 1, unless the caller's traceparent
        decided already.
    """

    endpoint: str | None = None
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise SettingsError("the OTLP endpoint is a URL, for example http://127.0.0.1:4317")
        if not (math.isfinite(self.ratio) and 0 <= self.ratio <= 1):
            raise SettingsError("the trace ratio is a number from 0 to 1")


class Tracing:
    """Makes spans and sends them in the background. service: the name in the traces.

    exporter: where spans go instead of the endpoint. Raises SettingsError if the packages
    are not installed.
    """

    def __init__(self, settings: TracingSettings, service: str, exporter: Any = None) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter(endpoint=settings.endpoint)
        except ImportError as error:
            raise SettingsError(f"tracing needs OpenTelemetry: {_INSTALL} ({error})") from error
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.ratio)),
            resource=Resource.create({"service.name": service}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("forward-ofa")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, parent: str) -> Span:
        """The span of a request that arrived. parent: its traceparent, "" if it has none."""
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract({"traceparent": parent} if parent else {})
        return Span(self, self._tracer.start_span(name, context, SpanKind.SERVER))

    def child(self, name: str, parent: Span) -> Span:
        """A span within another one."""
        from opentelemetry.trace import set_span_in_context

        return Span(self, self._tracer.start_span(name, set_span_in_context(parent.otel)))

    def stop(self) -> None:
        """Sends what is left; a collector that is away costs some seconds at most."""
        self._provider.shutdown()


class Span:
    """Current from its making to `end`, for the task that made it and those it starts."""

    def __init__(self, tracing: Tracing, otel: Any) -> None:
        self.tracing, self.otel = tracing, otel
        ids = otel.get_span_context()
        trace = f"{ids.trace_id:032x}"
        sampled = bool(ids.trace_flags & 1)
        self._active = _ACTIVE.set(self)
        self._parent = traceparent.set(f"00-{trace}-{ids.span_id:016x}-{int(sampled):02x}")
        self._exemplar = exemplar.set({"trace_id": trace} if sampled else None)

    def note(self, **attributes: str | int) -> None:
        """Named `forward_ofa.*` in the trace."""
        for name, value in attributes.items():
            self.otel.set_attribute(f"forward_ofa.{name}", value)

    def end(self, status: str = "OK", reason: str = "") -> None:
        """status: of gRPC; anything but OK marks the span as failed."""
        from opentelemetry.trace import StatusCode

        if status != "OK":
            self.otel.set_status(StatusCode.ERROR, reason or status)
        if reason:
            self.note(reason=reason)
        self.otel.end()

    def leave(self) -> None:
        """What was current before is current again."""
        exemplar.reset(self._exemplar)
        traceparent.reset(self._parent)
        _ACTIVE.reset(self._active)


@contextmanager
def stage(name: str) -> Iterator[Span | None]:
    """A span within the current request's; None, and next to free, if that has none."""
    parent = _ACTIVE.get()
    if parent is None:
        yield None
        return
    span = parent.tracing.child(name, parent)
    try:
        yield span
    except Fault as fault:
        span.end(fault.status, fault.reason)
        raise
    except BaseException as error:
        span.end("FAILED", type(error).__name__)
        raise
    else:
        span.end()
    finally:
        span.leave()


class TracedMapper:
    """A Mapper whose calls are spans `map`."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    async def generate(self, request: GenerationRequest) -> GeneratedBlocks:
        with stage("map") as span:
            generated = await self._mapper.generate(request)
            if span is not None:
                _note_request(span, request)
                span.note(
                    bytes=_size(generated.payload),
                    queue_us=generated.queue_us,
                    map_us=generated.map_us,
                )
            return generated


class TracedAssembler:
    """An Assembler whose calls are spans `assemble`."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler

    async def assemble(self, request: GenerationRequest) -> AssembledNetwork:
        with stage("assemble") as span:
            network = await self._assembler.assemble(request)
            if span is not None:
                _note_request(span, request)
                span.note(bytes=network.cost.artefact_bytes)
            return network


def _size(pieces: Sequence[Buffer]) -> int:
    return sum(memoryview(piece).nbytes for piece in pieces)


def _note_request(span: Span, request: GenerationRequest) -> None:
    kept = sum(byte.bit_count() for byte in request.path)
    span.note(version=request.version, kept_blocks=kept, encoding=request.encoding)
