"""The parent's side of the load generator."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from benchmarks.serving.load import Job
from benchmarks.serving.servers import ONE_THREAD
from benchmarks.serving.venvs import ROOT

_PATIENCE = 120.0
"""Seconds beyond what a job lasts: at an overload, replies come late."""


class LoadError(RuntimeError):
    """A job that could not run at all: for example, nobody answers."""


class Loader:
    """One process that runs one job after the other."""

    def __init__(self, cores: Sequence[int] = ()) -> None:
        command = [sys.executable, "-m", "benchmarks.serving.load"]
        self._process = subprocess.Popen(
            [*command, *([",".join(map(str, cores))] if cores else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD, "GRPC_VERBOSITY": "ERROR"},
            cwd=ROOT,
            start_new_session=True,
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, job: Job) -> Any:
        """The result of a job. Raises LoadError."""
        if self._process.stdin is None or self._process.stdout is None:
            raise LoadError("the load generator has no pipes")
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        phases = sum(seconds for seconds, _ in job.phases)
        patience = _PATIENCE + job.warmup + job.seconds + phases
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise LoadError(f"the load generator gave no result in {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the load generator ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise LoadError(answer["error"])
        return answer["result"]
