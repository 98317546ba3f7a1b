"""What callers can do with jobs, behind `ports.Trainer`: check, write down, announce."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from services.errors import Fault, Reason
from services.ports import Job, JobParameters, JobState
from services.registry.contract import Registry, RegistryError
from services.runtime.logs import log
from services.trainer import jobs
from services.trainer.celery_app import Announcer
from services.trainer.checking import Checks
from services.trainer.gate import parse_gate
from services.trainer.records import Records, RecordsUnavailable, TooManyJobs, UnknownJob
from services.trainer.settings import TrainerSettings

_LOGGER = logging.getLogger(__name__)
_WATCH_SECONDS = 0.3
_MOST_LISTED = 500
_SUBMISSION = re.compile(r"[A-Za-z0-9_-]{8,64}")
T = TypeVar("T")


class LocalTrainer:
    """Keeps `ports.Trainer` on top of the records; workers do the rest."""

    def __init__(
        self, settings: TrainerSettings, records: Records, announcer: Announcer, registry: Registry
    ) -> None:
        self._settings, self._records = settings, records
        self._announcer, self._registry = announcer, registry
        self._checks = Checks(settings)

    async def submit(self, parameters: JobParameters, submission: str = "") -> Job:
        """Raises Fault BAD_JOB, UNCHECKED_JOB, TOO_MANY_JOBS or QUEUE_UNAVAILABLE; nothing is
        queued then."""
        _check_submission(submission)
        await self._checks.check(parameters)
        return await self._ask(lambda: self.enqueue(parameters, submission=submission))

    def enqueue(
        self, parameters: JobParameters, *, submission: str = "", schedule: str = "",
        rows: int = 0, retry_of: str = "",
    ) -> Job:  # fmt: skip
        """A new job of checked parameters; blocking. Raises RecordsUnavailable, TooManyJobs,
        Fault BAD_JOB for the submission id of another job (see `jobs.asked_alike`)."""
        now = time.time()
        job = Job(
            jobs.new_id(now), parameters, now, queued=now, submission=submission,
            schedule=schedule, rows=rows, retry_of=retry_of, submitted_gate=parameters.gate,
        )  # fmt: skip
        kept = self._records.add(jobs.noted(job, now, "submitted"), self._settings.max_jobs)
        if kept.id == job.id:
            self._announce(kept)
        elif submission and not jobs.asked_alike(kept, job):
            raise Fault(
                Reason.BAD_JOB,
                problem=f"job {kept.id} has this submission id, and is another one: give another",
            )
        return kept

    def _announce(self, job: Job) -> None:
        try:
            self._announcer.announce(job)
        except RecordsUnavailable as error:
            # It is written down, so the beat announces it.
            log(_LOGGER, logging.WARNING, "announced later", job=job.id, why=str(error))

    async def get(self, job_id: str) -> Job:
        """Raises Fault UNKNOWN_JOB or QUEUE_UNAVAILABLE."""
        return await self._ask(lambda: self._records.get(job_id))

    async def page(
        self, states: Sequence[JobState] = (), limit: int = 50, before: str = ""
    ) -> Sequence[Job]:
        """Raises Fault BAD_PAGE or QUEUE_UNAVAILABLE. limit: 0 or too many means _MOST_LISTED."""
        try:
            if before:
                jobs.second_of(before)
        except ValueError as error:
            raise Fault(Reason.BAD_PAGE, problem=error) from error
        count = min(limit or _MOST_LISTED, _MOST_LISTED)
        return await self._ask(lambda: self._records.page(states, count, before))

    async def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        """Raises Fault UNKNOWN_JOB or QUEUE_UNAVAILABLE."""
        revision = -1
        while True:
            job = await self.get(job_id)
            if job.revision != revision:
                revision = job.revision
                yield job
            if not job.state.live:
                return
            await asyncio.sleep(_WATCH_SECONDS)

    async def cancel(self, job_id: str) -> Job:
        """Raises Fault UNKNOWN_JOB, JOB_STATE or QUEUE_UNAVAILABLE."""
        now = time.time()
        return await self._ask(
            lambda: self._records.update(job_id, lambda job: jobs.cancelled(job, now))
        )

    async def resume(self, job_id: str, gate: str = "") -> Job:
        """Raises Fault UNKNOWN_JOB, JOB_STATE, BAD_JOB or QUEUE_UNAVAILABLE."""
        now = time.time()
        try:
            if gate:
                parse_gate(gate)
        except ValueError as error:
            raise Fault(Reason.BAD_JOB, problem=error) from error

        def work() -> Job:
            job = self._records.update(job_id, lambda job: jobs.resumed(job, gate.strip(), now))
            self._announce(job)
            return job

        return await self._ask(work)

    async def retry(self, job_id: str, submission: str = "") -> Job:
        """Raises Fault as `submit`, and UNKNOWN_JOB or JOB_STATE."""
        _check_submission(submission)
        old = await self.get(job_id)
        if old.state.live:
            raise Fault(Reason.JOB_STATE, problem=f"job {job_id} is {old.state}: cancel it first")
        await self._checks.check(old.parameters)
        return await self._ask(
            lambda: self.enqueue(old.parameters, submission=submission, retry_of=old.id)
        )

    async def label(self, label: str, version: str, percent: float) -> None:
        """Raises Fault REGISTRY_REFUSED or CORRUPT_VERSION."""
        try:
            await self._ask(lambda: self._registry.label(label, version, percent))
        except Fault as fault:
            if fault.reason is not Reason.UNKNOWN_VERSION:
                raise
            # Its text is for devices: of what is served.
            problem = f"the registry has no version {version[:64]!r}"
            raise Fault(Reason.REGISTRY_REFUSED, problem=problem) from fault
        log(_LOGGER, logging.INFO, "label moved", label=label, version=version)

    async def roll_back(self, label: str) -> str:
        """Raises Fault REGISTRY_REFUSED or CORRUPT_VERSION."""
        pointing = await self._ask(lambda: self._registry.rollback(label))
        log(_LOGGER, logging.INFO, "label rolled back", label=label, version=pointing.version)
        return pointing.version

    async def _ask(self, work: Callable[[], T]) -> T:
        """Blocking work in a thread, with its failures as Faults."""
        try:
            return await asyncio.to_thread(work)
        except RecordsUnavailable as error:
            raise Fault(Reason.QUEUE_UNAVAILABLE, detail=str(error)) from error
        except UnknownJob as error:
            raise Fault(Reason.UNKNOWN_JOB, job=repr(str(error)[:64])) from error
        except TooManyJobs as error:
            raise Fault(Reason.TOO_MANY_JOBS, limit=self._settings.max_jobs) from error
        except jobs.Conflict as error:
            raise Fault(Reason.JOB_STATE, problem=error) from error
        except RegistryError as error:
            raise Fault(Reason.REGISTRY_REFUSED, problem=error) from error


def _check_submission(submission: str) -> None:
    if submission and not _SUBMISSION.fullmatch(submission):
        raise Fault(Reason.BAD_JOB, problem="a submission id is 8 to 64 of A-Z a-z 0-9 _ -")
