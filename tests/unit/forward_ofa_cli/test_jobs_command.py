"""What `forward-ofa jobs` prints of jobs whose names and texts hold anything."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from forward_ofa_api.trainer.v1 import trainer_pb2 as api
from forward_ofa_cli import jobs
from forward_ofa_cli.console import printable
from forward_ofa_cli.jobs_view import JobLines, list_table, show_job

NASTY = "/tmp/x[/red]:bomb:\x1b[31m\u202ey\\"
SHOWN = r"/tmp/x[/red]:bomb:\x1b[31m\u202ey" + "\\"


def nasty_job(state: int = api.JOB_STATE_FAILED, **fields) -> api.Job:
    parameters = api.JobParameters(data=NASTY, settings={NASTY: NASTY}, gate=NASTY)
    return api.Job(
        id="20260101-000000-00000000", state=state, parameters=parameters, created_ms=1,
        worker=NASTY, version=NASTY, verdict=api.Verdict(reason=NASTY),
        failure=api.JobFailure(reason="DATA", text=NASTY), metrics={NASTY: 0.5},
        progress=api.JobProgress(stage=NASTY), epochs=[api.Epoch(stage=NASTY)],
        events=[api.JobEvent(time_ms=1, text=NASTY)], **fields,
    )  # fmt: skip


class Answers:
    """A trainer that knows one job."""

    def __init__(self, job: api.Job) -> None:
        self.job = job

    def call(self, method: str, request):
        if method == "RollBackLabel":
            return api.RollBackLabelResponse(version=NASTY)
        if method == "ListJobs":
            return api.ListJobsResponse(jobs=[] if request.before_job_id else [self.job])
        return self

    def watch(self, request):
        yield self


@pytest.fixture
def answers(monkeypatch):
    found = Answers(nasty_job())
    monkeypatch.setattr(jobs, "_client", lambda context: found)
    monkeypatch.setenv("COLUMNS", "300")
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("show", "JOB"),
        ("watch", "JOB"),
        ("cancel", "JOB"),
        ("promote", NASTY, "--label", NASTY),
        ("rollback", "--label", NASTY),
    ],
)
def test_names_are_shown_and_not_obeyed(cli, answers, arguments):
    result = cli("jobs", *arguments)
    assert result.exit_code == (1 if arguments[0] == "watch" else 0), result.output
    assert "\x1b" not in result.output and "\u202e" not in result.output
    assert arguments[0] == "cancel" or SHOWN in result.output


def test_the_list_goes_on_after_a_short_page(cli, monkeypatch):
    class Pages:
        def call(self, method: str, request):
            first = int(request.before_job_id or 9) - 1
            return api.ListJobsResponse(
                jobs=[api.Job(id=str(n)) for n in range(first, 0, -1)][: min(3, request.limit)]
            )

    monkeypatch.setattr(jobs, "_client", lambda context: Pages())
    for limit, last in ((20, 1), (8, 1), (7, 2), (3, 6)):
        listed = json.loads(cli("jobs", "list", "--limit", limit, "--json").stdout)
        assert [job["id"] for job in listed] == [str(n) for n in range(8, last - 1, -1)]


def test_errors_are_shown_and_not_obeyed(cli):
    result = cli("evaluate", "--run-dir", NASTY)
    assert result.exit_code == 4
    assert SHOWN in result.stderr
    assert "\x1b" not in result.stderr and "\u202e" not in result.stderr


def test_the_line_that_moves_obeys_nothing():
    told = io.StringIO()
    out = Console(file=told, force_terminal=True, width=200, color_system=None)
    with JobLines(out) as lines:
        lines.update(nasty_job(api.JOB_STATE_RUNNING))
        out.print(lines._status.renderable)
    assert "\x1b[31m" not in told.getvalue()


def test_what_cannot_be_printed_is_written_out():
    assert printable("a\x00\n\x7f\x9b\u2028\udcffé漢") == r"a\x00\n\x7f\x9b\u2028\udcff" + "é漢"


@pytest.mark.parametrize("name", ["shop-2026-01.csv", "店.csv"])
def test_a_long_path_keeps_its_end(name):
    job = nasty_job()
    job.parameters.data = f"/very/long/{'folder/' * 40}{name}"
    told = io.StringIO()
    Console(file=told, width=110).print(list_table([job]))
    assert name in told.getvalue() and "…" in told.getvalue()
    assert all(len(line) <= 110 for line in told.getvalue().splitlines())


def test_one_job_is_shown_whole():
    job = nasty_job()
    job.parameters.data = f"/very/long/{'folder/' * 40}shop.csv"
    told = io.StringIO()
    show_job(Console(file=told, width=60), job)
    assert "…" not in told.getvalue()
    shown = "".join(line.strip() for line in told.getvalue().splitlines())
    assert job.parameters.data in shown
