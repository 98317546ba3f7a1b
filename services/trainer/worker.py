"""The worker process: Celery's consumer, a pool of threads, one training process a job.

Threads and not forked children, since all that happens here is waiting for a process. Neither
torch nor gRPC is loaded.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import warnings
from typing import Any

from celery import signals
from celery.exceptions import CPendingDeprecationWarning

from services.runtime.logs import log
from services.trainer.celery_app import Announcer, make_app
from services.trainer.metrics import TrainerMetrics
from services.trainer.records import RecordsUnavailable, RedisRecords, connect
from services.trainer.settings import TrainerSettings, WorkerSettings
from services.trainer.tasks import Runner, register

_LOGGER = logging.getLogger(__name__)
DEAF_SECONDS = 30.0
_DEAF = 76
_TURN_SECONDS = 0.05


class Ear:
    """Whether anybody takes messages. A long queue that moves is no sign of deafness."""

    def __init__(self) -> None:
        self._oldest: bytes | None = None
        self._since = 0.0

    def deaf(self, oldest: bytes | None, now: float) -> bool:
        """oldest: the message that is to be taken next; None: there is none."""
        if oldest is None or oldest != self._oldest:
            self._oldest, self._since = oldest, now
        return now - self._since > DEAF_SECONDS


class Worker:
    """Made, not started. `metrics` may be scraped from the start."""

    def __init__(self, shared: TrainerSettings, settings: WorkerSettings) -> None:
        self.metrics = TrainerMetrics(worker=True)
        client = connect(shared.broker, shared.timeout_seconds)
        app = make_app(shared.broker, shared.timeout_seconds, settings.stop_seconds)
        self._announcer = Announcer(app, client)
        name = f"{socket.gethostname()}:{os.getpid()}"
        self._runner = Runner(
            name, shared, settings, RedisRecords(client), self._announcer, self.metrics
        )
        register(app, self._runner)
        self._settings, self._name, self._app = settings, name, app
        self.ready = False

    def run(self) -> int:
        """Until SIGTERM, SIGINT or SIGQUIT; running jobs go back into the queue then. Returns the
        exit code."""

        def stopping(**_: Any) -> None:
            self.ready = False
            self._runner.stop()

        def ready(**_: Any) -> None:
            self.ready = True
            log(_LOGGER, logging.INFO, "ready", worker=self._name)

        def over(**_: Any) -> None:
            # Celery's loop asks for the next message when it turns, which is once a second where
            # nothing wakes it. Not at once: the task counts as running until a moment after this.
            threading.Timer(_TURN_SECONDS, lambda: worker.hub.call_soon(_nothing)).start()

        # Kept alive by this frame: Celery holds them weakly.
        signals.worker_shutting_down.connect(stopping)
        signals.worker_ready.connect(ready)
        signals.task_postrun.connect(over)
        # Our log is configured already: with a receiver Celery adds none in a form of its own.
        signals.setup_logging.connect(_keep_logging)
        logging.captureWarnings(True)
        # Where Celery prints, past all logging, that it was told to stop.
        sys.__stdout__ = None  # type: ignore[misc]
        threading.Thread(target=self._listen, daemon=True).start()
        worker = self._app.Worker(
            pool="threads",
            concurrency=self._settings.slots,
            hostname=f"trainer@{self._name}",
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        # After its own filters. Said at each lost connection, of a setting that we have chosen.
        warnings.filterwarnings(
            "ignore", r"\s*In Celery 5\.1 we introduced", CPendingDeprecationWarning
        )
        worker.start()
        return int(worker.exitcode or 0)

    def _listen(self) -> None:
        """Ends this process if it has a free slot and takes no message: a consumer that does not
        come back after a broken connection is known of Celery on Redis. Whoever runs us starts
        us again; jobs that run here would go on elsewhere from their last epoch."""
        ear = Ear()
        while not self._runner.stopping:
            time.sleep(1.0)
            free = self._runner.busy < self._settings.slots
            try:
                oldest = self._announcer.oldest() if free and self.ready else None
            except RecordsUnavailable:
                oldest = None
            # With other workers about, no message stays this long unless all are deaf or busy.
            if ear.deaf(oldest, time.monotonic()) and not self._runner.busy:
                log(_LOGGER, logging.WARNING, "takes no messages any more, ends")
                os._exit(_DEAF)


def _nothing() -> None:
    """All that waking the loop needs."""


def _keep_logging(**_: Any) -> None:
    """That there is a receiver is all that Celery looks at."""
