"""The versions that a component holds in memory.

Follows the label `stable`: a new version is loaded, verified and warmed up before anything
says that it is the current one, and the one before it stays served. Processes switch at
slightly different moments, so a version that another process already announces is loaded
when it is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.errors import Fault, Reason
from services.registry.contract import PublishedVersion, Registry, is_label, is_version_id
from services.runtime.logs import log
from services.runtime.metrics import Metrics
from services.runtime.settings import SettingsError

_LOGGER = logging.getLogger(__name__)
_FAILED_LOAD_SECONDS = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class VersionSettings:
    """label: which label new sessions get. poll_seconds: how often it is read.
    keep: versions in memory, the current one included; those asked for longest ago go first."""

    label: str = "stable"
    poll_seconds: float = 1.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1 or not 0 < self.poll_seconds < math.inf:
            raise SettingsError("keep must be at least 1 and poll_seconds positive")
        if not is_label(self.label):
            raise SettingsError(f"{self.label!r} is no label: use lower-case letters, digits and -")


class Versions(Generic[T]):
    """What `load` makes of each version that is served.

    `load` runs in a thread and returns only what can answer at once. `labelled_only`: load
    on demand only versions that some label points at, for an edge where strangers choose
    the version.
    """

    def __init__(
        self,
        target: str,
        registry: Registry,
        load: Callable[[PublishedVersion], T],
        settings: VersionSettings,
        metrics: Metrics,
        *,
        labelled_only: bool = False,
    ) -> None:
        self._target, self._registry, self._load = target, registry, load
        self._settings, self._metrics, self._labelled_only = settings, metrics, labelled_only
        self._loaded: OrderedDict[str, T] = OrderedDict()
        self._loading: dict[str, asyncio.Task[T]] = {}
        self._failed: dict[str, tuple[float, Fault]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._current = ""
        metrics.versions_loaded.labels(target).set(0)

    @property
    def current(self) -> str:
        """The version that new sessions should use; "" before the first is loaded."""
        return self._current

    @property
    def loaded(self) -> list[str]:
        """All versions in memory."""
        return list(self._loaded)

    def ready(self) -> bool:
        """Whether requests can be answered."""
        return bool(self._current)

    async def start(self) -> None:
        """Loads the labelled version if there is one, then watches the label."""
        await self._follow()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends watching and loading."""
        tasks = [*self._loading.values(), *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def get(self, version: str) -> T:
        """What is served for `version`.

        Raises Fault MISSING_VERSION, UNKNOWN_VERSION (naming the current one), NO_VERSION if
        none is loaded yet, CORRUPT_VERSION.
        """
        if version in self._loaded:
            self._loaded.move_to_end(version)
            return self._loaded[version]
        if not version:
            raise Fault(Reason.MISSING_VERSION)
        if await asyncio.to_thread(self._may_load, version):
            return await self._load_once(version)
        if not self._current:
            raise Fault(Reason.NO_VERSION)
        shown = version if is_version_id(version) else repr(version[:64])
        raise Fault(Reason.UNKNOWN_VERSION, version=shown, current_version=self._current)

    def _may_load(self, version: str) -> bool:
        if self._labelled_only and version not in self._registry.labels().values():
            return False
        return self._registry.exists(version)

    async def _load_once(self, version: str) -> T:
        failed_at, fault = self._failed.get(version, (0.0, None))
        if fault is not None and time.monotonic() - failed_at < _FAILED_LOAD_SECONDS:
            raise fault.with_traceback(None)
        if version not in self._loading:
            self._loading[version] = asyncio.create_task(self._load_now(version))
        # A caller that goes away must not end a load that others wait for.
        return await asyncio.shield(self._loading[version])

    async def _load_now(self, version: str) -> T:
        started = time.monotonic()
        try:
            loaded = await asyncio.to_thread(lambda: self._load(self._registry.open(version)))
        except Exception as error:
            fault = (
                error if isinstance(error, Fault) else Fault(Reason.INTERNAL, detail=repr(error))
            )
            self._failed[version] = (time.monotonic(), fault)
            self._metrics.version_load_failures.labels(self._target).inc()
            log(_LOGGER, logging.ERROR, "load failed", target=self._target, version=version)
            raise fault from error
        finally:
            del self._loading[version]
        self._failed.pop(version, None)
        self._loaded[version] = loaded
        self._evict()
        seconds = round(time.monotonic() - started, 3)
        log(_LOGGER, logging.INFO, "loaded", target=self._target, version=version, seconds=seconds)
        return loaded

    def _evict(self) -> None:
        """Drops those asked for longest ago, never the current one or the newest."""
        newest = next(reversed(self._loaded))
        for version in list(self._loaded):
            if len(self._loaded) <= self._settings.keep:
                break
            if version not in (self._current, newest):
                del self._loaded[version]
        self._metrics.versions_loaded.labels(self._target).set(len(self._loaded))

    async def _follow(self) -> None:
        """One look at the label. A version that cannot be loaded changes nothing."""
        version = await asyncio.to_thread(self._registry.current, self._settings.label)
        if version is None or version == self._current:
            return
        if version not in self._loaded:
            with contextlib.suppress(Fault):
                await self._load_once(version)
        if version in self._loaded:
            self._switch(version)

    def _switch(self, version: str) -> None:
        gauge = self._metrics.current_version
        if self._current:
            gauge.remove(self._target, self._current)
        gauge.labels(self._target, version).set(1)
        self._current = version
        self._evict()
        log(_LOGGER, logging.INFO, "current version", target=self._target, version=version)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self._follow()
            except OSError:
                log(_LOGGER, logging.ERROR, "the registry cannot be read", target=self._target)
