"""Whether Redis answers, asked once a second by a process that needs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

_SECONDS = 1.0


class Pulse:
    """ask: blocking, whether it answers; called in a thread."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._good = False
        self._task: asyncio.Task[None] | None = None

    def ready(self) -> bool:
        """The last answer."""
        return self._good

    async def start(self) -> None:
        """Asks from now on."""
        self._task = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Asks no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _beat(self) -> None:
        while True:
            self._good = await asyncio.to_thread(self._ask)
            await asyncio.sleep(_SECONDS)
