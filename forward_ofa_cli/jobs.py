"""`forward-ofa jobs`: submit, list, show, watch, cancel, resume, retry, promote, roll back.

All of it goes to the trainer's gRPC service and not to Redis: a user needs one address and a
token, and neither the password of the queue nor the log's packages.
"""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_ofa_cli.console import console, say
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.jobs_view import JobLines, list_table, show_job, state_of
from forward_ofa_cli.jobs_view import as_json as _plain
from forward_ofa_cli.pairs import pairs
from forward_ofa_cli.trainer_client import DEFAULT_SERVER, Client, Connection

if TYPE_CHECKING:
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

app = typer.Typer(no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="JOB", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Wait = Annotated[bool, typer.Option("--watch", help="Watch it until it has ended.")]
_STATES = ("queued", "running", "done", "refused", "failed", "cancelled")


@app.callback()
def connect(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            help=f"HOST:PORT of the trainer; left out: $FORWARD_OFA_TRAINER or {DEFAULT_SERVER}."
        ),
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities to trust: TLS.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with your token.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file, for a trainer that asks for one.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file: its private key.")] = None,
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Plain text to another machine.")
    ] = False,
) -> None:
    """Training jobs: submit, follow, stop, publish. `make trainer` runs what is needed.

    Example: `forward-ofa jobs submit --data ml-100k --label canary --percent 5 --watch`
    """
    context.obj = Connection(
        server, root_certificates, token_file, certificate, key, allow_insecure
    )


def _client(context: typer.Context) -> Client:
    client = Client(context.obj)
    context.call_on_close(client.close)
    return client


@app.command()
def submit(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(help="A file or folder as the trainer sees it, ml-100k, ml-1m, or synthetic."),
    ],
    recipe: Annotated[str, typer.Option(help="default, paper or quick.")] = "default",
    backbone: Annotated[str, typer.Option(help="sasrec or nextitnet.")] = "sasrec",
    system: Annotated[str, typer.Option(help="What to train.")] = "forward-ofa",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A value of the configuration, such as device_rec.epochs=3; again for others.",
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="NAME=VALUE",
            help="Columns, filter and split, as the options of train: user_column, min_user, "
            "split, ...",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    gate: Annotated[
        str,
        typer.Option(
            help="Against stable's validation NDCG@10 on this log: -1%, +2%, +0.002, "
            "'hit@10 -1%', or off."
        ),
    ] = "-1%",
    label: Annotated[
        str, typer.Option(help="Points at the version once it is published, such as canary.")
    ] = "",
    percent: Annotated[float, typer.Option(help="Of the sessions, for a canary.")] = 0.0,
    no_publish: Annotated[bool, typer.Option("--no-publish", help="Only train.")] = False,
    submission: Annotated[
        str | None,
        typer.Option(help="Your own id, of 8 to 64 characters: sent again, it stays one job."),
    ] = None,
    watch: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Check a job and queue it; it is published if it passes its gate.

    Example: `forward-ofa jobs submit --data /data/shop --set device_rec.epochs=3 --gate +1%`
    """
    from forward_ofa.data import user_path
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    given = {"recipe": recipe, "backbone": backbone, "system": system, "gate": gate}
    for name, text in given.items():
        if not text:  # or the service would take its default
            raise CommandError(f"--{name} is empty: leave it out, or say what", Exit.USAGE)
    path = user_path(data)
    parameters = api.JobParameters(
        data=str(path.resolve()) if path.exists() else data,
        recipe=recipe,
        backbone=backbone,
        system=system,
        settings=pairs("--set", setting),
        log=pairs("--log", log),
        device=device,
        gate=gate,
        label=label,
        percent=percent,
        no_publish=no_publish,
    )
    if submission is not None and not re.fullmatch("[A-Za-z0-9_-]{8,64}", submission):
        raise CommandError(
            f"--submission is 8 to 64 of A-Z a-z 0-9 _ -, not {submission[:70]!r}", Exit.USAGE
        )
    # An id always, so that a lost answer does not become a second job.
    chosen = secrets.token_hex(16) if submission is None else submission
    request = api.SubmitJobRequest(parameters=parameters, submission_id=chosen)
    client = _client(context)
    _done(client, client.call("SubmitJob", request).job, watch, as_json)


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[
        list[str] | None, typer.Option(help=f"Only {', '.join(_STATES)}; again for more.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Jobs at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first. Example: `forward-ofa jobs list --state running --state queued`"""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    unknown = [name for name in state or () if name not in _STATES]
    if unknown:
        raise CommandError(f"--state is one of {', '.join(_STATES)}", Exit.USAGE)
    states = [api.JobState.Value(f"JOB_STATE_{name.upper()}") for name in state or ()]
    found = _listed(_client(context), states, limit)
    if as_json:
        typer.echo(json.dumps([_plain(job) for job in found], indent=2))
        return
    out = console()
    if not found:
        out.print("No such job. Submit one: forward-ofa jobs submit --data LOG")
        return
    out.print(list_table(found))


