"""The training process as its worker sees it: lines of JSON from it, a word to it.

It is a fresh interpreter, not a fork: the worker holds sockets and threads, the child loads
torch. The child reads its stdin only to notice that the worker is gone (end of file), or that
it may publish.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

MODULE = "services.trainer.work"
MAY_PUBLISH = b"publish\n"


class Child:
    """Started at once. Raises OSError if the folder cannot be written.

    spec: what `work.Spec` reads, put into the folder as spec.json. Its stderr goes to log.txt.
    """

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "spec.json"
        path.write_text(json.dumps(spec, indent=1))
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with (folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # A Ctrl-C on the terminal is the worker's to handle.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """What it said since the last time; waits so long for the first, less if it ends."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            event = self._events.get(timeout=seconds)
            while event:  # the reader ends with an empty one
                found.append(event)
                event = self._events.get_nowait()
        return found

    def ended(self) -> bool:
        """Whether it is gone and `events` has nothing more than what it left."""
        return not self._reader.is_alive() and self._process.poll() is not None

    def allow_publishing(self) -> None:
        """The word that it waits for before it publishes."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.write(MAY_PUBLISH)
            self._process.stdin.flush()

    def ask_to_stop(self) -> None:
        """It ends after its present step."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """At once; its checkpoints stay whole."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> str:
        """Waits for its end; how it ended, for people."""
        code = self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if code < 0:
            return f"the training process was killed by signal {-code}"
        return f"the training process ended with exit code {code}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event:
                    self._events.put(event)
        self._events.put({})
