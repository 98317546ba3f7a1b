"""`up`: the whole trainer on one machine, as one thing that is started and stopped.

Whatever dies is started again, unless it says from the start, and once more, that it cannot work
as it is configured: that ends all, for the rest would run on without it. Ctrl-C ends all in order:
first who takes jobs, then who looks after them, then who runs them (their jobs go back into the
queue), and Redis last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from forward_ofa.locks import locked
from services.__main__ import read_settings
from services.runtime.checks import SettingsError, split_address
from services.runtime.files import write_atomically
from services.runtime.logs import log
from services.trainer.__main__ import beat_settings, shared_settings, worker_settings
from services.trainer.broker import EmbeddedRedis
from services.trainer.schedules import read_schedules

_LOGGER = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2
_SHORT_LIFE, _MOST_PAUSE = 5.0, 30.0
_GRACE_SECONDS = 10.0
_LOCK = "up.lock"
_UNUSABLE = 2  # how our processes end if their settings cannot work
_TRIES = 2  # the processes of an `up` that was killed may hold their ports for some seconds


class Part:
    """One process, started again when it ends; after a short life only after a pause.

    ready: the file that it writes once it is.
    """

    def __init__(self, name: str, command: Sequence[str], ready: Path, stop_seconds: float) -> None:
        self.name, self._command = name, command
        self._ready, self._stop_seconds = ready, stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._born = self._again = 0.0
        self._pause = 0.5
        self._proven, self._starts = False, 0

    @property
    def pid(self) -> int:
        """0: it does not run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process is not None and running else 0

    def look(self) -> None:
        """Starts it if it does not run. Raises SettingsError if it never will."""
        now = time.monotonic()
        if self.pid:
            self._proven = self._proven or self._ready.exists()
            return
        unusable = self._process is not None and self._process.returncode == _UNUSABLE
        # What has worked is needed again when the cause is gone.
        if unusable and not self._proven and self._starts >= _TRIES:
            raise SettingsError(
                f"{self.name} cannot work as it is configured: its own error above says why"
            )
        if now < self._again:
            return
        if self._process is not None:
            short = now - self._born < _SHORT_LIFE
            self._pause = min(_MOST_PAUSE, 2 * self._pause) if short else 0.5
            log(
                _LOGGER, logging.WARNING, "ended by itself, is started again", part=self.name,
                exit_code=self._process.returncode,
            )  # fmt: skip
        # A Ctrl-C reaches us alone, so that the order of the end is ours.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._born, self._again = now, now + self._pause
        self._starts += 1

    def stop(self) -> None:
        """Politely first."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            log(_LOGGER, logging.WARNING, "did not end in time, killed", part=self.name)
            self._process.kill()
            self._process.wait()
        log(_LOGGER, logging.INFO, "ended", part=self.name)


def run_up(a: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT. Raises SettingsError, BadSchedules."""
    worker, beat = worker_settings(a), beat_settings(a)
    if beat.schedules is not None:
        read_schedules(beat.schedules)
    with contextlib.ExitStack() as held:
        _hold(a.home, held)
        return _run(a, worker.stop_seconds)


def _hold(home: Path, held: contextlib.ExitStack) -> None:
    """One `up` a home: a second would take over the first's Redis and end it, and they would
    delete each other's files. Raises SettingsError."""
    path = home / _LOCK
    try:
        if held.enter_context(locked(path, wait=False)):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            return
        who = path.read_text() or "another process"
    except OSError as error:
        raise SettingsError(f"{home} cannot be used: {error.strerror}") from error
    raise SettingsError(
        f"{home} is in use by another `trainer up`, {who}: stop that one first, or give this one "
        "another --home"
    )


def _run(a: argparse.Namespace, stop_seconds: float) -> int:
    redis = None if a.broker else EmbeddedRedis(a.home / "redis")
    broker = redis.url if redis is not None else a.broker
    shared_settings(a, broker)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ready = {name: a.home / f"{name}.json" for name in ("serve", "beat", "worker")}
    parts = _parts(a, broker, ready, stop_seconds)
    announced = False
    if redis is not None:
        redis.start()
    try:
        while not stop.is_set():
            if redis is not None and not redis.running():
                log(_LOGGER, logging.WARNING, "Redis is gone, is started again")
                redis.start()
            for part in parts:
                part.look()
            if not announced and all(path.exists() for path in ready.values()):
                announced = True
                _announce(a, broker, ready)
            stop.wait(_LOOK_SECONDS)
    finally:
        for part in parts:
            part.stop()
        if redis is not None:
            redis.stop()
        for path in (*ready.values(), *((a.ready_file,) if a.ready_file else ())):
            path.unlink(missing_ok=True)
    return 0


def _parts(
    a: argparse.Namespace, broker: str, ready: dict[str, Path], stop_seconds: float
) -> list[Part]:
    """In the order in which they end."""
    for path in ready.values():
        path.unlink(missing_ok=True)
    host, port = split_address(a.metrics, "metrics")
    shown = f"[{host}]" if ":" in host else host
    metrics = [f"{shown}:{int(port) + n if int(port) else 0}" for n in range(3)]
    common = [
        *("--broker", broker, "--home", str(a.home), "--registry", str(a.registry)),
        *("--registry-cache", str(a.registry_cache), "--log-level", a.log_level),
        *("--exit-with", str(os.getpid())),
    ]
    python = [sys.executable, "-m"]
    options = [
        *("--target", "trainer", "--listen", a.listen, *common, "--metrics", metrics[0]),
        *("--ready-file", str(ready["serve"]), *a.serve),
    ]
    # What is wrong is told now, and not by a process that starts again and again.
    read_settings(options)
    serve = [*python, "services", *options]
    beat = [
        *(*python, "services.trainer", "beat", *common, "--metrics", metrics[1]),
        *("--ready-file", str(ready["beat"]), "--cache", str(a.cache)),
        *_given(a, "lease_seconds", "tick_seconds", "resend_seconds", "keep_jobs", "schedules"),
    ]
    worker = [
        *(*python, "services.trainer", "worker", *common, "--metrics", metrics[2]),
        *("--ready-file", str(ready["worker"]), "--cache", str(a.cache)),
        *_given(a, "slots", "heartbeat_seconds", "stop_seconds", "stall_seconds", "max_seconds"),
    ]
    return [
        Part("serve", serve, ready["serve"], _GRACE_SECONDS + 10),
        Part("beat", beat, ready["beat"], _GRACE_SECONDS),
        Part("worker", worker, ready["worker"], stop_seconds + _GRACE_SECONDS),
    ]


def _given(a: argparse.Namespace, *names: str) -> list[str]:
    values = {name: getattr(a, name) for name in names}
    return [
        text
        for name, value in values.items()
        if value is not None
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def _announce(a: argparse.Namespace, broker: str, ready: dict[str, Path]) -> None:
    said = {name: json.loads(path.read_text()) for name, path in ready.items()}
    address = said["serve"]["address"]
    log(
        _LOGGER, logging.INFO, "the trainer is up", server=address,
        metrics=",".join(part["metrics"] for part in said.values()), home=str(a.home),
        registry=str(a.registry),
    )  # fmt: skip
    if a.ready_file is not None:
        whole = {"pid": os.getpid(), "address": address, "broker": broker, "parts": said}
        write_atomically(a.ready_file, json.dumps(whole) + "\n")
