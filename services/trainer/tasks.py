"""What a worker does with a job: starts the training process, tells the record how it goes,
and carries wishes and ends in both directions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from celery import Celery

from services.ports import Job, JobFailure, JobProgress, JobState, Verdict
from services.runtime.logs import log
from services.trainer import jobs
from services.trainer.celery_app import TASK, Announcer
from services.trainer.child import Child
from services.trainer.metrics import TrainerMetrics
from services.trainer.records import Records, RecordsUnavailable, UnknownJob
from services.trainer.settings import TrainerSettings, WorkerSettings

_LOGGER = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
T = TypeVar("T")


def register(app: Celery, runner: Runner) -> None:
    """Lets a Celery worker of this process run jobs."""

    @app.task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def run_job(job_id: str) -> None:
        runner.run(str(job_id))


class Runner:
    """Runs the jobs of one worker process, each in a thread of its pool.

    name: of the worker, for people.
    """

    def __init__(
        self,
        name: str,
        shared: TrainerSettings,
        settings: WorkerSettings,
        records: Records,
        announcer: Announcer,
        metrics: TrainerMetrics,
    ) -> None:
        self._name, self._shared, self._settings = name, shared, settings
        self._records, self._announcer, self._metrics = records, announcer, metrics
        self._stopping = threading.Event()
        self._running: set[str] = set()

    @property
    def busy(self) -> int:
        """Jobs that run here now."""
        return len(self._running)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Training processes end after their step, and their jobs go back into the queue."""
        self._stopping.set()

    def run(self, job_id: str) -> None:
        """Returns when this worker is done with the job, one way or the other. Raises nothing."""
        if self.stopping:
            return  # the job is still queued, and the beat announces it again
        now = time.time()
        try:
            job = self._insist(lambda: self._records.update(
                job_id, lambda old: jobs.claimed(old, self._name, now)))  # fmt: skip
        except (jobs.Conflict, UnknownJob) as error:
            log(_LOGGER, logging.INFO, "not ours to run", job=job_id, why=str(error))
            return
        if job is None:
            return  # told to stop before Redis answered: the job is still queued
        self._running.add(job_id)
        self._metrics.running.set(self.busy)
        log(_LOGGER, logging.INFO, "job started", job=job_id, attempt=job.attempt)
        try:
            _Attempt(self, job).run()
        except Exception:
            # Left alone its lease runs out and it is tried again, so nothing is lost.
            log(_LOGGER, logging.ERROR, "the attempt failed unexpectedly", job=job_id)
        finally:
            self._running.discard(job_id)
            self._metrics.running.set(self.busy)

    def _insist(self, ask: Callable[[], T]) -> T | None:
        """Asks Redis until it answers; None if the worker is told to stop before."""
        while True:
            try:
                return ask()
            except RecordsUnavailable as error:
                log(_LOGGER, logging.WARNING, "Redis does not answer", why=str(error))
            if self._stopping.wait(_RETRY_SECONDS):
                return None


