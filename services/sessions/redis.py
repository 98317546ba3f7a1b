"""Sessions in Redis, shared by all controllers.

A cache, never a dependency: whatever goes wrong is a miss. A server that does not answer is
left alone for a moment, so that a dead one does not cost every request its timeout.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from services.ports import SessionCandidates
from services.runtime.logs import log
from services.runtime.metrics import Metrics
from services.sessions.codec import decode, encode

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")
_FAILURES = (RedisError, OSError, asyncio.TimeoutError)


class RedisSessions:
    """Keeps `ports.SessionStore` in a Redis server.

    url: redis://, rediss:// or unix://PATH?db=0. prefix: of every key. timeout: seconds that
    one operation may take, connecting included. pause: seconds without Redis after a failure.
    Raises ValueError for options in the url that redis-py does not know.
    """

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        ttl_seconds: float,
        prefix: str = "forward-ofa:session:",
        timeout: float = 0.1,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._ttl_ms, self._prefix = metrics, int(ttl_seconds * 1000), prefix
        self._timeout, self._pause, self._clock = timeout, pause, clock
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=32,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 1),
        )
        try:
            # Opens nothing: what is wrong is told now, not later.
            self._pool.make_connection()  # type: ignore[no-untyped-call]
        except TypeError as error:
            raise ValueError(str(error)) from error
        self._redis = Redis(connection_pool=self._pool)
        self._silent_until = 0.0
        self._down = False

    async def get(self, session_id: str) -> SessionCandidates | None:
        answered, value = await self._try(lambda: self._redis.get(self._prefix + session_id))
        candidates = None
        result = "miss" if answered else "error"
        if isinstance(value, bytes):
            try:
                candidates = decode(value)
                result = "hit"
            except ValueError:
                result = "error"
        self._metrics.session_cache.labels(result).inc()
        return candidates

    async def put(self, session_id: str, candidates: SessionCandidates) -> None:
        value = encode(candidates)
        await self._try(lambda: self._redis.set(self._prefix + session_id, value, px=self._ttl_ms))

    async def close(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()

    async def _try(self, operation: Callable[[], Awaitable[_T]]) -> tuple[bool, _T | None]:
        """Whether Redis answered, and what."""
        if self._clock() < self._silent_until:
            return False, None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await operation()
        except _FAILURES as error:
            if not isinstance(error, ResponseError):
                self._silent_until = self._clock() + self._pause
            if not self._down:
                self._down = True
                kind = type(error).__name__
                log(_LOGGER, logging.WARNING, "Redis fails, sessions are forgotten", error=kind)
            return False, None
        if self._down:
            self._down = False
            log(_LOGGER, logging.INFO, "Redis is back")
        return True, answer
