"""The versions that a component holds in memory.

Follows two labels. A version that one of them points at is loaded, verified, warmed up and,
where it is announced to devices, tried through the services behind, before anything says that
it is current. Versions that no label points at any more stay while they are asked for.
Processes switch at slightly different moments, so a version that another process already
announces is loaded when it is asked for.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.errors import Fault, Reason
from services.registry.contract import (
    CANARY,
    STABLE,
    Label,
    PublishedVersion,
    Registry,
    RegistryError,
    RegistryUnavailable,
    is_label,
    is_version_id,
)
from services.runtime.logs import log
from services.runtime.metrics import Metrics
from services.runtime.settings import SettingsError

_LOGGER = logging.getLogger(__name__)
_FAILED_LOAD_SECONDS = 10.0
_QUALITY = ("ndcg@10", "hit@10")
T = TypeVar("T")


@dataclass(frozen=True)
class VersionSettings:
    """label: which label new sessions get. poll_seconds: how often labels are read.
    keep: versions in memory at most; those that a label points at always stay, of the others
        those asked for longest ago go first.
    canary: the label whose share of the sessions gets another version; "": none.
    idle_seconds: a version without a label goes once it was not asked for so long.
    """

    label: str = STABLE
    poll_seconds: float = 1.0
    keep: int = 4
    canary: str = CANARY
    idle_seconds: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if self.keep < 1 or not 0 < self.poll_seconds < math.inf:
            raise SettingsError("keep must be at least 1 and poll_seconds positive")
        if not self.idle_seconds > 0:
            raise SettingsError("version idle_seconds must be above 0")
        for name in (self.label, self.canary or STABLE):
            if not is_label(name):
                raise SettingsError(f"{name!r} is no label: use lower-case letters, digits and -")


def session_bucket(session_id: str) -> float:
    """Where a session lies between 0 and 100: a canary of p percent gets those below p.

    The same in every process and for ever, so that a session stays where it is, and a growing
    share only adds sessions.
    """
    digest = hashlib.sha256(session_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


@dataclass
class _Held(Generic[T]):
    """asked: when it was asked for last, by the monotonic clock. created: when it was made, in
    seconds since 1970; 0: its manifest does not say."""

    what: T
    created: float
    asked: float
    count: Callable[[], None]


@dataclass(frozen=True)
class _Canary:
    version: str
    percent: float


class Versions(Generic[T]):
    """What `load` makes of each version that is served.

    `load` runs in a thread and returns only what can answer at once. `rehearse` is awaited
    before a version becomes current in place of another one; if it raises Fault, the other one
    stays, and it is tried again. `labelled_only`: load on demand only versions that a label
    points at, or pointed at lately: for an edge where strangers choose the version.
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
        rehearse: Callable[[T], Awaitable[None]] | None = None,
    ) -> None:
        self._target, self._registry, self._load = target, registry, load
        self._settings, self._metrics, self._labelled_only = settings, metrics, labelled_only
        self._rehearse = rehearse
        self._loaded: OrderedDict[str, _Held[T]] = OrderedDict()
        self._loading: dict[str, asyncio.Task[_Held[T]]] = {}
        self._failed: dict[str, tuple[float, Fault]] = {}
        self._rehearsed: set[str] = set()
        self._refused: set[str] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._current = ""
        self._canary: _Canary | None = None
        self._followed: list[Label] = []
        self._labelled: tuple[float, frozenset[str]] = (-math.inf, frozenset())
        metrics.versions_loaded.labels(target).set(0)
        metrics.version_load_failures.labels(target)

    @property
    def current(self) -> str:
        """The version of sessions that no canary gets; "" before the first is loaded."""
        return self._current

    def current_for(self, session_id: str) -> str:
        """The version that this session should use; "" before the first is loaded."""
        canary = self._canary
        if canary is None or not self._current or not canary.percent or not session_id:
            return self._current
        return canary.version if session_bucket(session_id) < canary.percent else self._current

    @property
    def loaded(self) -> list[str]:
        """All versions in memory."""
        return list(self._loaded)

    def ready(self) -> bool:
        """Whether requests can be answered."""
        return bool(self._current)

    async def start(self) -> None:
        """Loads the labelled versions if there are any, then watches the labels."""
        await self._look()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends watching and loading."""
        tasks = [*self._loading.values(), *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def get(self, version: str, session_id: str = "") -> T:
        """What is served for `version`.

        Raises Fault MISSING_VERSION, UNKNOWN_VERSION (naming the one that is current for the
        session), NO_VERSION if none is loaded yet, CORRUPT_VERSION, UPSTREAM_UNAVAILABLE if
        the registry has to be asked and cannot be.
        """
        held = self._loaded.get(version)
        if held is None:
            held = await self._find(version, session_id)
        held.asked = time.monotonic()
        held.count()
        if version in self._loaded:
            self._loaded.move_to_end(version)
        return held.what

    async def _find(self, version: str, session_id: str) -> _Held[T]:
        if not version:
            raise Fault(Reason.MISSING_VERSION)
        try:
            if await self._may_load(version):
                return await self._load_once(version)
        except RegistryUnavailable as error:
            raise Fault(Reason.UPSTREAM_UNAVAILABLE, detail=str(error)) from error
        if not self._current:
            raise Fault(Reason.NO_VERSION)
        shown = version if is_version_id(version) else repr(version[:64])
        current = self.current_for(session_id)
        raise Fault(Reason.UNKNOWN_VERSION, version=shown, current_version=current)

    async def _may_load(self, version: str) -> bool:
        if not is_version_id(version):
            return False
        if self._labelled_only and version not in self._lately():
            if time.monotonic() - self._labelled[0] >= self._settings.poll_seconds:
                # One look for all strangers, however many ask for whatever.
                self._labelled = (time.monotonic(), self._labelled[1])
                labels = await asyncio.to_thread(self._registry.labels)
                self._labelled = (time.monotonic(), frozenset(labels.values()))
            if version not in self._labelled[1]:
                return False
        return await asyncio.to_thread(self._registry.exists, version)

    def _lately(self) -> set[str]:
        """Versions of the labels that are followed, and where these pointed before: as many
        as there is room for, so that nobody can push out what others use."""
        now = {label.version for label in self._followed}
        before = (earlier.version for label in self._followed for earlier in label.before)
        older = [version for version in dict.fromkeys(before) if version not in now]
        return now | set(older[: max(0, self._settings.keep - len(now))])

    async def _load_once(self, version: str) -> _Held[T]:
        failed_at, fault = self._failed.get(version, (0.0, None))
        if fault is not None and time.monotonic() - failed_at < _FAILED_LOAD_SECONDS:
            raise _without_frames(fault)
        if version not in self._loading:
            self._loading[version] = asyncio.create_task(self._load_now(version))
        # A caller that goes away must not end a load that others wait for.
        return await asyncio.shield(self._loading[version])

    async def _load_now(self, version: str) -> _Held[T]:
        started = time.monotonic()
        try:
            published, loaded = await asyncio.to_thread(self._open, version)
        except Exception as error:
            fault = _as_fault(error)
            # Without what led to it: its frames hold whatever was loaded so far.
            self._failed[version] = (time.monotonic(), _without_frames(fault))
            self._metrics.version_load_failures.labels(self._target).inc()
            log(_LOGGER, logging.ERROR, "load failed", target=self._target, version=version)
            raise fault from error
        finally:
            del self._loading[version]
        self._failed.pop(version, None)
        counter = self._metrics.version_requests.labels(self._target, version)
        created = _seconds_since_1970(published.manifest.created)
        held = _Held(loaded, created, time.monotonic(), counter.inc)
        self._loaded[version] = held
        self._show_quality(published)
        self._evict(newest=version)
        seconds = round(time.monotonic() - started, 3)
        log(_LOGGER, logging.INFO, "loaded", target=self._target, version=version, seconds=seconds)
        return held

    def _open(self, version: str) -> tuple[PublishedVersion, T]:
        published = self._registry.open(version)
        return published, self._load(published)

    def _show_quality(self, published: PublishedVersion) -> None:
        manifest, gauge = published.manifest, self._metrics.version_metric
        for name in _QUALITY:
            value = manifest.metrics.get(name)
            if isinstance(value, (int, float)):
                gauge.labels(self._target, manifest.version, name).set(value)

    def _evict(self, newest: str = "") -> None:
        """Drops what is idle, then what was asked for longest ago; never a labelled version."""
        canary = self._canary.version if self._canary else ""
        long_ago = time.monotonic() - self._settings.idle_seconds
        for version, held in list(self._loaded.items()):
            idle = held.asked < long_ago
            if version in (self._current, canary, newest):
                continue
            if idle or len(self._loaded) > self._settings.keep:
                self._drop(version)
        self._metrics.versions_loaded.labels(self._target).set(len(self._loaded))

    def _drop(self, version: str) -> None:
        del self._loaded[version]
        self._metrics.forget_version(self._target, version)
        log(_LOGGER, logging.INFO, "dropped", target=self._target, version=version)

    async def _look(self) -> None:
        """One look at the labels. What cannot be read or loaded changes nothing."""
        try:
            await self._follow()
        except (OSError, RegistryError) as error:
            log(
                _LOGGER, logging.ERROR, "the registry cannot be read",
                target=self._target, detail=str(error),
            )  # fmt: skip
        self._evict()

    async def _follow(self) -> None:
        settings = self._settings
        stable = await asyncio.to_thread(self._registry.pointer, settings.label)
        canary = None
        if settings.canary and settings.canary != settings.label:
            canary = await asyncio.to_thread(self._registry.pointer, settings.canary)
        self._followed = [label for label in (stable, canary) if label is not None]
        moved = stable is not None and stable.version != self._current
        if stable is not None and moved and await self._prepare(stable.version):
            self._switch(stable.version)
        if canary is None or canary.version == self._current:
            self._share(None)
        elif await self._prepare(canary.version):
            self._share(_Canary(canary.version, canary.percent))
        elif self._canary is not None and self._canary.version != canary.version:
            # The label left that one, and the new one is not ready.
            self._share(None)

    async def _prepare(self, version: str) -> bool:
        """In memory and tried: whether it may be announced."""
        held = self._loaded.get(version)
        if held is None:
            try:
                held = await self._load_once(version)
            except Fault:
                return False
        if self._rehearse is None or not self._current or version in self._rehearsed:
            # The first version waits for nobody: services may start in any order.
            self._rehearsed.add(version)
            return True
        try:
            await self._rehearse(held.what)
        except Fault as fault:
            if version not in self._refused:
                log(
                    _LOGGER, logging.ERROR, "not announced: the services behind cannot answer",
                    target=self._target, version=version, reason=str(fault.reason),
                )  # fmt: skip
            self._refused.add(version)
            return False
        self._refused.discard(version)
        self._rehearsed.add(version)
        return True

    def _switch(self, version: str) -> None:
        gauge = self._metrics.current_version
        if self._current:
            gauge.remove(self._target, self._current)
        gauge.labels(self._target, version).set(1)
        self._metrics.current_version_created.labels(self._target).set(
            self._loaded[version].created
        )
        self._current = version
        self._evict()
        log(_LOGGER, logging.INFO, "current version", target=self._target, version=version)

    def _share(self, canary: _Canary | None) -> None:
        if canary == self._canary:
            return
        gauge = self._metrics.canary_percent
        if self._canary is not None:
            gauge.remove(self._target, self._canary.version)
        if canary is not None:
            gauge.labels(self._target, canary.version).set(canary.percent)
        self._canary = canary
        log(
            _LOGGER, logging.INFO, "canary", target=self._target,
            version=canary.version if canary else "", percent=canary.percent if canary else 0,
        )  # fmt: skip

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self._look()
            except Exception:
                # Whatever it is: who stops looking stays on this version for ever.
                _LOGGER.exception("a look at the labels failed: %s", self._target)


def _seconds_since_1970(created: str) -> float:
    """0 for what is no time; a version without one serves as well as any other."""
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _as_fault(error: Exception) -> Fault:
    if isinstance(error, Fault):
        return error
    if isinstance(error, RegistryUnavailable):
        return Fault(Reason.UPSTREAM_UNAVAILABLE, detail=str(error))
    return Fault(Reason.INTERNAL, detail=repr(error))


def _without_frames(fault: Fault) -> Fault:
    """A copy: one that is raised again collects frames, and several callers may raise it."""
    copy = Fault.received(fault.reason, fault.text, fault.retry, fault.current_version)
    copy.detail, copy.args = fault.detail, fault.args
    return copy
