"""Health over gRPC: readiness under "" and each service's name, liveness apart.

Liveness is the name `liveness`: an answer at all means that the event loop turns. Readiness
is asked of the services, and ends when the process is told to stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from services.runtime.settings import Ready

LIVENESS = "liveness"
POLL_SECONDS = 0.2
_STALLED_SECONDS = 10.0
_MOST_WATCHERS = 1_000
_LONGEST_NAME = 256
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """services: full name -> whether it can answer. `refresh` asks them; nothing else does."""

    def __init__(self, services: Mapping[str, Ready]) -> None:
        self._services = dict(services)
        self._answers: dict[str, int] = {LIVENESS: _SERVING}
        self._changed = asyncio.Event()
        self._draining = self._closed = False
        self._watchers = 0
        self._beat = time.monotonic()
        self.refresh()

    @property
    def ready(self) -> bool:
        """Whether new requests should come here. Any thread may ask."""
        return bool(self._answers[""] == _SERVING)

    @property
    def alive(self) -> bool:
        """Whether the event loop turned within the last seconds. Any thread may ask."""
        return time.monotonic() - self._beat < _STALLED_SECONDS

    def refresh(self) -> None:
        """Asks every service; wakes watchers if an answer is another one than before."""
        self._beat = time.monotonic()
        ready = {name: not self._draining and ask() for name, ask in self._services.items()}
        ready[""] = all(ready.values()) and not self._draining
        answers = {name: _SERVING if yes else _NOT_SERVING for name, yes in ready.items()}
        answers[LIVENESS] = _SERVING
        if answers != self._answers:
            self._answers = answers
            self._wake()

    def drain(self) -> None:
        """NOT_SERVING from now on, but alive."""
        self._draining = True
        self.refresh()

    def close(self) -> None:
        """Ends all watches: a server that waits for its calls to end would wait for them."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: _Context) -> Any:
        status = self._answers.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service of that name")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: _Context) -> AsyncGenerator[Any, None]:
        if self._watchers >= _MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch already")
        service = request.service[:_LONGEST_NAME]
        # Watchers stay: what they sent does not.
        del request
        self._watchers += 1
        try:
            told = None
            while not self._closed:
                changed = self._changed
                status = self._answers.get(service, _UNKNOWN)
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status)
                    continue
                await changed.wait()
        finally:
            self._watchers -= 1
