"""A whole trainer for a test: `forward-ofa trainer up` as a user starts it, but in a hurry."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil

from forward_ofa_api.trainer.v1 import trainer_pb2 as api
from forward_ofa_api.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.support.logs import write_csv

ROOT = Path(__file__).parents[2]
TINY = {
    "method.backbone.blocks": "3",
    "method.backbone.hidden": "16",
    "candidates": "20",
    "training.epochs": "2",
}
ENDED = (
    api.JOB_STATE_DONE,
    api.JOB_STATE_REFUSED,
    api.JOB_STATE_FAILED,
    api.JOB_STATE_CANCELLED,
)


def up_command(folder: Path, *arguments: str) -> list[str]:
    """`up` with its folders in `folder`, on free ports."""
    command = [sys.executable, "-m", "forward_ofa_cli", "trainer", "up"]
    command += ["--home", str(folder / "home"), "--registry", str(folder / "registry")]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--heartbeat-seconds", "0.3"]
    command += ["--lease-seconds", "4", "--tick-seconds", "0.3", "--resend-seconds", "2"]
    return [*command, *arguments]


def refused_up(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An `up` that is expected to end by itself."""
    with subprocess.Popen(
        up_command(folder, *arguments), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as up:  # fmt: skip
        try:
            told = up.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            up.terminate()  # its Redis would outlive a kill
            raise
        return subprocess.CompletedProcess(up.args, up.returncode, *told)


class TrainerUnderTest:
    """home, registry: its folders. log: a small log that it can read."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.home, self.registry = folder / "home", folder / "registry"
        self.log = write_csv(folder / "log.csv", 40, 100)
        self._ready = folder / "ready.json"
        self.output = folder / "up.log"
        command = up_command(folder, "--ready-file", str(self._ready), *arguments)
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.wait(self._ready.exists, 120)
        self.ready: dict[str, Any] = json.loads(self._ready.read_text())
        self.channel = grpc.insecure_channel(self.ready["address"])
        self.stub = TrainerServiceStub(self.channel)

    def wait(self, done: Callable[[], object], seconds: float) -> Any:
        """What `done` says once it is true."""
        deadline = time.monotonic() + seconds
        while not (found := done()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"not in {seconds} s: {self.output.read_text()[-3000:]}")
            time.sleep(0.1)
        return found

    def submit(self, **changes: Any) -> str:
        """The id of a tiny job; a dictionary `settings` is added to TINY."""
        settings = {**TINY, **changes.pop("settings", {})}
        fields = {"data": str(self.log), "recipe": "quick", "gate": "off", **changes}
        request = api.SubmitJobRequest(parameters=api.JobParameters(settings=settings, **fields))
        return str(self.stub.SubmitJob(request, timeout=120).job.id)

    def job(self, job_id: str) -> api.Job:
        """As it is; asked again while Redis or the service is away."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.stub.GetJob(
                    api.GetJobRequest(job_id=job_id), timeout=10, wait_for_ready=True
                ).job
            except grpc.RpcError as error:
                away = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if error.code() not in away or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def ended(self, job_id: str, seconds: float = 120) -> api.Job:
        """The job, once it has ended."""
        return self.wait(lambda: (job := self.job(job_id)).state in ENDED and job, seconds)

    def until(self, job_id: str, stage: str, seconds: float = 60) -> api.Job:
        """The job, once it is in a stage."""
        return self.wait(lambda: (job := self.job(job_id)).progress.stage == stage and job, seconds)

    def pids(self, part: str) -> list[int]:
        """Of the running processes of a part: redis, serve, beat, worker, training."""
        marks = {
            "redis": "redis-server", "serve": "--target", "beat": "beat", "worker": "worker",
            "training": "services.trainer.work",
        }  # fmt: skip
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if any(marks[part] == word or marks[part] in word.split(" ")[0]
                       for word in command):  # fmt: skip
                    found.append(process.pid)
        return found

    def kill(self, part: str) -> bool:
        """SIGKILL to a part; whether there was one."""
        pids = self.pids(part)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(90)


@contextlib.contextmanager
def trainer(folder: Path, *arguments: str) -> Iterator[TrainerUnderTest]:
    """Running while the block does."""
    running = TrainerUnderTest(folder, *arguments)
    try:
        yield running
    finally:
        running.stop()
