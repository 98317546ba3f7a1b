"""How a job looks on a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.table import Column, Table

from forward_ofa_cli.console import Tail, duration, plain, say

if TYPE_CHECKING:
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api


def as_json(job: api.Job) -> dict[str, Any]:
    """With the API's names; enums by name."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(job, preserving_proto_field_name=True)


def state_of(job: api.Job) -> str:
    """As people write it."""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    state = api.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    return "cancelling" if job.cancelling else state


def list_table(jobs: Iterable[api.Job]) -> Table:
    """A row for each: id, state, data, time of submission, and the one thing to know about it."""
    where_it_is = Column("where it is", overflow="fold")
    table = Table(Column("job", no_wrap=True), "state", "data", "submitted", where_it_is)
    for job in jobs:
        submitted, where = moment(job.created_ms), plain(whereabouts(job))
        table.add_row(plain(job.id), state_of(job), Tail(job.parameters.data), submitted, where)
    return table


def whereabouts(job: api.Job) -> str:
    """Where it is, or how it ended."""
    if job.HasField("failure"):
        return f"{job.failure.reason}: {job.failure.text}"
    if job.version:
        return f"version {job.version}"
    if job.HasField("verdict"):
        return job.verdict.reason
    if job.started_ms and not job.ended_ms and job.HasField("progress"):
        return progress_line(job)
    return ""


def progress_line(job: api.Job) -> str:
    """Stage, steps, loss, speed and time left."""
    progress = job.progress
    if not progress.steps:
        return progress.stage
    parts = [f"{progress.stage} {progress.step}/{progress.steps}"]
    if progress.HasField("loss"):
        parts.append(f"loss {progress.loss:.3f}")
    if progress.steps_per_second:
        parts.append(f"{progress.steps_per_second:.1f} steps/s")
    if progress.eta_seconds:
        parts.append(f"{duration(progress.eta_seconds)} left in this stage")
    return "  ".join(parts)


def epoch_line(epoch: api.Epoch) -> str:
    """As `forward-ofa train` prints it."""
    best = "  best so far" if epoch.best else ""
    loss = f"  loss {epoch.loss:.3f}" if epoch.loss else ""
    return (
        f"{epoch.stage} epoch {epoch.epoch}  {duration(epoch.seconds)}{loss}  "
        f"validation NDCG@10 {epoch.ndcg:.4f}  Hit@10 {epoch.hit:.4f}{best}"
    )


def moment(milliseconds: int) -> str:
    """Local time, or nothing."""
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")


def show_job(out: Console, job: api.Job) -> None:
    """Everything about it."""
    columns = Column(no_wrap=True), Column(overflow="fold")
    table = Table(*columns, show_header=False, box=None, padding=(0, 2, 0, 0))
    parameters = job.parameters
    chosen = {**parameters.settings, **parameters.log}
    rows = {
        "job": job.id,
        "state": state_of(job),
        "data": parameters.data,
        "recipe": f"{parameters.recipe}, {parameters.backbone}, {parameters.system}",
        "settings": ", ".join(f"{name}={value}" for name, value in sorted(chosen.items())),
        "gate": parameters.gate,
        "submitted": moment(job.created_ms)
        + (f" by schedule {job.schedule}" if job.schedule else "")
        + (f", a retry of {job.retry_of}" if job.retry_of else ""),
        "started": moment(job.started_ms),
        "ended": moment(job.ended_ms),
        "worker": job.worker and f"{job.worker}, attempt {job.attempt}",
        "now": progress_line(job) if job.HasField("progress") and not job.ended_ms else "",
        "verdict": job.verdict.reason,
        "version": job.version,
        "failure": f"{job.failure.reason}: {job.failure.text}" if job.HasField("failure") else "",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, plain(value))
    out.print(table)
    for epoch in job.epochs:
        say(out, f"  {epoch_line(epoch)}")
    for name, figure in sorted(job.metrics.items()):
        say(out, f"  test {name} {figure:.4f}")
    for event in job.events:
        say(out, f"  {moment(event.time_ms)}  {event.text}")


class JobLines:
    """A line for each thing that happens; on a terminal also one that moves."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._status = out.status("")
        self._epochs, self._told = 0, 0

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def update(self, job: api.Job) -> None:
        """What is new since the last time."""
        for event in job.events:
            if event.time_ms > self._told:
                say(self._out, f"{moment(event.time_ms)}  {event.text}")
        self._told = max((event.time_ms for event in job.events), default=self._told)
        for epoch in job.epochs[self._epochs :]:
            say(self._out, f"  {epoch_line(epoch)}")
        self._epochs = len(job.epochs)
        line = progress_line(job) if job.HasField("progress") else ""
        self._status.update(plain(f"{state_of(job)}  {line}"))
