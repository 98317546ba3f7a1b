"""What can happen to a job: pure functions from one record to the next, and its JSON.

    QUEUED -> RUNNING -> DONE | REFUSED | FAILED | CANCELLED
       ^---------'  a worker was lost, or told to stop
       ^--------------------- FAILED | CANCELLED | REFUSED, by `resumed`

Whoever writes for an attempt says which one: after a lease ran out and another worker took
the job, the old one is told so by `Superseded` and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from services.ports import (
    Job,
    JobEvent,
    JobFailure,
    JobParameters,
    JobProgress,
    JobState,
    Verdict,
)

_MOST_EVENTS, _MOST_EPOCHS = 50, 500
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


class Superseded(Exception):
    """This attempt no longer has the job."""


class Conflict(Exception):
    """The job's state does not allow it. The text says why and what to do instead."""


def new_id(now: float) -> str:
    """Of a job and of the version that it will publish; sorts by time."""
    return f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def second_of(job_id: str) -> int:
    """When a job of this id was made, to the second. Raises ValueError for what is no such id."""
    with contextlib.suppress(ValueError):  # a thirteenth month
        if _ID.fullmatch(job_id):
            made = datetime.strptime(job_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
            return int(made.timestamp())
    raise ValueError(f"{job_id[:64]!r} is no job's id")


def asked_alike(kept: Job, job: Job) -> bool:
    """Whether a job that was kept is the one that is asked for again: a retry of the same job, or
    submitted with the same parameters."""
    if kept.retry_of or job.retry_of:
        return kept.retry_of == job.retry_of
    gates = (None, job.submitted_gate)
    same = replace(kept.parameters, gate=job.parameters.gate)  # resuming may have changed it
    return same == job.parameters and kept.submitted_gate in gates


def noted(job: Job, now: float, text: str) -> Job:
    """With one more line of history."""
    return replace(job, events=(*job.events, JobEvent(now, text))[-_MOST_EVENTS:])


def claimed(job: Job, worker: str, now: float) -> Job:
    """A worker takes it. Raises Conflict if it is not queued (its message came twice)."""
    if job.state is not JobState.QUEUED:
        raise Conflict(f"job {job.id} is {job.state}")
    attempt = job.attempt + 1
    taken = replace(
        job, state=JobState.RUNNING, attempt=attempt, worker=worker, progress=None,
        started=job.started or now,
    )  # fmt: skip
    return noted(taken, now, f"attempt {attempt} started by {worker}")


def beaten(job: Job, attempt: int, progress: JobProgress | None, epochs: list[Any]) -> Job:
    """A sign of life, with what is new. Raises Superseded."""
    _check(job, attempt)
    new = (*job.epochs, *(e for e in epochs if not _known(job, e)))
    crashes = 0 if len(new) > len(job.epochs) else job.crashes
    return replace(
        job, progress=progress or job.progress, epochs=new[-_MOST_EPOCHS:], crashes=crashes
    )


def afresh(job: Job, attempt: int, why: str, now: float) -> Job:
    """Its training starts again from nothing: epochs told before are of another run. Raises
    Superseded."""
    _check(job, attempt)
    return noted(replace(job, epochs=(), progress=None), now, why)


def alive(job: Job) -> Job:
    """The same, but different: a sign of life when there is nothing else to tell."""
    return replace(job, beats=job.beats + 1)


def committed(job: Job, attempt: int) -> Job:
    """From here on it is published. Raises Superseded, or Conflict if it is to be cancelled."""
    _check(job, attempt)
    if job.cancelling and not job.committed:
        raise Conflict("cancelled")
    return replace(job, committed=True)


def ended(
    job: Job,
    attempt: int,
    state: JobState,
    now: float,
    *,
    failure: JobFailure | None = None,
    verdict: Verdict | None = None,
    metrics: Mapping[str, Any] | None = None,
    version: str = "",
) -> Job:
    """Its attempt came to an end. Raises Superseded."""
    _check(job, attempt)
    done = replace(
        job, state=state, ended=now, worker="", cancelling=False, failure=failure,
        verdict=verdict or job.verdict, metrics=metrics or job.metrics,
        version=version or job.version,
    )  # fmt: skip
    if verdict is not None:
        done = noted(done, now, verdict.reason)
    return noted(done, now, f"{state}: {failure.text}" if failure else str(state))


def requeued(job: Job, attempt: int, why: str, now: float, *, crashed: bool, most: int) -> Job:
    """Its worker or training process is gone: back into the queue, or given up after `most`
    crashes in a row without a new epoch. Raises Superseded."""
    _check(job, attempt)
    crashes = job.crashes + 1 if crashed else job.crashes
    if job.cancelling and not job.committed:
        return ended(job, attempt, JobState.CANCELLED, now)
    if crashes >= most:
        text = (
            f"{why}; that was attempt {attempt}, and the last {crashes} did not get an epoch "
            "further. Look at the log in the run folder, free memory or use a smaller batch, then "
            f"`forward-ofa jobs resume {job.id}`"
        )
        failure = JobFailure("CRASHED", text)
        return ended(replace(job, crashes=crashes), attempt, JobState.FAILED, now, failure=failure)
    back = replace(job, state=JobState.QUEUED, queued=now, worker="", crashes=crashes)
    return noted(back, now, f"attempt {attempt}: {why}; queued again")


def cancelled(job: Job, now: float) -> Job:
    """Somebody wants it to stop. Raises Conflict if it is too late."""
    if not job.state.live:
        raise Conflict(f"job {job.id} has ended already: it is {job.state}")
    if job.committed:
        raise Conflict(f"job {job.id} is being published: roll the label back instead")
    if job.state is JobState.QUEUED:
        return noted(replace(job, state=JobState.CANCELLED, ended=now), now, "cancelled")
    return job if job.cancelling else noted(replace(job, cancelling=True), now, "to be cancelled")


def resumed(job: Job, gate: str, now: float) -> Job:
    """A failed, cancelled or refused job is queued again; what it has trained stays.

    gate: takes the place of its own; "": none. Raises Conflict for others.
    """
    if job.state not in (JobState.FAILED, JobState.CANCELLED, JobState.REFUSED):
        raise Conflict(
            f"job {job.id} is {job.state}: only a failed, cancelled or refused one can go on; "
            f"`forward-ofa jobs retry {job.id}` trains it anew"
        )
    again = replace(
        job, state=JobState.QUEUED, queued=now, ended=0.0, failure=None, cancelling=False,
        committed=False, crashes=0, verdict=None,
        parameters=replace(job.parameters, gate=gate or job.parameters.gate),
    )  # fmt: skip
    return noted(again, now, f"resumed with gate {gate}" if gate else "resumed")


def to_json(job: Job) -> str:
    """What `from_json` reads."""
    return json.dumps(dataclasses.asdict(job), separators=(",", ":"))


def from_json(text: str | bytes) -> Job:
    """Raises ValueError, KeyError or TypeError for what is no job."""
    raw = json.loads(text)
    for name, kind in (("progress", JobProgress), ("verdict", Verdict), ("failure", JobFailure)):
        if raw[name] is not None:
            raw[name] = kind(**raw[name])
    raw["parameters"] = JobParameters(**raw["parameters"])
    raw["state"] = JobState(raw["state"])
    raw["events"] = tuple(JobEvent(**event) for event in raw["events"])
    raw["epochs"] = tuple(raw["epochs"])
    return Job(**raw)


def _known(job: Job, record: Mapping[str, Any]) -> bool:
    """A resumed stage may tell its last epoch again."""
    key = (record.get("stage"), record.get("epoch"))
    return any((known.get("stage"), known.get("epoch")) == key for known in job.epochs)


def _check(job: Job, attempt: int) -> None:
    if job.state is not JobState.RUNNING or job.attempt != attempt:
        raise Superseded(f"job {job.id} is {job.state}, attempt {job.attempt}; not {attempt}'s")
