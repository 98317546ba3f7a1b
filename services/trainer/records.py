"""Where jobs are written down: a Protocol, and Redis behind it.

    forward-ofa:jobs:job:ID        the record, JSON
    forward-ofa:jobs:ids           sorted set, id by time of submission
    forward-ofa:jobs:live          set of ids that are queued or running
    forward-ofa:jobs:submissions   hash, the caller's id -> job
    forward-ofa:jobs:schedules     hash, schedule -> its last job

A record and its indices change together (WATCH, MULTI, EXEC), so a crash at any moment leaves
the old state or the new one. Celery's messages only point here: losing one, or having it twice,
changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.ports import Job, JobState
from services.trainer.jobs import from_json, second_of, to_json

_PREFIX = "forward-ofa:jobs:"
_IDS, _LIVE = f"{_PREFIX}ids", f"{_PREFIX}live"
_SUBMISSIONS, _SCHEDULES = f"{_PREFIX}submissions", f"{_PREFIX}schedules"
_TRIES = 50
_PAGE = 200

Change = Callable[[Job], Job]


class RecordsUnavailable(Exception):
    """Redis cannot be asked now; whether the last change was made is not known."""


class UnknownJob(Exception):
    """There is no job of that id."""


class TooManyJobs(Exception):
    """As many jobs are queued or running as may."""


class Records(Protocol):
    """Blocking: call it from a thread. All raise RecordsUnavailable."""

    def add(self, job: Job, most: int) -> Job:
        """A new job; the one that there is if its `submission` was used before, or if its
        schedule has one that lives. Raises TooManyJobs."""

    def get(self, job_id: str) -> Job:
        """Raises UnknownJob."""

    def update(self, job_id: str, change: Change) -> Job:
        """`change` applied to the present record, again if somebody else was faster, so it must
        be pure. Nothing is written if it returns its argument. Raises UnknownJob, and what
        `change` raises."""

    def page(self, states: Sequence[JobState], limit: int, before: str = "") -> list[Job]:
        """Newest first; no states: all. before: only older jobs; if it is forgotten, those of its
        second too. Raises ValueError for a `before` that is no job's id."""

    def live(self) -> list[Job]:
        """All that are queued or running."""

    def last_of(self, schedule: str) -> Job | None:
        """The newest job of a schedule."""

    def remove(self, job_id: str) -> bool:
        """Forgets an ended job. Whether it did: not one that is live again, or gone."""


def connect(url: str, seconds: float) -> redis.Redis:
    """Opens nothing. seconds: for connecting, and for each answer."""
    return redis.Redis.from_url(
        url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 1)
    )


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError,
            redis.OutOfMemoryError, OSError) as error:  # fmt: skip
        raise RecordsUnavailable(str(error)) from error


class RedisRecords:
    """Keeps `Records` in one Redis, which must not evict keys."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client

    def add(self, job: Job, most: int) -> Job:
        with _reaching(), self._client.pipeline() as pipe:
            for _ in range(_TRIES):
                with contextlib.suppress(redis.WatchError):
                    pipe.watch(_LIVE, _SUBMISSIONS, _SCHEDULES)
                    if (known := self._known(pipe, job)) is not None:
                        return known
                    if pipe.scard(_LIVE) >= most:
                        raise TooManyJobs
                    pipe.multi()
                    pipe.zadd(_IDS, {job.id: job.created})
                    if job.submission:
                        pipe.hset(_SUBMISSIONS, job.submission, job.id)
                    if job.schedule:
                        pipe.hset(_SCHEDULES, job.schedule, job.id)
                    _write(pipe, job)
                    pipe.execute()
                    return job
        raise RecordsUnavailable("others change it all the time")

    def _known(self, pipe: Any, job: Job) -> Job | None:
        named = pipe.hget(_SUBMISSIONS, job.submission) if job.submission else None
        if named is None and job.schedule:
            last = pipe.hget(_SCHEDULES, job.schedule)
            named = last if last is not None and pipe.sismember(_LIVE, last) else None
        return None if named is None else _read(pipe, named.decode())

    def get(self, job_id: str) -> Job:
        with _reaching():
            return _read(self._client, job_id)

    def update(self, job_id: str, change: Change) -> Job:
        with _reaching(), self._client.pipeline() as pipe:
            for _ in range(_TRIES):
                with contextlib.suppress(redis.WatchError):
                    pipe.watch(_key(job_id))
                    old = _read(pipe, job_id)
                    new = change(old)
                    if new == old:
                        return old
                    new = replace(new, revision=old.revision + 1)
                    pipe.multi()
                    _write(pipe, new)
                    pipe.execute()
                    return new
        raise RecordsUnavailable("others change it all the time")

    def page(self, states: Sequence[JobState], limit: int, before: str = "") -> list[Job]:
        found: list[Job] = []
        with _reaching():
            start = self._after(before) if before else 0
            while len(found) < limit:
                ids = self._client.zrevrange(_IDS, start, start + _PAGE - 1)
                jobs = self._many(ids)
                found += [job for job in jobs if not states or job.state in states]
                start += _PAGE
                if len(ids) < _PAGE:
                    break
        return found[:limit]

    def _after(self, before: str) -> int:
        """How many jobs are passed over to go on after this one."""
        rank = self._client.zrevrank(_IDS, before)
        if rank is not None:
            return int(rank) + 1
        # Forgotten between two pages. Its second is all that is known: rather twice than never.
        return int(self._client.zcount(_IDS, second_of(before) + 1, "+inf"))

    def live(self) -> list[Job]:
        with _reaching():
            jobs = self._many(self._client.smembers(_LIVE))
        return sorted((job for job in jobs if job.state.live), key=lambda job: job.queued)

    def last_of(self, schedule: str) -> Job | None:
        with _reaching():
            job_id = self._client.hget(_SCHEDULES, schedule)
            return None if job_id is None else next(iter(self._many([job_id])), None)

    def remove(self, job_id: str) -> bool:
        with _reaching(), self._client.pipeline() as pipe:
            for _ in range(_TRIES):
                with contextlib.suppress(redis.WatchError):
                    # Watched: somebody may resume it at this moment.
                    pipe.watch(_key(job_id))
                    try:
                        job = _read(pipe, job_id)
                    except UnknownJob:
                        return False
                    if job.state.live:
                        return False
                    pipe.multi()
                    pipe.delete(_key(job_id))
                    pipe.zrem(_IDS, job_id)
                    if job.submission:
                        pipe.hdel(_SUBMISSIONS, job.submission)
                    pipe.execute()
                    return True
        return False  # others change it all the time: the next look tells

    def _many(self, ids: Any) -> list[Job]:
        keys = [_key(job_id.decode()) for job_id in ids]
        texts = self._client.mget(keys) if keys else []
        return [from_json(text) for text in texts if text is not None]


def _key(job_id: str) -> str:
    return f"{_PREFIX}job:{job_id}"


def _read(client: Any, job_id: str) -> Job:
    text = client.get(_key(job_id))
    if text is None:
        raise UnknownJob(job_id)
    return from_json(text)


def _write(pipe: Any, job: Job) -> None:
    pipe.set(_key(job.id), to_json(job))
    if job.state.live:
        pipe.sadd(_LIVE, job.id)
    else:
        pipe.srem(_LIVE, job.id)
