"""Submits a schedule's job when its log has grown enough and its last job has ended.

A log is read in a thread of its own, one a schedule: to count a very long one, or to wait for a
network's folder that hangs, must not keep the beat from the leases.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from services.runtime.logs import log
from services.trainer import plan
from services.trainer.domain import LocalTrainer
from services.trainer.growth import Growth, Measure, new_rows
from services.trainer.metrics import TrainerMetrics
from services.trainer.records import Records, RecordsUnavailable
from services.trainer.schedules import BadSchedules, Schedule, read_schedules
from services.trainer.settings import TrainerSettings

_LOGGER = logging.getLogger(__name__)
_LONG_SECONDS = 60.0


@dataclass(frozen=True)
class _Found:
    """What a look found. due: the log, if it is time for a job. soon: it was caught while it was
    written."""

    due: Measure | None = None
    soon: bool = False


@dataclass
class _Watched:
    """A schedule, and how far its log has grown.

    submitted: `Measure.came` when its last job was submitted; None if that was not seen here, so
        that the next look goes by how many rows there were then. last: that job's id.
    look: that is being made, of `looked_at`, since `begun` on the monotonic clock.
    """

    schedule: Schedule
    growth: Growth = field(default_factory=Growth)
    submitted: int | None = None
    last: str = ""
    next: float = 0.0
    look: Future[_Found] | None = None
    looked_at: Schedule | None = None
    begun: float = 0.0
    told: bool = False


class Scheduler:
    """The schedules of a file, which is read again when it changes."""

    def __init__(
        self, path: Path, shared: TrainerSettings, records: Records, trainer: LocalTrainer,
        metrics: TrainerMetrics,
    ) -> None:  # fmt: skip
        self._path, self._shared = path, shared
        self._records, self._trainer, self._metrics = records, trainer, metrics
        self._stamp = 0
        self._fault = ""
        self._watched: dict[str, _Watched] = {}
        self._take_over(read_schedules(path))

    @property
    def names(self) -> list[str]:
        """Of all schedules."""
        return list(self._watched)

    def look(self, now: float) -> None:
        """Once, at `now` on the monotonic clock; waits for no log. Raises RecordsUnavailable."""
        self._read_again()
        for watched in self._watched.values():
            try:
                self._turn(watched, now)
            except RecordsUnavailable:
                raise
            except Exception as error:
                # Whatever is wrong with one log, the other schedules and the leases go on.
                name = watched.schedule.name
                self._metrics.schedule_failures.labels(name).inc()
                log(
                    _LOGGER, logging.WARNING, "a schedule's look failed",
                    schedule=name, why=str(error) or type(error).__name__,
                )  # fmt: skip

    def _read_again(self) -> None:
        """A file that makes no sense changes nothing, and is told of once."""
        fault = ""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._stamp = stamp
                self._take_over(read_schedules(self._path))
        except (OSError, BadSchedules) as error:
            fault = str(error)
        if fault and fault != self._fault:
            log(_LOGGER, logging.WARNING, "schedules not taken over", why=fault)
        self._fault = fault

    def _take_over(self, schedules: list[Schedule]) -> None:
        before, self._watched = self._watched, {}
        for schedule in schedules:
            watched = before.get(schedule.name)
            if watched is None or watched.schedule.job.data != schedule.job.data:
                # Of another log nothing is known, and a look at the old one may still be made.
                watched = _Watched(schedule)
            elif watched.schedule != schedule:
                watched.schedule, watched.next = schedule, 0.0
            self._watched[schedule.name] = watched

    def _turn(self, watched: _Watched, now: float) -> None:
        schedule = watched.schedule
        if watched.look is None:
            if now >= watched.next:
                watched.next = now + schedule.look_seconds
                self._begin(watched, now)
        elif watched.look.done():
            look, watched.look = watched.look, None
            if watched.looked_at == schedule:
                self._end(watched, look.result(), now)
        elif now - watched.begun > max(_LONG_SECONDS, schedule.look_seconds) and not watched.told:
            watched.told = True
            log(
                _LOGGER, logging.WARNING, "a schedule's look takes long",
                schedule=schedule.name, seconds=round(now - watched.begun),
            )  # fmt: skip

    def _begin(self, watched: _Watched, now: float) -> None:
        schedule = watched.schedule
        last = self._records.last_of(schedule.name)
        if last is not None and last.state.live:
            return
        if last is not None and last.id != watched.last:
            # Of before this process, or submitted by another beat.
            watched.submitted, watched.last = None, last.id
        rows = last.rows if last else None
        look: Future[_Found] = Future()
        watched.look, watched.looked_at, watched.begun, watched.told = look, schedule, now, False

        def run() -> None:
            try:
                look.set_result(self._found(watched, schedule, rows))
            except BaseException as error:
                look.set_exception(error)

        # A daemon: what hangs does not keep the process from ending.
        threading.Thread(target=run, name=f"look-{schedule.name}", daemon=True).start()

    def _found(self, watched: _Watched, schedule: Schedule, rows_then: int | None) -> _Found:
        """In a thread. rows_then: of the last job; None: there was none."""
        measure = watched.growth.measure(Path(schedule.job.data))
        if not measure.settled or measure.changed < schedule.settle_seconds:
            return _Found(soon=True)
        watched.growth.accept()
        if watched.submitted is None:
            watched.submitted = measure.came - new_rows(rows_then or 0, measure.rows)
        if measure.came - watched.submitted < schedule.min_new_rows:
            return _Found()
        plan.check(schedule.job, self._shared.check_bytes, self._shared.cache)
        return _Found(due=measure)

    def _end(self, watched: _Watched, found: _Found, now: float) -> None:
        schedule = watched.schedule
        watched.next = now + schedule.look_seconds
        if found.soon:
            watched.next = now + min(schedule.look_seconds, schedule.settle_seconds)
        if found.due is None:
            return
        job = self._trainer.enqueue(schedule.job, schedule=schedule.name, rows=found.due.rows)
        watched.submitted, watched.last = found.due.came, job.id
        self._metrics.scheduled.labels(schedule.name).inc()
        log(_LOGGER, logging.INFO, "scheduled", schedule=schedule.name, job=job.id)
