"""TrainerService over gRPC: convert, call, convert back."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc

from forward_ofa_api.trainer.v1 import trainer_pb2 as api
from forward_ofa_api.trainer.v1 import trainer_pb2_grpc
from services.errors import Fault, Reason
from services.ports import Job, JobParameters, JobState, Trainer

SERVICE = api.DESCRIPTOR.services_by_name["TrainerService"].full_name
_Context = grpc.aio.ServicerContext[Any, Any]
_STATES = {state: api.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState}
_BY_NUMBER = {number: state for state, number in _STATES.items()}
_TEXTS = ("recipe", "backbone", "system", "device", "gate")
_LONGEST = 4096
_MOST_PAIRS = 200
# Below the 4 MiB that gRPC's clients take unless told otherwise.
_PAGE_BYTES = 3 * 2**20


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """See trainer.proto."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    async def SubmitJob(
        self, request: api.SubmitJobRequest, context: _Context
    ) -> api.SubmitJobResponse:
        parameters = read_parameters(request.parameters)
        job = await self._trainer.submit(parameters, request.submission_id)
        return api.SubmitJobResponse(job=job_message(job))

    async def GetJob(self, request: api.GetJobRequest, context: _Context) -> api.GetJobResponse:
        return api.GetJobResponse(job=job_message(await self._trainer.get(request.job_id)))

    async def ListJobs(
        self, request: api.ListJobsRequest, context: _Context
    ) -> api.ListJobsResponse:
        try:
            states = [_BY_NUMBER[number] for number in request.states]
        except KeyError as error:
            raise Fault(Reason.UNKNOWN_JOB_STATE, state=error) from error
        found = await self._trainer.page(states, request.limit, request.before_job_id)
        return _list_message(found)

    async def WatchJob(
        self, request: api.WatchJobRequest, context: _Context
    ) -> AsyncGenerator[api.WatchJobResponse, None]:
        async for job in self._trainer.watch(request.job_id):
            yield api.WatchJobResponse(job=job_message(job))

    async def CancelJob(
        self, request: api.CancelJobRequest, context: _Context
    ) -> api.CancelJobResponse:
        return api.CancelJobResponse(job=job_message(await self._trainer.cancel(request.job_id)))

    async def ResumeJob(
        self, request: api.ResumeJobRequest, context: _Context
    ) -> api.ResumeJobResponse:
        job = await self._trainer.resume(request.job_id, request.gate)
        return api.ResumeJobResponse(job=job_message(job))

    async def RetryJob(
        self, request: api.RetryJobRequest, context: _Context
    ) -> api.RetryJobResponse:
        job = await self._trainer.retry(request.job_id, request.submission_id)
        return api.RetryJobResponse(job=job_message(job))

    async def PromoteVersion(
        self, request: api.PromoteVersionRequest, context: _Context
    ) -> api.PromoteVersionResponse:
        await self._trainer.label(request.label, request.version, request.percent)
        return api.PromoteVersionResponse()

    async def RollBackLabel(
        self, request: api.RollBackLabelRequest, context: _Context
    ) -> api.RollBackLabelResponse:
        return api.RollBackLabelResponse(version=await self._trainer.roll_back(request.label))


def read_parameters(message: api.JobParameters) -> JobParameters:
    """What is left out has its default; settings and gate lose the blanks around them. Raises Fault
    TOO_LARGE, and BAD_JOB for a setting given twice; other sense is checked later."""
    for given_map in (message.log, message.settings):
        if len(given_map) > _MOST_PAIRS:
            raise Fault(Reason.TOO_LARGE, field="a map of parameters", limit=_MOST_PAIRS)
    given = {name: getattr(message, name) for name in _TEXTS if getattr(message, name)}
    pairs = (*message.log.items(), *message.settings.items())
    texts = (message.data, message.label, *given.values(), *itertools.chain(*pairs))
    if max(map(len, texts)) > _LONGEST:
        raise Fault(Reason.TOO_LARGE, field="a parameter", limit=_LONGEST)
    if "gate" in given:
        given["gate"] = given["gate"].strip()
    settings = {name.strip(): value.strip() for name, value in message.settings.items()}
    if len(settings) < len(message.settings):
        raise Fault(Reason.BAD_JOB, problem="settings differ only by blanks around their names")
    return JobParameters(
        data=message.data,
        log=dict(message.log),
        settings=settings,
        publish=not message.no_publish,
        label=message.label,
        percent=message.percent,
        **given,
    )


def job_message(job: Job, *, whole: bool = True) -> api.Job:
    """whole: with epochs and events."""
    message = api.Job(
        id=job.id,
        state=_STATES[job.state],
        parameters=_parameters_message(job.parameters),
        revision=job.revision,
        created_ms=_ms(job.created),
        queued_ms=_ms(job.queued),
        started_ms=_ms(job.started),
        ended_ms=_ms(job.ended),
        attempt=job.attempt,
        worker=job.worker,
        cancelling=job.cancelling,
        committed=job.committed,
        metrics=dict(job.metrics),
        version=job.version,
        schedule=job.schedule,
        retry_of=job.retry_of,
    )
    if (progress := job.progress) is not None:
        message.progress.CopyFrom(
            api.JobProgress(
                stage=progress.stage,
                step=progress.step,
                steps=progress.steps,
                loss=progress.loss,
                steps_per_second=progress.steps_per_second,
                eta_seconds=progress.eta_seconds,
            )
        )
    if (verdict := job.verdict) is not None:
        message.verdict.CopyFrom(api.Verdict(**vars(verdict)))
    if (failure := job.failure) is not None:
        message.failure.CopyFrom(api.JobFailure(reason=failure.reason, text=failure.text))
    if whole:
        message.epochs.extend(_epoch_message(record) for record in job.epochs)
        message.events.extend(api.JobEvent(time_ms=_ms(e.time), text=e.text) for e in job.events)
    return message


def _list_message(found: Sequence[Job]) -> api.ListJobsResponse:
    """The first of them, at least one, that an ordinary client can read."""
    answer, left = api.ListJobsResponse(), _PAGE_BYTES
    for job in found:
        message = job_message(job, whole=False)
        left -= message.ByteSize()
        if left < 0 and answer.jobs:
            break
        answer.jobs.append(message)
    return answer


def _parameters_message(parameters: JobParameters) -> api.JobParameters:
    fields = dict(vars(parameters))
    fields["no_publish"] = not fields.pop("publish")
    return api.JobParameters(**fields)


def _epoch_message(record: Any) -> api.Epoch:
    return api.Epoch(
        stage=record["stage"],
        epoch=record["epoch"],
        loss=record.get("loss", 0.0),
        seconds=record["seconds"],
        ndcg=record.get("ndcg@10", 0.0),
        hit=record.get("hit@10", 0.0),
        best=record["best"],
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
