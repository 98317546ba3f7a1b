"""Several processes for one command. They agree by files alone (see runner.py), so each is just
another copy of the command."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType


def run_workers(words: Sequence[str], began: float, count: int) -> None:
    """Starts `count` processes with the command's own words and waits for them.

    began: of the command, so that all know which failures are its own. A worker that dies is
    told; the others take its cell over. SIGTERM and Ctrl-C end them all.
    """
    command = [sys.executable, "-m", "experiments.kdd25", *words, "--worker", repr(began)]
    before = signal.signal(signal.SIGTERM, _stop)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        workers += [subprocess.Popen(command) for _ in range(count)]
        for worker in workers:
            if worker.wait():
                print(f"A worker ended with {worker.returncode}.", file=sys.stderr)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
        signal.signal(signal.SIGTERM, before)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
