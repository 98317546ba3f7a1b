"""Whether the machine itself stood still: a virtual machine that is paused for a while makes
every request slow, and proves nothing."""

from __future__ import annotations

import threading
import time

_TICK = 0.05


class Stalls:
    """Watches in a thread, as a context. Times on the clock of `time.monotonic`."""

    def __init__(self) -> None:
        self._found: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def seconds(self, start: float, end: float) -> float:
        """For how long it stood still in all between two moments."""
        return sum(length for at, length in self._found if start <= at <= end)

    def _watch(self) -> None:
        while not self._ended.is_set():
            before = time.monotonic()
            time.sleep(_TICK)
            late = time.monotonic() - before - _TICK
            if late > 10 * _TICK:
                self._found.append((before + _TICK + late, late))
