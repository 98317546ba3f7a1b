"""Server processes: started, waited for, and killed for sure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from benchmarks.serving import procs
from benchmarks.serving.venvs import ROOT, Unavailable

READY_SECONDS = 120.0
_STOP_SECONDS = 5.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody had a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Servers:
    """All processes of a run. Leaving the `with` kills them and what they have started."""

    def __init__(self, folder: Path, cores: Sequence[int] = ()) -> None:
        self.folder, self._cores = folder, list(cores)
        self._all: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop([process.pid for process in self._all])

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts `command`, one thread for its mathematics, output to NAME.log."""
        pinned = ["taskset", "-c", ",".join(map(str, self._cores))] if self._cores else []
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                [*pinned, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD, **(environment or {})},
                cwd=ROOT,
                start_new_session=True,
            )
        self._all.append(process)
        return process

    def log(self, name: str) -> Path:
        """Where the output of a process goes."""
        return self.folder / f"{name}.log"

    def wait_ready_file(self, process: subprocess.Popen[bytes], name: str, file: Path) -> Any:
        """What `python -m services` writes once it answers. Raises Unavailable."""
        end = time.monotonic() + READY_SECONDS
        while not file.exists():
            self.check(process, name, end)
            time.sleep(0.05)
        return json.loads(file.read_text())

    def wait_port(self, process: subprocess.Popen[bytes], name: str, port: int) -> None:
        """Until something listens. Raises Unavailable."""
        end = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            self.check(process, name, end)
            time.sleep(0.05)

    def check(self, process: subprocess.Popen[bytes], name: str, end: float) -> None:
        """Raises Unavailable if the process has ended or the time is over."""
        if process.poll() is None and time.monotonic() < end:
            return
        lines = self.log(name).read_text(errors="replace").strip().splitlines()
        why = "did not answer in time" if process.poll() is None else "ended at once"
        raise Unavailable(f"{name} {why}: {lines[-1][:300] if lines else 'no output'}")

    def only(self, pids: Sequence[int]) -> None:
        """Freezes all others: some peers burn a third of a core while nobody asks them."""
        others = [process.pid for process in self._all if process.pid not in pids]
        _signal(procs.tree(others), signal.SIGSTOP)
        _signal(procs.tree(pids), signal.SIGCONT)

    def stop(self, pids: Sequence[int]) -> None:
        """Ends processes of this run and all that they have started."""
        going = procs.tree(pids)
        _signal(going, signal.SIGCONT)
        _signal(going, signal.SIGTERM)
        _, alive = psutil.wait_procs(going, _STOP_SECONDS)
        _signal(alive, signal.SIGKILL)
        psutil.wait_procs(alive, _STOP_SECONDS)
        for process in [each for each in self._all if each.pid in pids]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            self._all.remove(process)


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def services(*arguments: str) -> list[str]:
    """The command line of our services."""
    return [sys.executable, "-m", "services", *arguments]
