"""Sessions in the memory of one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics


class MemorySessions:
    """Keeps `ports.SessionStore` for one process: at most `limit` sessions, the least recently
    used go first, and each for `ttl_seconds` after its last put."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        ttl_seconds: float,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._ttl, self._limit, self._clock = metrics, ttl_seconds, limit, clock
        self._entries: OrderedDict[str, tuple[float, SessionCandidates]] = OrderedDict()

    async def get(self, session_id: str) -> SessionCandidates | None:
        expires, candidates = self._entries.get(session_id, (0.0, None))
        if candidates is None or self._clock() >= expires:
            self._entries.pop(session_id, None)
            self._metrics.session_cache.labels("miss").inc()
            return None
        self._entries.move_to_end(session_id)
        self._metrics.session_cache.labels("hit").inc()
        return candidates

    async def put(self, session_id: str, candidates: SessionCandidates) -> None:
        self._entries[session_id] = (self._clock() + self._ttl, candidates)
        self._entries.move_to_end(session_id)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    async def close(self) -> None:
        self._entries.clear()
