"""Keeps requests away from a Redis that does not answer, and finds out when it does again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

_LONGEST_PAUSE = 5.0


class Breaker:
    """Closed: ask. Open: do not, a probe in the background does.

    No request ever waits for a probe. probe: raises while Redis is not usable. pause: seconds
    before the first probe, doubled for each that fails up to 5 s, times a random factor from
    0.5 to 1.5, so that the processes of a fleet do not come back together.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[None]], pause: float, rng: random.Random | None = None
    ) -> None:
        self._probe, self._pause, self._rng = probe, pause, rng or random.Random()
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._probing is not None

    def open(self) -> None:
        if self._probing is None:
            self._probing = asyncio.create_task(self._recover())

    async def close(self) -> None:
        """Ends the probing, for good."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _recover(self) -> None:
        pause = self._pause
        while True:
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                await self._probe()
            except Exception:
                # Whatever it is: Redis is not usable yet. What failed first was logged.
                continue
            self._probing = None
            return
