"""The process that looks after the queue: lost jobs, lost messages, schedules, old jobs.

Celery's own beat sends messages to workers; with workers that are busy for hours, whatever
has to happen every second would wait behind a job. So this is a loop of its own, and the only
state that it keeps is what it saw since it was started; two of them at once do no harm, for all
that they change goes through the records.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.ports import Job, JobState
from services.runtime.logs import log
from services.trainer import jobs
from services.trainer.celery_app import Announcer
from services.trainer.metrics import TrainerMetrics
from services.trainer.records import Records, RecordsUnavailable, UnknownJob
from services.trainer.scheduler import Scheduler
from services.trainer.settings import BeatSettings, TrainerSettings

_LOGGER = logging.getLogger(__name__)
_HOUSEKEEPING_SECONDS = 15.0
_ALL = 100_000


@dataclass(frozen=True)
class _Sign:
    """Something of a job that changes, and when it was seen first, on our own clock."""

    what: tuple[object, ...]
    seen: float


def _signs(
    running: list[Job],
    known: dict[str, _Sign],
    what: Callable[[Job], tuple[object, ...]],
    now: float,
) -> dict[str, _Sign]:
    """Job -> its sign: the known one while it is the same, else one that is seen now."""
    found = {}
    for job in running:
        fresh, before = _Sign(what(job), now), known.get(job.id)
        found[job.id] = before if before is not None and before.what == fresh.what else fresh
    return found


def _longest(signs: dict[str, _Sign], now: float) -> float:
    return max((now - sign.seen for sign in signs.values()), default=0.0)


def _alive(job: Job) -> tuple[object, ...]:
    return job.attempt, job.revision


def _standing(job: Job) -> tuple[object, ...]:
    step = (job.progress.stage, job.progress.step) if job.progress else ()
    return job.attempt, *step


class Reaper:
    """Queues jobs again whose worker went silent, and announces those whose message is gone.

    A lease has run out when its job's record has not changed for `lease_seconds` while we could
    read it: clocks of machines are not compared, and the time in which Redis was away does not
    count, for nobody could renew anything then.
    """

    def __init__(
        self, settings: BeatSettings, records: Records, announcer: Announcer,
        metrics: TrainerMetrics,
    ) -> None:  # fmt: skip
        self._settings, self._records = settings, records
        self._announcer, self._metrics = announcer, metrics
        self._signs: dict[str, _Sign] = {}
        self._steps: dict[str, _Sign] = {}
        self._missing: dict[str, float] = {}

    def forget(self) -> None:
        """Redis was away: all leases start anew."""
        self._signs.clear()
        self._steps.clear()
        self._missing.clear()

    def look(self, now: float) -> list[Job]:
        """Once, at `now` on the monotonic clock. Raises RecordsUnavailable."""
        live = self._records.live()
        running = [job for job in live if job.state is JobState.RUNNING]
        signs = self._signs = _signs(running, self._signs, _alive, now)
        self._steps = _signs(running, self._steps, _standing, now)
        for job in live:
            sign = signs.get(job.id)
            if sign is not None and now - sign.seen >= self._settings.lease_seconds:
                self._take_back(job)
        self._announce_missing(live, now)
        self._metrics.looked(
            live,
            time.time(),
            _longest(signs, now),
            _longest(self._steps, now),
        )
        return live

    def _take_back(self, job: Job) -> None:
        lease = self._settings.lease_seconds
        why = f"no sign of life from {job.worker} for {lease:g} s"

        def change(now_there: Job) -> Job:
            if now_there.revision != job.revision:
                return now_there  # it is alive after all
            return jobs.requeued(
                now_there, job.attempt, why, time.time(), crashed=True, most=self._settings.crashes
            )

        try:
            back = self._records.update(job.id, change)
        except (jobs.Superseded, UnknownJob):
            return
        self._signs.pop(job.id, None)
        if back.state is JobState.RUNNING:
            return
        self._metrics.lost.inc()
        log(_LOGGER, logging.WARNING, "lost", job=job.id, worker=job.worker, state=str(back.state))
        if back.state is JobState.QUEUED:
            self._announcer.announce(back)

    def _announce_missing(self, live: list[Job], now: float) -> None:
        queued = [job for job in live if job.state is JobState.QUEUED]
        waiting = self._announcer.waiting() if queued else set()
        missing = {job.id: job for job in queued if job.id not in waiting}
        # Between the message and the claim a job is in neither place for a moment.
        self._missing = {job_id: self._missing.get(job_id, now) for job_id in missing}
        for job_id, since in list(self._missing.items()):
            if now - since >= self._settings.resend_seconds:
                self._announcer.announce(missing[job_id])
                self._missing[job_id] = now
                self._metrics.announced.inc()
                log(_LOGGER, logging.INFO, "announced again", job=job_id)


class Beat:
    """The loop. scheduler: None where there are no schedules."""

    def __init__(
        self, settings: BeatSettings, shared: TrainerSettings, records: Records,
        reaper: Reaper, scheduler: Scheduler | None, metrics: TrainerMetrics,
    ) -> None:  # fmt: skip
        self._settings, self._shared, self._records = settings, shared, records
        self._reaper, self._scheduler, self._metrics = reaper, scheduler, metrics
        self._next_cleaning = 0.0
        self.reached = False
        self.turned = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        while not stop.wait(self._settings.tick_seconds):
            self.turned = time.monotonic()
            try:
                self._reaper.look(self.turned)
                if self._scheduler is not None:
                    self._scheduler.look(self.turned)
                if self.turned >= self._next_cleaning:
                    self._next_cleaning = self.turned + _HOUSEKEEPING_SECONDS
                    self.clean()
                self._reach(True)
            except RecordsUnavailable as error:
                self._reach(False)
                self._reaper.forget()
                log(_LOGGER, logging.WARNING, "Redis does not answer", why=str(error))
            except Exception:
                # One bad turn must not end the process that all jobs rely on.
                log(_LOGGER, logging.ERROR, "a turn failed unexpectedly")

    def clean(self) -> None:
        """Forgets the oldest ended jobs and their run folders; published versions stay, and the
        last job of each schedule, which knows how far its log had grown."""
        ended = [job for job in self._records.page((), _ALL) if not job.state.live]
        self._metrics.remembered(ended[: self._settings.keep_jobs])
        names = self._scheduler.names if self._scheduler is not None else []
        last = {job.id for job in map(self._records.last_of, names) if job is not None}
        for job in ended[self._settings.keep_jobs :]:
            if job.id not in last and self._records.remove(job.id):
                shutil.rmtree(self._shared.folder(job.id), ignore_errors=True)
                log(_LOGGER, logging.INFO, "forgotten", job=job.id)

    def _reach(self, reached: bool) -> None:
        self.reached = reached
        self._metrics.reachable.set(reached)
