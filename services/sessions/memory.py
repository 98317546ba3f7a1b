"""Sessions in the memory of one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics


class MemorySessions:
    """Keeps `ports.SessionStore` for one process: at most `limit` sessions, the least recently
    used go first, and each for `ttl_seconds` after its last use."""

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
        known = self._take(session_id)
        if known is not None:
            self.put(session_id, known)
        return known

    def put(self, session_id: str, candidates: SessionCandidates) -> None:
        self._entries[session_id] = (self._clock() + self._ttl, candidates)
        self._entries.move_to_end(session_id)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    async def swap(
        self, session_id: str, candidates: SessionCandidates
    ) -> SessionCandidates | None:
        known = self._take(session_id)
        self.put(session_id, candidates)
        return known

    async def close(self) -> None:
        self._entries.clear()

    def _take(self, session_id: str) -> SessionCandidates | None:
        expires, candidates = self._entries.pop(session_id, (0.0, None))
        known = candidates if self._clock() < expires else None
        self._metrics.session_cache.labels("miss" if known is None else "hit").inc()
        return known
