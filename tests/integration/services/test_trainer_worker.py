"""A worker process on a real Redis: what it takes, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.ports import Job, JobParameters, JobState
from services.trainer.broker import EmbeddedRedis
from services.trainer.celery_app import QUEUE, Announcer, make_app
from services.trainer.records import connect
from tests.support.trainer import ROOT

MESSAGES = 45
"""More than a worker that takes one a second takes before it holds itself for deaf."""


class WorkerUnderTest:
    """`python -m services.trainer worker`, ready."""

    def __init__(self, folder: Path, broker: str) -> None:
        self._output, ready = folder / "worker.log", folder / "ready.json"
        command = [sys.executable, "-m", "services.trainer", "worker", "--broker", broker]
        command += ["--home", str(folder / "home"), "--registry", str(folder / "registry")]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(ready)], stdout=output, stderr=output, cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.wait(ready.exists, 60)

    def lines(self) -> list[str]:
        return self._output.read_text().splitlines()

    def wait(self, done: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines()[-5:]
            time.sleep(0.1)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def worker(tmp_path: Path, redis: EmbeddedRedis) -> Iterator[WorkerUnderTest]:
    running = WorkerUnderTest(tmp_path, redis.url)
    yield running
    if running.process.poll() is None:
        running.stop()


def announce(broker: str, number: int) -> Any:
    """Messages of jobs that nobody wants any more. A connection to Redis."""
    client = connect(broker, 1.0)
    announcer = Announcer(make_app(broker, 1.0), client)
    for n in range(number):
        job = Job(f"gone-{n}", JobParameters("synthetic"), 1.0, JobState.CANCELLED)
        announcer.announce(job)
    return client


def test_a_long_queue_of_cancelled_jobs_is_taken_by_one_worker(worker, redis):
    client = announce(redis.url, MESSAGES)
    worker.wait(lambda: client.llen(QUEUE) == 0, 90)
    worker.wait(lambda: sum("not ours" in line for line in worker.lines()) == MESSAGES, 5)
    assert not any("takes no messages" in line for line in worker.lines())
    client.close()


def test_a_worker_writes_one_json_line_for_each_thing_that_happens(worker, redis):
    redis._process.kill()
    worker.wait(lambda: any("onnection" in line for line in worker.lines()), 30)
    redis.start()
    client = announce(redis.url, 1)
    worker.wait(lambda: any("not ours" in line for line in worker.lines()), 60)
    assert worker.stop() == 0
    told = [json.loads(line) for line in worker.lines()]
    # What Celery says of a real problem stays, and what it says of its own future does not.
    lost = [line for line in told if line["logger"].startswith("celery.")]
    assert any(line["level"] in ("WARNING", "ERROR") for line in lost)
    assert not any("In Celery 5.1" in line["message"] for line in told)
    as_root = [line for line in told if "superuser" in line["message"]]
    assert len(as_root) == (os.geteuid() == 0)
    client.close()
