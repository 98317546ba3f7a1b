"""What Prometheus scrapes of workers and beat; the gRPC service has the series of all services."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from services.ports import Job, JobProgress, JobState
from services.runtime.metrics import build_info

_JOB_SECONDS = tuple(10.0 * 3**n for n in range(10))
_PREFIX = "forward_ofa_trainer_"


class TrainerMetrics:
    """The time series of a worker (`worker=True`) or of the beat."""

    def __init__(self, *, worker: bool) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build_info(self.registry)
        if worker:
            self._worker(self.registry)
        else:
            self._beat(self.registry)

    def _worker(self, r: CollectorRegistry) -> None:
        self.running = Gauge(f"{_PREFIX}jobs_running", "Jobs of this worker", registry=r)
        self._ended = Counter(
            f"{_PREFIX}jobs_ended", "Attempts that ended a job, by state and reason of failure",
            ["state", "reason"], registry=r,
        )  # fmt: skip
        self._seconds = Histogram(
            f"{_PREFIX}job_seconds", "From a job's first start to its end, by state", ["state"],
            buckets=_JOB_SECONDS, registry=r,
        )  # fmt: skip
        for state in (JobState.DONE, JobState.REFUSED, JobState.FAILED, JobState.CANCELLED):
            # From 0 on, or Prometheus would not see the first of each as an increase.
            if state is not JobState.FAILED:  # these have reasons
                self._ended.labels(str(state), "")
            self._seconds.labels(str(state))
        self._steps = Gauge(
            f"{_PREFIX}steps_per_second", "Optimiser steps of the job that was heard last",
            registry=r,
        )  # fmt: skip
        self._heartbeat = 0.0
        age = Gauge(
            f"{_PREFIX}heartbeat_age_seconds",
            "Since Redis took the last sign of life of a job of this worker; 0: it has none",
            registry=r,
        )
        age.set_function(self._heartbeat_age)
        self._margin = Gauge(
            f"{_PREFIX}gate_margin", "Metric of the last version less what was required", registry=r
        )
        self._judged = Gauge(
            f"{_PREFIX}gate_metric",
            "The gate's metric on the validation split, at the last gate: of the candidate, of the "
            "stable version (0: there was none), and what was required",
            ["of"],
            registry=r,
        )
        self._published = Counter(
            f"{_PREFIX}versions_published", "Versions that jobs of this worker published",
            registry=r,
        )  # fmt: skip

    def progressed(self, progress: JobProgress) -> None:
        """How fast it goes."""
        self._steps.set(progress.steps_per_second)

    def beaten(self) -> None:
        """Redis took a sign of life."""
        self._heartbeat = time.monotonic()

    def ended(self, job: Job, now: float, *, published: bool) -> None:
        """A job came to its end here. published: its version is new."""
        reason = job.failure.reason if job.failure else ""
        self._ended.labels(str(job.state), reason).inc()
        self._seconds.labels(str(job.state)).observe(max(0.0, now - job.started))
        if job.verdict is not None:
            self._margin.set(job.verdict.candidate - job.verdict.required)
            for of in ("candidate", "stable", "required"):
                self._judged.labels(of).set(getattr(job.verdict, of))
        if published:
            self._published.inc()

    def _heartbeat_age(self) -> float:
        return time.monotonic() - self._heartbeat if self.running._value.get() else 0.0

    def _beat(self, r: CollectorRegistry) -> None:
        self._states = Gauge(
            f"{_PREFIX}jobs", "Jobs on record, by state", ["state"], registry=r
        )  # fmt: skip
        self._age = Gauge(
            f"{_PREFIX}queue_age_seconds",
            "How long the oldest queued job has waited for a worker; 0: none waits",
            registry=r,
        )
        self._oldest_sign = Gauge(
            f"{_PREFIX}oldest_heartbeat_seconds",
            "Since the last sign of life of the running job that is silent longest",
            registry=r,
        )
        self._no_progress = Gauge(
            f"{_PREFIX}oldest_progress_seconds",
            "Since the running job that stands still longest went a step or a stage further",
            registry=r,
        )
        self._last = Gauge(
            f"{_PREFIX}last_ended_timestamp_seconds",
            "When the newest job on record ended in this state; 0: none did",
            ["state"],
            registry=r,
        )
        self.lost = Counter(
            f"{_PREFIX}jobs_lost", "Running jobs whose worker went silent", registry=r
        )
        self.announced = Counter(
            f"{_PREFIX}jobs_announced_again", "Queued jobs whose message was gone", registry=r
        )
        self.scheduled = Counter(
            f"{_PREFIX}jobs_scheduled", "Jobs submitted by a schedule", ["schedule"], registry=r
        )
        self.schedule_failures = Counter(
            f"{_PREFIX}schedule_failures", "Looks of a schedule that failed", ["schedule"],
            registry=r,
        )  # fmt: skip
        self.reachable = Gauge(f"{_PREFIX}redis_reachable", "1: Redis answers", registry=r)

    def remembered(self, jobs: Sequence[Job]) -> None:
        """All ended jobs on record."""
        states = [state for state in JobState if not state.live]
        self._count(jobs, states)
        for state in states:
            last = max((job.ended for job in jobs if job.state is state), default=0.0)
            self._last.labels(str(state)).set(last)

    def _count(self, jobs: Sequence[Job], states: Sequence[JobState]) -> None:
        tally = Tally(job.state for job in jobs)
        for state in states:
            self._states.labels(str(state)).set(tally[state])

    def looked(
        self, live: Sequence[Job], now: float, oldest_sign: float, no_progress: float
    ) -> None:
        """The queue as it is."""
        self._count(live, [state for state in JobState if state.live])
        waits = [now - job.queued for job in live if job.state is JobState.QUEUED]
        self._age.set(max(waits, default=0.0))
        self._oldest_sign.set(oldest_sign)
        self._no_progress.set(no_progress)