class _Attempt:
    """One training process and its record."""

    def __init__(self, runner: Runner, job: Job) -> None:
        self._runner, self._job = runner, job
        self._settings, self._metrics = runner._settings, runner._metrics
        self._progress: JobProgress | None = None
        self._epochs: list[Any] = []
        self._afresh: tuple[str, float] | None = None  # why, when
        self._final: dict[str, Any] = {}
        self._asked_to_stop = 0.0
        self._why_stopped = ""
        self._started = self._heard = time.monotonic()

    def run(self) -> None:
        job, shared = self._job, self._runner._shared
        spec = {
            "job": job.id,
            "parameters": asdict(job.parameters),
            "registry": str(shared.registry),
            "registry_cache": str(shared.registry_cache.folder),
            "registry_cache_bytes": shared.registry_cache.limit_bytes,
            "cache": str(shared.cache),
        }
        try:
            child = Child(shared.folder(job.id), spec)
        except OSError as error:
            text = f"the run folder {shared.folder(job.id)} cannot be used: {error.strerror}"
            self._end(JobState.FAILED, failure=JobFailure("STORAGE", text))
            return
        try:
            self._watch(child)
        except jobs.Superseded as error:
            log(_LOGGER, logging.WARNING, "lost the job to another worker", why=str(error))
            child.kill()
            child.close()
            return
        except BaseException:
            child.kill()
            child.close()
            raise
        self._conclude(child.close())

    def _watch(self, child: Child) -> None:
        """Until it ends. Raises Superseded."""
        next_beat = 0.0
        while not child.ended():
            for event in child.events(min(0.2, self._settings.heartbeat_seconds)):
                self._heard = time.monotonic()
                self._take(event, child)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._settings.heartbeat_seconds
                if self._beat().cancelling:
                    self._stop(child, "cancelled")
            self._look_at_clock(child, now)
        for event in child.events(0):
            self._take(event, child)

    def _take(self, event: dict[str, Any], child: Child) -> None:
        kind = event.pop("event", "")
        if kind == "progress":
            self._progress = JobProgress(**event)
            self._metrics.progressed(self._progress)
        elif kind == "afresh":
            self._epochs.clear()
            self._afresh = event["why"], time.time()
        elif kind == "epoch":
            self._epochs.append(event)
        elif kind == "may I publish":
            self._permit(child)
        elif kind in ("done", "refused", "failed", "stopped"):
            self._final = {"event": kind, **event}

    def _permit(self, child: Child) -> None:
        """From the moment that the record says so, a job can no longer be cancelled."""
        attempt = self._job.attempt
        try:
            said = self._runner._insist(lambda: self._runner._records.update(
                self._job.id, lambda old: jobs.committed(old, attempt)))  # fmt: skip
        except jobs.Conflict:
            self._stop(child, "cancelled")
            return
        if said is not None:
            child.allow_publishing()

    def _beat(self) -> Job:
        """A sign of life. While Redis is away training goes on: what is not told yet is told
        later, and the lease is not judged while nobody can renew it."""
        progress, epochs, afresh = self._progress, list(self._epochs), self._afresh

        def change(old: Job) -> Job:
            # A new revision each time: that is the sign.
            beaten = self._told(old, progress, epochs, afresh)
            return beaten if beaten != old else jobs.alive(old)

        try:
            told = self._runner._records.update(self._job.id, change)
        except RecordsUnavailable as error:
            log(_LOGGER, logging.WARNING, "Redis does not answer", why=str(error))
            return self._job
        self._job = told
        del self._epochs[: len(epochs)]
        self._afresh = None
        self._metrics.beaten()
        return told

    def _told(
        self, old: Job, progress: JobProgress | None, epochs: list[Any],
        afresh: tuple[str, float] | None,
    ) -> Job:  # fmt: skip
        """The record with what it does not know yet. Raises Superseded."""
        attempt = self._job.attempt
        known = jobs.afresh(old, attempt, *afresh) if afresh else old
        return jobs.beaten(known, attempt, progress, epochs)

    def _look_at_clock(self, child: Child, now: float) -> None:
        limits = self._settings
        if self._runner.stopping:
            self._stop(child, "the worker was told to stop")
        elif now - self._started > limits.max_seconds:
            self._stop(child, "timeout")
        elif now - self._heard > limits.stall_seconds:
            self._why_stopped = "stalled"
            child.kill()
        if self._asked_to_stop and now - self._asked_to_stop > limits.stop_seconds:
            child.kill()

    def _stop(self, child: Child, why: str) -> None:
        if not self._asked_to_stop:
            self._asked_to_stop, self._why_stopped = time.monotonic(), why
            child.ask_to_stop()

    def _conclude(self, how: str) -> None:
        """Tells the record how it ended."""
        final, kind = self._final, self._final.get("event", "")
        verdict = Verdict(**final["verdict"]) if final.get("verdict") else None
        figures = {"verdict": verdict, "metrics": final.get("metrics")}
        if kind in ("done", "refused"):
            state = JobState.DONE if kind == "done" else JobState.REFUSED
            self._end(state, version=final["version"], **figures)
        elif kind == "failed":
            failure = JobFailure(final["reason"], final["text"])
            # With a version if only what comes after publishing failed.
            version = final.get("version", "")
            self._end(JobState.FAILED, failure=failure, version=version, **figures)
        elif self._why_stopped == "cancelled":
            self._end(JobState.CANCELLED)
        elif self._why_stopped == "timeout":
            limit = self._settings.max_seconds
            text = f"it took longer than the {limit:g} s that this worker gives a job"
            self._end(JobState.FAILED, failure=JobFailure("TIMEOUT", text))
        elif self._runner.stopping:
            self._back(self._why_stopped or how, crashed=False)
        elif self._why_stopped == "stalled":
            self._back(f"no sign of progress for {self._settings.stall_seconds:g} s", crashed=True)
        else:
            self._back(how, crashed=True)

    def _back(self, why: str, *, crashed: bool) -> None:
        now, attempt, most = time.time(), self._job.attempt, self._settings.crashes
        self._tell(lambda old: jobs.requeued(old, attempt, why, now, crashed=crashed, most=most))
        if self._job.state is JobState.QUEUED:
            try:
                self._runner._announcer.announce(self._job)
            except RecordsUnavailable as error:
                log(_LOGGER, logging.WARNING, "announced later", job=self._job.id, why=str(error))

    def _end(self, state: JobState, **fields: Any) -> None:
        now, attempt, version = time.time(), self._job.attempt, self._job.version
        self._tell(lambda old: jobs.ended(old, attempt, state, now, **fields))
        if self._job.state is state:
            self._metrics.ended(self._job, now, published=self._job.version != version)

    def _tell(self, change: Callable[[Job], Job]) -> None:
        """The end of an attempt, after what the last beat did not tell."""
        progress, epochs, afresh = self._progress, list(self._epochs), self._afresh

        def last(old: Job) -> Job:
            return change(self._told(old, progress, epochs, afresh))

        try:
            told = self._runner._insist(lambda: self._runner._records.update(self._job.id, last))
        except jobs.Superseded as error:
            log(_LOGGER, logging.INFO, "told already, or no longer ours", why=str(error))
            return
        if told is None:
            # Redis is away and we have to go. What was done is on disk, and is not done again.
            log(_LOGGER, logging.WARNING, "the end could not be told", job=self._job.id)
            return
        self._job = told
        log(_LOGGER, logging.INFO, "job left", job=told.id, state=str(told.state))
