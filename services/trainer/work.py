"""`python -m services.trainer.work SPEC`: one job in a process of its own.

prepare -> train -> gate -> publish. What is done is on disk, so that another process goes on:
checkpoints after each epoch, the report once training is over, the verdict once the gate has
spoken, and the version, whose id is the job's, under which it can appear only once.

Events go to stdout, a line of JSON each; stdin brings the word to publish, and its end means
that the worker has gone: then this process ends at once, since nobody would know of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.ports import JobParameters
from services.trainer.child import MAY_PUBLISH  # all that a worker ever says

_GONE = 75


class Stopped(BaseException):
    """The worker wants this process to end; no failure, and nobody's to catch on the way."""


@dataclass(frozen=True)
class Spec:
    """What the worker says. folder: of the job. The rest: see TrainerSettings."""

    job: str
    parameters: JobParameters
    folder: Path
    registry: str
    registry_cache: str
    registry_cache_bytes: int
    cache: str

    @classmethod
    def read(cls, path: Path) -> Spec:
        raw: dict[str, Any] = json.loads(path.read_text())
        raw["parameters"] = JobParameters(**raw["parameters"])
        return cls(folder=path.parent, **raw)


class Worker:
    """The other end of the pipes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Libraries print: only events may reach the worker.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._stop, self._allowed = threading.Event(), threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, event: str, **fields: Any) -> None:
        """One event. NaN, which is no JSON, becomes null."""
        text = json.dumps({"event": event, **fields}, default=str)
        with self._lock:
            self._out.write(text + "\n")
            self._out.flush()

    def check(self) -> None:
        """Raises Stopped if this process should end."""
        if self._stop.is_set():
            raise Stopped

    def ask_to_publish(self) -> None:
        """Returns when it may be. Raises Stopped if it may not."""
        self.tell("may I publish")
        while not self._allowed.wait(0.05):
            self.check()

    def _listen(self) -> None:
        # Not through sys.stdin: its lock, held by this thread, would abort the interpreter's end.
        while os.read(0, len(MAY_PUBLISH)):
            self._allowed.set()
        os._exit(_GONE)


def main() -> int:
    """Exit code 0 after any end that was told, 1 after a failure."""
    worker = Worker()
    try:
        # Late, so that the pipes are watched while torch is loaded.
        from services.trainer.stages import perform

        spec = Spec.read(Path(sys.argv[1]))
        outcome = perform(spec, worker)
    except Stopped:
        worker.tell("stopped")
        return 0
    except BaseException as error:
        from services.trainer.failures import explain

        worker.tell("failed", **asdict(explain(error)))
        # Last, for the disk that the log is on may be full.
        traceback.print_exc()
        return 1
    worker.tell(**outcome)
    return 1 if outcome["event"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
