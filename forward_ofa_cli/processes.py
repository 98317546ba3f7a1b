"""Child processes of the demo: started together, ended together, also by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from forward_ofa_cli.errors import CommandError

_STOP_SECONDS = 15.0
_LAST_LINES = 15


@contextlib.contextmanager
def running(
    module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module ...` while the block runs; SIGTERM at its end, SIGKILL if that fails.

    log: gets stdout and stderr. In a session of its own, so that Ctrl-C reaches us first
    and devices are not cut off from a server that vanished under them.
    """
    with log.open("wb") as file:
        child = _start([sys.executable, "-m", module, *arguments], file, environment)
        try:
            yield child
        finally:
            stop(child)


def _start(
    command: Sequence[str], file: IO[bytes], environment: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )


def stop(child: subprocess.Popen[bytes]) -> int:
    """Ends a child, politely first; returns its exit code."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
    return child.wait()


def wait_for_file(path: Path, child: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    """The text of a file that the child writes when it is ready.

    Raises CommandError, with the end of its log, if the child ends or time runs out first.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if child.poll() is not None:
            raise CommandError(f"{failed(child, log)}")
        if time.monotonic() > deadline:
            raise CommandError(f"not ready after {seconds:.0f} s; the end of {log}: {tail(log)}")
        time.sleep(0.05)
    return path.read_text()


def failed(child: subprocess.Popen[bytes], log: Path) -> str:
    """What to say about a child that ended by itself."""
    return f"the process ended with exit code {child.wait()}; the end of {log}: {tail(log)}"


def tail(log: Path) -> str:
    """The last lines of a log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-_LAST_LINES:])
