"""Sessions in Redis, shared by all controllers.

A cache, never a dependency: whatever goes wrong is a miss, costs a request `timeout` at most,
and is counted by kind. Reads and writes of all requests share round trips: one is under way, the
next takes whatever came in the meantime.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError, ResponseError

from services.ports import SessionCandidates
from services.runtime.logs import log
from services.runtime.metrics import Metrics
from services.sessions.address import parse_address
from services.sessions.breaker import Breaker
from services.sessions.codec import decode, encode
from services.sessions.connect import connect
from services.sessions.failures import UNUSABLE, kind_of

_LOGGER = logging.getLogger(__name__)
_BATCH = 64
_CONNECT_SECONDS = 0.5
"""Connecting may take longer than a request waits: sentinels and clusters are asked first."""
_RECONNECT_SECONDS = 1.0
_Answer = SessionCandidates | None


@dataclass
class _Turn:
    """What the next round trip does for one session: read for `readers`, then write."""

    readers: list[asyncio.Future[_Answer]] = field(default_factory=list)
    write: SessionCandidates | None = None


class RedisSessions:
    """Keeps `ports.SessionStore` in Redis.

    url: see address.py. prefix: of every key. timeout: seconds that a request waits at most.
    pause: seconds without Redis after it did not answer. pending: writes that may wait; more are
    dropped and counted. Raises ValueError for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        ttl_seconds: float,
        prefix: str = "forward-ofa:session:",
        timeout: float = 0.05,
        pause: float = 0.25,
        pending: int = 1_000,
    ) -> None:
        self._metrics, self._ttl_ms, self._prefix = metrics, int(ttl_seconds * 1000), prefix
        self._timeout, self._pending = timeout, pending
        self._patience = max(timeout, _CONNECT_SECONDS)
        self._redis = connect(parse_address(url), self._patience)
        self._breaker = Breaker(self._probe, pause)
        self._next: dict[str, _Turn] = {}
        self._now: dict[str, _Turn] = {}
        self._worker: asyncio.Task[None] | None = None
        self._failed_key = prefix
        self._failing = False
        self._read_only = False
        self._reconnected = -_RECONNECT_SECONDS

    async def get(self, session_id: str) -> SessionCandidates | None:
        known = self._unwritten(session_id)
        return known or await self._read(session_id)

    def put(self, session_id: str, candidates: SessionCandidates) -> None:
        if self._breaker.is_open:
            self._count("write", "skipped")
        elif session_id not in self._next and len(self._next) >= self._pending:
            self._count("write", "dropped")
        else:
            self._turn(session_id).write = candidates

    async def swap(
        self, session_id: str, candidates: SessionCandidates
    ) -> SessionCandidates | None:
        known = self._unwritten(session_id)
        if known is not None:
            self.put(session_id, candidates)
            return known
        return await self._read(session_id, candidates)

    async def close(self) -> None:
        if self._worker is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._worker), 2 * self._patience)
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        await self._breaker.close()
        await self._redis.aclose()

    def _unwritten(self, session_id: str) -> SessionCandidates | None:
        """What this process put and Redis may not have yet: nobody has to wait for a write."""
        for turns in (self._next, self._now):
            turn = turns.get(session_id)
            if turn is not None and turn.write is not None:
                self._metrics.session_cache.labels("hit").inc()
                return turn.write
        return None

    async def _read(
        self, session_id: str, write: SessionCandidates | None = None
    ) -> SessionCandidates | None:
        """What Redis has, asked before `write` goes there."""
        if self._breaker.is_open or len(self._next) >= self._pending:
            kind = "skipped" if self._breaker.is_open else "dropped"
            self._count("read", kind)
            if write is not None:
                self._count("write", kind)
            self._metrics.session_cache.labels("error").inc()
            return None
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        turn = self._turn(session_id)
        turn.readers.append(answer)
        turn.write = write or turn.write
        try:
            async with asyncio.timeout(self._timeout):
                known = await answer
        except TimeoutError as error:
            self._failed("read", error, self._prefix + session_id)
            known, result = None, "error"
        except _Unanswered:
            known, result = None, "error"
        else:
            result = "miss" if known is None else "hit"
        self._metrics.session_cache.labels(result).inc()
        return known

    def _turn(self, session_id: str) -> _Turn:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return self._next.setdefault(session_id, _Turn())

    async def _work(self) -> None:
        """Round trips until nothing is left to do."""
        while self._next:
            if self._breaker.is_open:
                self._give_up(self._next)
                self._next = {}
                return
            taken = list(self._next)[:_BATCH]
            self._now = {session_id: self._next.pop(session_id) for session_id in taken}
            try:
                async with asyncio.timeout(self._patience):
                    answers = await self._round_trip(self._now)
            except Exception as error:
                # Whatever it is, requests must not fail for it, nor wait for ever.
                self._failed("read", error, self._prefix + taken[0])
                self._give_up(self._now)
            else:
                self._settle(self._now, answers)
            finally:
                self._now = {}
            await self._follow_master()

    async def _round_trip(self, turns: dict[str, _Turn]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for session_id, turn in turns.items():
            key = self._prefix + session_id
            if turn.readers:
                pipeline.get(key)
                if turn.write is None:
                    pipeline.pexpire(key, self._ttl_ms)
            if turn.write is not None:
                pipeline.set(key, encode(session_id, turn.write), px=self._ttl_ms)
        return await pipeline.execute(raise_on_error=False)

    def _settle(self, turns: dict[str, _Turn], answers: list[Any]) -> None:
        """Tells the readers; counts what Redis refused."""
        refused = False
        left = iter(answers)
        for session_id, turn in turns.items():
            if turn.readers:
                refused |= not self._answer(session_id, turn, next(left))
            written = next(left)
            if isinstance(written, Exception):
                self._failed("write", written, self._prefix + session_id)
                refused = True
        if self._failing and not refused:
            self._failing = False
            log(_LOGGER, logging.INFO, "Redis is back")

    def _answer(self, session_id: str, turn: _Turn, value: Any) -> bool:
        """Whether what Redis says is an answer."""
        known: _Answer = None
        error: Exception | None = None
        if isinstance(value, Exception):
            error = value
        elif value is not None:
            try:
                known = decode(session_id, value)
            except ValueError as rubbish:
                error = rubbish
        if error is not None:
            self._failed("read", error, self._prefix + session_id)
        for reader in turn.readers:
            if not reader.done():
                reader.set_result(known) if error is None else reader.set_exception(_Unanswered())
        return error is None

    def _give_up(self, turns: dict[str, _Turn]) -> None:
        for turn in turns.values():
            if turn.write is not None:
                self._count("write", "skipped")
            for reader in turn.readers:
                if not reader.done():
                    reader.set_exception(_Unanswered())

    def _failed(self, operation: str, error: Exception, key: str) -> None:
        kind = kind_of(error)
        self._count(operation, kind)
        if not self._failing and kind != "rubbish":
            self._failing = True
            log(_LOGGER, logging.WARNING, "Redis fails, sessions are forgotten", error=kind)
        self._read_only |= isinstance(error, ReadOnlyError)
        if kind in UNUSABLE:
            self._failed_key = key
            self._breaker.open()

    def _count(self, operation: str, kind: str) -> None:
        self._metrics.session_store_failures.labels(operation, kind).inc()

    async def _follow_master(self) -> None:
        """After "read only", drops the connections: the name may lead to a new master by now."""
        now = time.monotonic()
        if self._read_only and now - self._reconnected > _RECONNECT_SECONDS:
            self._reconnected = now
            if isinstance(self._redis, Redis):
                with contextlib.suppress(Exception):
                    await self._redis.connection_pool.disconnect(inuse_connections=False)
        self._read_only = False

    async def _probe(self) -> None:
        """Where it failed: in a cluster that is one node of many."""
        async with asyncio.timeout(2 * self._patience):
            await self._ask_failed_key()
        # Connected by now: this is what a request would wait.
        async with asyncio.timeout(self._timeout):
            await self._ask_failed_key()

    async def _ask_failed_key(self) -> None:
        try:
            await self._redis.exists(self._failed_key)
        except ResponseError as error:
            if kind_of(error) in UNUSABLE:
                raise


class _Unanswered(Exception):
    """Redis gave no usable answer."""
