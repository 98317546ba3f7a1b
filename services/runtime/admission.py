"""How much is let in: calls at once, bytes of downloads, time.

Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any

import grpc

from services.errors import Fault, Reason, RetryMs
from services.runtime.checks import SettingsError

_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 30.0
_FIRST_GUESS = 0.01
"""Seconds of a call before one was measured."""
_CUT = 0.9
_UNREAD_RETRY = (1_000, 5_000)
_INTERVAL = 0.2
"""Seconds in which one call has to be within the target."""
_CALM_SECONDS = 1.0
_LEAST = 8
"""Calls at once that are let in however slow they are."""
_SURE = 16
"""Calls that have to be measured before a deadline is called impossible."""


@dataclass(frozen=True)
class AdmissionSettings:
    """target_ms: the limit of calls at once falls, to a few if need be, while some are refused and
        none is as quick as this; 0: the limit is max_concurrent_requests.
    max_waiting: calls of one method that may wait to be looked at. gRPC itself ends those
        beyond, with CANCELLED: refusing them ourselves would take the time that others need.
    max_unread_bytes: memory of replies of unary calls that callers have not read yet, together;
        each counts twice, as gRPC has a copy. One connection may hold an eighth of what is
        free, so that one that does not read, by fault or by design, is refused before others.
    max_connection_seconds: a connection is told to end after so long (by a tenth more or less)
        and its client makes another: what it holds ends with it, and clients find new replicas.
    calm_concurrent: calls at once that are let in while nobody was refused for a second, so
        the burst that is answered whole.
    max_downloads: bundle downloads at once; more are refused with OVERLOADED.
    download_rate: bytes a second of all downloads together; 0: no limit.
    stream_rate: bytes a second of one download; 0: no limit.
    max_seconds: a call ends with DEADLINE after so long, whatever its caller allows.
    max_download_seconds: a download too; the SDK resumes where it was cut.
    """

    target_ms: float = 150.0
    calm_concurrent: int = 64
    max_waiting: int = 64
    max_unread_bytes: int = 512 * 2**20
    max_connection_seconds: float = 1800.0
    max_downloads: int = 256
    download_rate: float = 0.0
    stream_rate: float = 0.0
    max_seconds: float = 30.0
    max_download_seconds: float = 600.0

    def __post_init__(self) -> None:
        if min(self.calm_concurrent, self.max_waiting, self.max_downloads) < 1:
            raise SettingsError("calm_concurrent, max_waiting and max_downloads are at least 1")
        for name in ("target_ms", "download_rate", "stream_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be a number and not negative; 0: no limit")
        if self.max_unread_bytes < 2**20:
            raise SettingsError("max_unread_bytes is at least 1 MiB (1048576)")
        for name in ("max_seconds", "max_download_seconds", "max_connection_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be a number above 0")
        if self.max_connection_seconds < 1:
            raise SettingsError("max_connection_seconds is at least 1")


class Admission:
    """A limit of calls at once, by how long they take, and when the refused may return.

    A burst is no overload: it makes calls wait, and is over. Nor is a busy hour, in which calls
    wait but find room. So the limit falls when somebody was refused and not one call of an
    interval was within the target (a standing queue, the idea of CoDel, RFC 8289): to what the
    target allows at the present rate (Little's law). While it is below `calm`, each good call
    at a busy moment adds 1 / limit; once nobody was refused for a second it is `calm` again.
    Above that it grows as well, as far as calls come and stay good.
    """

    def __init__(
        self, limit: int, target_ms: float = 0.0, calm: int = 0, *, resumable: bool = False
    ) -> None:
        self._resumable = resumable
        self._most, self._target = limit, target_ms / 1e3
        self._calm = min(calm, limit) if target_ms else limit
        self._least = min(_LEAST, self._calm)
        self.limit = float(self._calm)
        self.running = 0
        self._mean = _FIRST_GUESS
        self._measured = 0
        self._quickest, self._judged_at = math.inf, 0.0
        self._cut_at, self._refused_at = 0.0, 0.0
        self._returning, self._returning_at = 0.0, 0.0

    @property
    def full(self) -> bool:
        """Whether as many run as may."""
        if self.running < self.limit:
            return False
        if self.limit < self._calm and time.monotonic() - self._refused_at > _CALM_SECONDS:
            self.limit = float(self._calm)
        return self.running >= self.limit

    def enter(self) -> None:
        """Raises Fault OVERLOADED with a window if too many run."""
        if self.full:
            raise Fault(
                Reason.OVERLOADED, retry=self.window(), detail=f"{int(self.limit)} calls at once"
            )
        self.running += 1

    def leave(self, seconds: float, *, whole: bool = True) -> None:
        """seconds: how long it took. whole: it ran to its end; one that its caller gave up would
        have taken longer, so it counts only if it was slower than most; a refusal never does."""
        if whole or seconds > self._mean:
            self._measured += 1
            self._mean += (seconds - self._mean) / 16
            if self._target:
                self._adapt(seconds)
        self.running -= 1

    def _adapt(self, seconds: float) -> None:
        now = time.monotonic()
        if now - seconds < self._cut_at:
            # Let in before the last cut, so it says nothing of the limit since.
            return
        if self._quickest == math.inf:
            self._judged_at = now + _INTERVAL
        self._quickest = min(self._quickest, seconds)
        if now >= self._judged_at:
            # Slow calls alone are no overload, and a few are no queue.
            refusing = now - self._refused_at < 2 * _INTERVAL
            if refusing and self._quickest > self._target and self.running > self._least:
                kept = min(self.limit, self.running) * self._target / self._quickest
                self.limit = max(self._least, kept)
                self._cut_at = now
            self._quickest = math.inf
        if seconds <= self._target and 2 * self.running >= self.limit:
            self.limit = min(self._most, self.limit + 1 / self.limit)

    def window(self) -> RetryMs:
        """When one that is refused now may come back.

        The refused form a queue in thought: each is told to come when those before it have
        been served, at the rate that is being served now (running / mean time, Little's law).
        So the window grows with the overload and shrinks when it is over.
        """
        now = self._refused_at = time.monotonic()
        rate = max(self.running, 1) / max(self._mean, 1e-4)
        gone = (now - self._returning_at) * rate
        self._returning = max(0.0, self._returning - gone) + 1
        # No more than the longest window holds, or an overload would echo for minutes.
        self._returning = min(self._returning, _LONGEST_RETRY * rate)
        self._returning_at = now
        earliest = min(max(self._returning / rate, _SHORTEST_RETRY), _LONGEST_RETRY)
        return round(earliest * 1e3), round(earliest * 2e3)

    def check_deadline(self, left: float) -> None:
        """Raises Fault DEADLINE if `left` seconds are clearly too few for a call.

        Never for downloads that have some time: what arrives of one is not lost.
        """
        if left <= 0:
            raise Fault(Reason.DEADLINE, detail="had passed on arrival")
        if not self._resumable and self._measured >= _SURE and left < self._mean / 2:
            # Each refusal lets the mean sink, so that one is tried again before long.
            self._mean *= _CUT
            # No refusal for want of room: it neither lengthens the queue of those who were refused
            # nor says that it is not calm.
            earliest = round(1e3 * min(max(self._mean, _SHORTEST_RETRY), _LONGEST_RETRY))
            raise Fault(Reason.DEADLINE, retry=(earliest, 2 * earliest), detail="too near")


class Unread:
    """Bytes of replies that wait for callers to read them, by connection.

    gRPC keeps a reply until its caller's HTTP/2 window has room for it; there is no taking
    back. The share of a connection shrinks as others fill (an eighth of what is free), so
    those that hoard are refused first. Thousands of connections can still fill it together.
    """

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._limit = limit
        self._held: dict[str, int] = {}

    def check(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises Fault OVERLOADED if the caller's connection holds its share already."""
        if not self.total:
            return
        free = self._limit - self.total
        if free <= 0 or 8 * self._held.get(context.peer(), 0) > free:
            # A window of its own: it says nothing about the load.
            raise Fault(Reason.OVERLOADED, retry=_UNREAD_RETRY, detail="replies are not read")

    def add(self, context: grpc.aio.ServicerContext[Any, Any], size: int) -> None:
        """The current task hands a reply to gRPC; it ends when that has been sent or given up."""
        if not size:
            return
        peer, task = context.peer(), asyncio.current_task()
        assert task is not None
        # gRPC's copy too.
        size *= 2
        self.total += size
        self._held[peer] = self._held.get(peer, 0) + size

        def read(_: object) -> None:
            self.total -= size
            self._held[peer] -= size
            if not self._held[peer]:
                del self._held[peer]

        # Not by the context, which would then refer to itself until the garbage collector comes.
        task.add_done_callback(read)


class Pacer:
    """Bytes a second, in turn. rate 0: no limit."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def pause(self, size: int) -> None:
        """Waits until `size` more bytes may go."""
        if not self._rate:
            return
        now = time.monotonic()
        wait = self._free_at - now
        self._free_at = max(self._free_at, now) + size / self._rate
        if wait > 0:
            await asyncio.sleep(wait)
