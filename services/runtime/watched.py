"""Files that are read again when they change: certificates, keys, tokens."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from services.runtime.logs import log

_LOGGER = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
"""How long a change may stay unnoticed while requests arrive."""
T = TypeVar("T")
_Signature = tuple[tuple[int, int, int], ...] | None


class Reloads(Protocol):
    """Who counts what `Watched` does. what: tls, upstream, tokens or jwt."""

    def reloaded(self, what: str) -> None: ...

    def reload_failed(self, what: str) -> None: ...


class Watched(Generic[T]):
    """`parse` of some files' bytes, anew when one of them changes. Threads may share it.

    Files that cannot be read or make no sense change nothing: what was read last stays in use,
    the failure is logged and counted once a change. `value`: what is in use now.
    The first reading raises OSError or ValueError.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        parse: Callable[[list[bytes]], T],
        reloads: Reloads | None = None,
    ) -> None:
        self._what, self._paths, self._parse, self._reloads = what, tuple(paths), parse, reloads
        self._lock = threading.Lock()
        self._signature = self._look()
        self.value = self._read()
        self.generation = 0
        self._next_look = time.monotonic() + LOOK_SECONDS

    def get(self) -> T:
        """What is in use, after a look at the files if the last one was a second ago."""
        if time.monotonic() >= self._next_look:
            self.refresh()
        return self.value

    def refresh(self) -> None:
        """Looks at the files now. Who finds another thread at it goes on with the old value."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._next_look = time.monotonic() + LOOK_SECONDS
            # Looked at before they are read: a change in between is seen the next time.
            signature = self._look()
            if signature == self._signature:
                return
            self._signature = signature
            self._reload()
        finally:
            self._lock.release()

    def _reload(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self.value = self._read()
        except (OSError, ValueError) as error:
            if self._reloads is not None:
                self._reloads.reload_failed(self._what)
            text = _told(error)
            log(_LOGGER, logging.WARNING, "kept the old files", files=names, error=text)
            return
        self.generation += 1
        if self._reloads is not None:
            self._reloads.reloaded(self._what)
        log(_LOGGER, logging.INFO, "reloaded", files=names)

    def _look(self) -> _Signature:
        try:
            stats = [path.stat() for path in self._paths]
        except OSError:
            return None
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def _read(self) -> T:
        return self._parse([path.read_bytes() for path in self._paths])


def _told(error: Exception) -> str:
    """Without what a decoder may quote of a secret file: our own texts name lines, not contents."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)
