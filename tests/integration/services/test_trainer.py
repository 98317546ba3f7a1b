"""Jobs as a user has them: `forward-ofa trainer up`, `forward-ofa jobs`, real processes."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from forward_ofa_api.trainer.v1 import trainer_pb2 as api
from forward_ofa_cli.errors import Exit
from forward_ofa_cli.main import app
from services.errors import Reason
from services.registry.files import FileRegistry
from tests.support.serving import fault_of
from tests.support.trainer import TINY, refused_up, trainer


def jobs_command(running, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["jobs", "--server", running.ready["address"], *arguments])


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with trainer(tmp_path_factory.mktemp("trainer"), "--slots", "2") as started:
        yield started


def test_a_job_is_watched_until_its_version_is_published(running):
    submitted = jobs_command(
        running, "submit", "--data", str(running.log), "--recipe", "quick", "--label", "canary",
        "--percent", "5", "--set", "method.backbone.blocks=3", "--set", "method.backbone.hidden=16",
        "--set", "candidates=20", "--watch",
    )  # fmt: skip
    assert submitted.exit_code == 0, submitted.stdout + submitted.stderr
    assert "validation NDCG@10" in submitted.stdout
    assert "no version is labelled stable" in submitted.stdout
    (listed,) = json.loads(jobs_command(running, "list", "--json").stdout)
    job = running.job(listed["id"])
    assert (job.state, job.version, job.attempt) == (api.JOB_STATE_DONE, job.id, 1)
    assert {epoch.stage for epoch in job.epochs} == {"Foundation", "DeviceRec", "Forward-OFA"}
    assert job.metrics["forward-ofa/ndcg@10"] >= 0
    registry = FileRegistry(running.registry)
    registry.open(job.version).verify()
    pointer = registry.pointer("canary")
    assert pointer is not None and (pointer.version, pointer.percent) == (job.version, 5.0)
    assert jobs_command(running, "promote", job.version).exit_code == 0
    assert registry.current() == job.version
    shown = jobs_command(running, "show", job.id).stdout
    assert "test forward-ofa/ndcg@10" in shown and "attempt 1 started" in shown


def test_a_label_that_cannot_be_moved_fails_the_job_but_not_its_version(running):
    in_the_way = running.registry / "labels" / "zz"
    in_the_way.mkdir(parents=True)
    job = running.ended(running.submit(label="zz", percent=5))
    assert (job.state, job.failure.reason) == (api.JOB_STATE_FAILED, "STORAGE"), job
    assert job.version == job.id and job.verdict.passed and job.metrics
    FileRegistry(running.registry).open(job.version).verify()
    assert f"version {job.id} is published, but the label zz was not moved" in job.failure.text
    assert f"{in_the_way}: Is a directory" in job.failure.text and ".zz-" not in job.failure.text
    assert f"`forward-ofa jobs promote {job.id} --label zz --percent 5`" in job.failure.text
    in_the_way.rmdir()
    running.stub.ResumeJob(api.ResumeJobRequest(job_id=job.id))
    resumed = running.ended(job.id)
    assert (resumed.state, resumed.version) == (api.JOB_STATE_DONE, job.id), resumed
    assert resumed.verdict.passed and len(resumed.epochs) == len(job.epochs)
    assert FileRegistry(running.registry).current("zz") == job.id


def test_a_second_up_in_a_home_is_refused_and_the_first_goes_on(running):
    before = {part: running.pids(part) for part in ("redis", "serve", "beat", "worker")}
    second = refused_up(running.home.parent)
    assert (second.returncode, second.stdout) == (2, ""), second.stderr
    assert f"process {running.process.pid} on " in second.stderr
    assert "give this one another --home" in second.stderr
    assert {part: running.pids(part) for part in before} == before and all(before.values())
    assert all((running.home / f"{part}.json").exists() for part in ("serve", "beat", "worker"))
    assert running.stub.ListJobs(api.ListJobsRequest(), timeout=10) is not None


def test_up_with_schedules_that_make_no_sense_starts_nothing(tmp_path: Path):
    schedules = tmp_path / "schedules.toml"
    schedules.write_text('[[schedule]]\nname = "shop"\n')
    told = refused_up(tmp_path, "--schedules", str(schedules))
    assert (told.returncode, told.stdout) == (2, ""), told.stderr
    assert told.stderr.strip() == f"error: {schedules}: shop lacks 'job'"
    assert not (tmp_path / "home" / "redis").exists()


def test_up_ends_if_a_part_cannot_work(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = refused_up(tmp_path, "--listen", address)
    assert told.returncode == 2, told.stderr
    assert address in told.stderr
    assert "error: serve cannot work as it is configured" in told.stderr.splitlines()[-1]
    assert told.stderr.count("is started again") == 1  # the ports of one that was killed get free
    ended = [line for line in told.stderr.splitlines() if '"message": "ended"' in line]
    assert len(ended) == 2 and not (tmp_path / "home" / "redis" / "redis.sock").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("submit", "--data", "synthetic", "--recipe", "none"), Exit.USAGE, "unknown recipe"),
        (("submit", "--data", "/nowhere"), Exit.USAGE, "neither a file or folder"),
        (("submit", "--data", ""), Exit.BAD_DATA, "path is empty"),
        (("submit", "--data", "~nobody-here/log"), Exit.BAD_DATA, "Check the name after ~"),
        (("submit", "--data", "synthetic", "--gate", ""), Exit.USAGE, "--gate is empty"),
        (("submit", "--data", "synthetic", "--set", "epochs"), Exit.USAGE, "NAME=VALUE"),
        (("submit", "--data", "synthetic", "--gate", "x"), Exit.USAGE, "use off, a share"),
        (("show", "none"), Exit.FAILED, "there is no job 'none'"),
        (("promote", "none"), Exit.BAD_VERSION, "none"),
        (("rollback", "--label", "none"), Exit.BAD_VERSION, "there is no label"),
        (("list", "--state", "odd"), Exit.USAGE, "--state is one of"),
    ],
)
def test_mistakes_are_told_in_one_line(running, arguments, code, text):
    before = len(running.stub.ListJobs(api.ListJobsRequest()).jobs)
    told = jobs_command(running, *arguments)
    assert (told.exit_code, told.stdout) == (code, "")
    assert text in told.stderr and len(told.stderr.strip().splitlines()) == 1
    assert len(running.stub.ListJobs(api.ListJobsRequest()).jobs) == before


def test_one_submission_is_one_job_also_when_its_answer_was_lost(running):
    request = api.SubmitJobRequest(
        parameters=api.JobParameters(data="/nowhere"), submission_id="0123456789abcdef"
    )
    with pytest.raises(grpc.RpcError) as raised:
        running.stub.SubmitJob(request)
    assert fault_of(raised.value).reason is Reason.BAD_JOB
    request.parameters.data = str(running.log)
    request.parameters.recipe = "quick"
    first, again = (running.stub.SubmitJob(request).job.id for _ in range(2))
    assert first == again
    cancelled = running.stub.CancelJob(api.CancelJobRequest(job_id=first)).job
    assert cancelled.cancelling or cancelled.state == api.JOB_STATE_CANCELLED
    assert running.ended(first).state == api.JOB_STATE_CANCELLED
    with pytest.raises(grpc.RpcError) as raised:
        running.stub.CancelJob(api.CancelJobRequest(job_id=first))
    assert fault_of(raised.value).reason is Reason.JOB_STATE


@pytest.mark.slow
def test_what_goes_wrong_is_the_jobs_reason_and_nothing_is_published(running, tmp_path: Path):
    versions = len(FileRegistry(running.registry).versions())
    cut = tmp_path / "cut.csv"
    whole = running.log.read_text()
    cut.write_text(whole)
    diverging = running.submit(settings={"device_rec.learning_rate": "1e30"})
    absent = running.submit(device="cuda")
    failed = {"TRAINING": (diverging, "learning-rate")}
    try:
        import torch

        if not torch.cuda.is_available():
            failed["DEVICE"] = (absent, "no GPU")
    finally:
        running.ended(absent), running.ended(diverging)
    # Both slots are busy until the log is cut: it was whole when it was checked.
    blocking = [running.submit(settings={"training.epochs": "5000"}) for _ in range(2)]
    damaged = running.submit(data=str(cut))
    cut.write_text(whole[: len(whole) // 2 + 3].rpartition(",")[0])
    full = running.submit()
    folder = running.home / "jobs" / full / "run"
    folder.mkdir(parents=True)
    # What the first checkpoint is written to: the kernel says that no space is left.
    (folder / "foundation.checkpoint.writing").symlink_to("/dev/full")
    for job_id in blocking:
        running.stub.CancelJob(api.CancelJobRequest(job_id=job_id))
    failed |= {"DATA": (damaged, "cut.csv"), "STORAGE": (full, "No space left")}
    for reason, (job_id, text) in failed.items():
        job = running.ended(job_id)
        assert (job.state, job.failure.reason) == (api.JOB_STATE_FAILED, reason), job
        assert text in job.failure.text and job.version == ""
        assert "Traceback" not in job.failure.text
    assert len(FileRegistry(running.registry).versions()) == versions
    assert not list(running.registry.glob("versions/.staging-*"))
    # With space again it goes on.
    running.stub.ResumeJob(api.ResumeJobRequest(job_id=full))
    resumed = running.ended(full)
    assert (resumed.state, resumed.version) == (api.JOB_STATE_DONE, full), resumed


@pytest.mark.slow
def test_a_gate_refuses_and_may_be_opened_without_training_again(running):
    first = running.submit(label="stable")
    assert running.ended(first).version == first
    refused = running.ended(running.submit(gate="+0.9"))
    assert refused.state == api.JOB_STATE_REFUSED and refused.version == ""
    verdict = refused.verdict
    assert verdict.stable_version == first and verdict.candidate == verdict.stable > 0
    assert verdict.required == pytest.approx(verdict.stable + 0.9)
    assert not FileRegistry(running.registry).exists(refused.id)
    epochs = len(refused.epochs)
    running.stub.ResumeJob(api.ResumeJobRequest(job_id=refused.id, gate="off"))
    opened = running.ended(refused.id)
    assert opened.version == refused.id and len(opened.epochs) == epochs
    again = running.stub.RetryJob(api.RetryJobRequest(job_id=refused.id)).job
    assert again.retry_of == refused.id and again.id != refused.id
    assert running.ended(again.id).metrics == opened.metrics


@pytest.mark.slow
def test_ctrl_c_ends_all_in_order_and_the_job_goes_on_at_the_next_start(tmp_path: Path):
    with trainer(tmp_path) as first:
        job_id = first.submit(settings={"training.epochs": "30"})
        first.wait(lambda: len(first.job(job_id).epochs) >= 4, 90)
        assert first.stop(signal.SIGINT) == 0
        said = [json.loads(line) for line in first.output.read_text().splitlines() if "{" in line]
        assert [s["part"] for s in said if s["message"] == "ended"] == ["serve", "beat", "worker"]
    with trainer(tmp_path) as second:
        job = second.ended(job_id)
        assert (job.state, job.attempt) == (api.JOB_STATE_DONE, 2), job
        assert any("told to stop; queued again" in event.text for event in job.events)
        assert [e.epoch for e in job.epochs if e.stage == "Forward-OFA"] == list(range(1, 31))


@pytest.mark.slow
def test_a_log_that_grows_is_trained_on_again(tmp_path: Path):
    log = tmp_path / "log"
    schedules = tmp_path / "schedules.toml"
    settings = "\n".join(f'"{name}" = {value}' for name, value in TINY.items())
    schedules.write_text(
        f'[[schedule]]\nname = "shop"\nlook_seconds = 0.5\nmin_new_rows = 500\n'
        f'settle_seconds = 0\n[schedule.job]\ndata = "{log}/"\nrecipe = "quick"\ngate = "off"\n'
        f"[schedule.job.settings]\n{settings}\n"
    )
    with trainer(tmp_path, "--schedules", str(schedules)) as running:
        log.mkdir()
        whole = running.log.read_text().splitlines()
        half = 2 * len(whole) // 3
        path = log / "log.csv"
        path.write_text("\n".join(whole[:half]) + "\n")

        def submitted() -> list[api.Job]:
            return list(running.stub.ListJobs(api.ListJobsRequest()).jobs)

        running.wait(submitted, 30)
        first = running.ended(submitted()[0].id)
        assert (first.state, first.schedule) == (api.JOB_STATE_DONE, "shop"), first
        with path.open("a") as file:
            file.write("\n".join(whole[half : half + 100]) + "\n")
        time.sleep(3)
        assert len(submitted()) == 1  # 100 more are not enough
        with path.open("a") as file:
            file.write("\n".join(whole[half + 100 :]) + "\n")
        running.wait(lambda: len(submitted()) == 2, 30)
        second = running.ended(submitted()[0].id)
        assert second.state == api.JOB_STATE_DONE and second.version != first.version
        time.sleep(2)
        assert len(submitted()) == 2
