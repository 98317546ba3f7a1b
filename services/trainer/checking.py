"""Checks of submissions, in threads of their own.

A check reads the log, and a file system may be slow or hang. asyncio's default threads serve the
records and the registry: as many hanging checks as there are of them would stop every call.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from services.errors import Fault, Reason
from services.ports import JobParameters
from services.trainer import plan
from services.trainer.settings import TrainerSettings

_AT_ONCE = 4
_WAITING = 28


class Checks:
    """Bounded in number, those that wait and those that hang among them, and in time."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(_AT_ONCE, "check")
        self._room = threading.BoundedSemaphore(_AT_ONCE + _WAITING)

    async def check(self, parameters: JobParameters) -> None:
        """Raises Fault BAD_JOB, or UNCHECKED_JOB if there is no room or no answer in time."""
        settings = self._settings
        if not self._room.acquire(blocking=False):
            raise Fault(Reason.UNCHECKED_JOB, problem="too many others are being checked")
        check = self._threads.submit(plan.check, parameters, settings.check_bytes, settings.cache)
        check.add_done_callback(self._leave)
        try:
            # A check that still waits is cancelled with this; a thread cannot be, and keeps its
            # place until it returns.
            await asyncio.wait_for(asyncio.wrap_future(check), settings.check_seconds)
        except plan.BadParameters as error:
            raise Fault(Reason.BAD_JOB, problem=error) from error
        except TimeoutError as error:
            problem = f"it took longer than {settings.check_seconds:g} s"
            raise Fault(Reason.UNCHECKED_JOB, problem=problem) from error

    def _leave(self, _: Future[None]) -> None:
        self._room.release()