@app.command()
def show(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """One job with its epochs, verdict and history. Example: `forward-ofa jobs show JOB`"""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    found = _client(context).call("GetJob", api.GetJobRequest(job_id=job)).job
    if as_json:
        typer.echo(json.dumps(_plain(found), indent=2))
    else:
        show_job(console(), found)


@app.command()
def watch(context: typer.Context, job: JobId) -> None:
    """Follow a job until it has ended; Ctrl-C ends the watching, not the job.

    The exit code is 0 for a job that is done or refused, else 1. Example: `forward-ofa jobs watch
    JOB`
    """
    _watch(_client(context), job)


@app.command()
def cancel(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Stop a job: at once if it waits, after its present step if it runs."""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    client = _client(context)
    _done(client, client.call("CancelJob", api.CancelJobRequest(job_id=job)).job, False, as_json)


@app.command()
def resume(
    context: typer.Context,
    job: JobId,
    gate: Annotated[
        str, typer.Option(help="In place of its own; `off` publishes what was refused.")
    ] = "",
    watch: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Let a failed, cancelled or refused job go on from where it was."""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    client = _client(context)
    request = api.ResumeJobRequest(job_id=job, gate=gate)
    _done(client, client.call("ResumeJob", request).job, watch, as_json)


@app.command()
def retry(context: typer.Context, job: JobId, watch: Wait = False, as_json: AsJson = False) -> None:
    """Train an ended job's parameters anew, as a new job."""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    client = _client(context)
    request = api.RetryJobRequest(job_id=job, submission_id=secrets.token_hex(16))
    _done(client, client.call("RetryJob", request).job, watch, as_json)


@app.command()
def promote(
    context: typer.Context,
    version: Annotated[str, typer.Argument(metavar="VERSION", show_default=False)],
    label: Annotated[str, typer.Option(help="Which label is to point at it.")] = "stable",
    percent: Annotated[float, typer.Option(help="Of the sessions, for a canary.")] = 0.0,
) -> None:
    """Let a label point at a version. Example: `forward-ofa jobs promote VERSION`"""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    request = api.PromoteVersionRequest(version=version, label=label, percent=percent)
    _client(context).call("PromoteVersion", request)
    say(console(), f"Label {label} points at {version}.")


@app.command()
def rollback(
    context: typer.Context,
    label: Annotated[str, typer.Option(help="Which label.")] = "stable",
) -> None:
    """Let a label point where it pointed before. Example: `forward-ofa jobs rollback`"""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    answer = _client(context).call("RollBackLabel", api.RollBackLabelRequest(label=label))
    say(console(), f"Label {label} points at {answer.version} again.")


def _listed(client: Client, states: list[api.JobState.ValueType], limit: int) -> list[api.Job]:
    """The newest ones; an answer may hold fewer than it was asked for, and more follow."""
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    found: list[api.Job] = []
    while len(found) < limit:
        before = found[-1].id if found else ""
        request = api.ListJobsRequest(
            states=states, limit=limit - len(found), before_job_id=before
        )  # fmt: skip
        page = client.call("ListJobs", request).jobs
        if not page:
            break
        found += page
    return found


def _done(client: Client, job: api.Job, watch: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_plain(job), indent=2))
    elif not watch:
        out = console()
        say(out, f"Job {job.id}: {state_of(job)}")
        say(out, f"Follow it: forward-ofa jobs watch {job.id}")
    if watch:
        _watch(client, job.id, quiet=as_json)


def _watch(client: Client, job_id: str, *, quiet: bool = False) -> None:
    from forward_ofa_api.trainer.v1 import trainer_pb2 as api

    job = None
    with JobLines(console(stderr=quiet)) as lines:
        for answer in client.watch(api.WatchJobRequest(job_id=job_id)):
            job = answer.job
            lines.update(job)
    if job is not None and job.state in (api.JOB_STATE_FAILED, api.JOB_STATE_CANCELLED):
        raise typer.Exit(Exit.FAILED)
