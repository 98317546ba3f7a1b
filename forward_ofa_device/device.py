"""`Device`: what an app uses. Observe items, refresh now and then, rerank at any time."""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from forward_ofa_device import lastgood
from forward_ofa_device.artefact import Encoding
from forward_ofa_device.cloud import UNREACHABLE, Cloud, Connection
from forward_ofa_device.download import fetch_bundle, fetch_shard
from forward_ofa_device.errors import (
    CloudError,
    CorruptFile,
    DeviceError,
    ImpossibleBudget,
    NotReady,
    StorageError,
    UnknownItem,
    WrongVersion,
)
from forward_ofa_device.history import History
from forward_ofa_device.outcome import Ranked, RefreshOutcome
from forward_ofa_device.policy import Budget, RefreshPolicy, RetrySchedule, cosine_distance
from forward_ofa_device.release import Release
from forward_ofa_device.report import TOP, Tally
from forward_ofa_device.store import StateStore
from forward_ofa_device.wire import (
    Cost,
    LastGood,
    Plan,
    build_request,
    check_encodings,
    read_response,
)

log = logging.getLogger(__name__)
HISTORY_LIMIT = 5000
SHARDS_PER_REFRESH = 8
_WANTED_LIMIT = 1000


class Device:
    """One user's reranker.

    state_dir: a private directory of this device, used by one Device at a time.
    controller: "host:port", or a Connection for TLS and deadlines.
    encodings: of parameters, best liked first. clock: seconds since the epoch.
    report: tell the cloud, with the next request, how many new items the user touched and how
    many of them the network had among its ten best; nothing else about them.
    history_limit: items remembered. sync: wait until the disk has what is written; without
    it a loss of power may cost a download.

    `observe` and `rerank` may be called while another thread is in `refresh`; they never
    wait for the network. Raises StorageError if the directory cannot be used, and
    ImpossibleBudget if the budget is below what the bundle on disk can do.
    """

    def __init__(
        self,
        state_dir: str | Path,
        controller: str | Connection,
        *,
        budget: Budget | None = None,
        policy: RefreshPolicy | None = None,
        encodings: Sequence[Encoding] = ("float16",),
        report: bool = True,
        history_limit: int = HISTORY_LIMIT,
        sync: bool = True,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        connection = Connection(controller) if isinstance(controller, str) else controller
        self._budget = budget or Budget()
        self._policy = policy or RefreshPolicy()
        self._encodings = check_encodings(encodings)
        if history_limit < 1:
            raise ValueError("history_limit must be at least 1")
        self._clock, self._rng = clock, rng or random.Random()
        self._refreshing = threading.Lock()
        self._lock = threading.Lock()
        self._wanted: dict[str, None] = {}
        self._tally, self._tells = Tally(), report
        self._last_error: DeviceError | None = None
        self._closed = False
        self._cloud = Cloud(connection)
        self._store = StateStore(Path(state_dir), sync=sync)
        try:
            self._schedule = RetrySchedule(self._policy, self._store, clock, self._rng)
            history = self._store.folder / "history.jsonl"
            self._history = History(history, history_limit, sync=sync)
            self._stored_version = lastgood.current_version(self._store)
            self._release = Release.open(self._store, self._stored_version)
            self._held = lastgood.load(self._store, self._release) if self._release else None
            if self._release:
                self._budget.fit(self._release.bundle, self._encodings)
        except BaseException:
            self.close()
            raise
        self._session_id = self._resumed_session() or _new_session_id()

    def close(self) -> None:
        """Frees the directory and the connection. What was observed is kept. Idempotent.

        A refresh in another thread is broken off first.
        """
        self._closed = True
        self._cloud.close()
        with self._refreshing:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What an app does

    def start_session(self) -> None:
        """The user is back: the next `refresh` asks for a network. Opening a Device does the
        same, unless the last request is recent (`RefreshPolicy.session_idle`)."""
        self._session_id = _new_session_id()

    def observe(self, *item_ids: str) -> None:
        """The user touched these items, oldest first. Local: nothing is sent.

        Raises ValueError for what is no item id, StorageError if it cannot be written.
        """
        self._check_open()
        with self._lock:
            self._tally.touched(self._history.add(item_ids))

    def refresh(self, *, force: bool = False) -> RefreshOutcome:
        """Asks for a network if there is reason to; `force`: even if there is none.

        A retry window is kept in any case. With a last good network nothing is raised for
        trouble with network, cloud or disk: the outcome tells. Without one: NotReady, with
        the cause. ImpossibleBudget if not even one block fits the budget.
        """
        with self._refreshing:
            self._check_open()
            outcome = RefreshOutcome(retry_in=self._schedule.wait())
            if outcome.retry_in:
                outcome.reason = "retry window"
            else:
                self._attempt(outcome, force)
            if self._held is None:
                raise NotReady(
                    f"no network yet: {self._last_error}. "
                    f"The cloud may be asked again in {outcome.retry_in:.1f} s"
                ) from self._last_error
            return outcome

    def rerank(
        self,
        top: int | None = 10,
        candidates: Sequence[str] | None = None,
        *,
        include_seen: bool = False,
    ) -> list[Ranked]:
        """The best items for this user now, best first; needs no cloud. top=None: all.

        candidates: item ids to rank instead of the session's. Those without an embedding
        on the device are left out, and fetched with the next `refresh` where the catalogue
        has them. Items in the device's history are left out unless `include_seen`.
        Raises NotReady without a network, UnknownItem if no candidate has an embedding.
        """
        if top is not None and top < 1:
            raise ValueError("top must be at least 1, or None for all")
        with self._lock:
            release, held = self._release, self._held
            history = self._history.items()
            seen = frozenset() if include_seen else self._history.seen()
        if release is None or held is None:
            raise NotReady("no network yet: call refresh() while the cloud can be reached")
        if candidates is None:
            item_ids, rows = list(held.candidates.item_ids), held.candidates.embeddings
        else:
            item_ids, rows = self._look_up(release, candidates)
        keep = [n for n, item_id in enumerate(item_ids) if item_id not in seen]
        window = release.items.window(history, release.bundle.manifest.backbone.history)
        scores = release.engine.scores(held.network, window, rows[keep], held.offset)
        order = np.argsort(-scores, kind="stable")
        if candidates is None and not include_seen:
            self._tally.ranked(release.version, [item_ids[keep[n]] for n in order[:TOP]])
        return [Ranked(item_ids[keep[n]], float(scores[n])) for n in order[:top]]

    # What an app may want to know

    @property
    def version(self) -> str | None:
        """Of the network in use."""
        return self._held.network.version if self._held else None

    @property
    def path(self) -> tuple[bool, ...] | None:
        """Of the network in use: one boolean a block."""
        return self._held.network.path if self._held else None

    @property
    def kept_blocks(self) -> int | None:
        """How many blocks the network in use has."""
        return sum(self._held.network.path) if self._held else None

    @property
    def flops(self) -> int | None:
        """Multiply-accumulates of one pass of the network in use, everything counted."""
        release, held = self._release, self._held
        return release.engine.flops(held.network.path).true if release and held else None

    @property
    def last_cost(self) -> Cost | None:
        """What the last request cost, as the cloud tells."""
        return self._held.receipt.cost if self._held else None

    @property
    def staleness(self) -> float | None:
        """Seconds since the network in use was received."""
        held = self._held
        return max(0.0, self._clock() - held.receipt.received_at) if held else None

    @property
    def session_id(self) -> str:
        return self._session_id

    @property
    def history(self) -> tuple[str, ...]:
        """The items observed, oldest first."""
        with self._lock:
            return self._history.items()

    def knows(self, item_id: str) -> bool:
        """Whether the embedding of this item is on the device."""
        return self._release is not None and self._release.items.row(item_id) is not None

    def _check_open(self) -> None:
        # Another Device may hold the directory by now.
        if self._closed:
            raise DeviceError("this Device is closed: open a new one")

    # Asking

    def _attempt(self, outcome: RefreshOutcome, force: bool) -> None:
        try:
            self._refresh(outcome, force)
        except ImpossibleBudget:
            raise
        except DeviceError as error:
            log.info("refresh failed: %s", error)
            self._tally.failed(error)
            outcome.error = self._last_error = error
            self._note_failure(error)
            outcome.retry_in = self._schedule.wait()

    def _note_failure(self, error: DeviceError) -> None:
        try:
            self._schedule.failed(error)
        except StorageError as storage:
            log.warning("the retry window is kept in memory only: %s", storage)

    def _refresh(self, outcome: RefreshOutcome, force: bool) -> None:
        release = self._release or self._start()
        if self._held is None:
            # The bundle may have been all that was missing.
            self._take(release, lastgood.load(self._store, release))
        plan = self._plan(release)
        outcome.reason = self._reason(release, plan, force, outcome)
        if outcome.reason in ("up to date", "too soon"):
            return
        if outcome.reason != "new version":
            try:
                self._ask(release, plan, outcome)
            except CloudError as error:
                if error.current_version in ("", release.version):
                    raise
                self._move_to(error.current_version, outcome)
        assert self._held is not None and self._release is not None
        newest = self._held.receipt.current_version
        if newest not in ("", self._release.version):
            self._move_to(newest, outcome)
        self._schedule.succeeded()

    def _move_to(self, version: str, outcome: RefreshOutcome) -> None:
        """Fetches another version and asks for its network; until then the old one is used."""
        release = self._obtain(version)
        self._ask(release, self._plan(release), outcome)

    def _start(self) -> Release:
        """The version of the last good network, or the current one if that is gone."""
        try:
            return self._obtain(self._stored_version)
        except CloudError as error:
            if error.current_version in ("", self._stored_version):
                raise
            return self._obtain(error.current_version)

    def _obtain(self, version: str) -> Release:
        """A version from disk, or from the cloud; "": the current one."""
        release = Release.open(self._store, version) if version else None
        if release is None:
            version = fetch_bundle(self._cloud, self._store, version, self._session_id)
            release = Release.open(self._store, version)
        if release is None:
            raise CorruptFile(f"the cloud's bundle of version {version!r} is damaged")
        self._budget.fit(release.bundle, self._encodings)
        return release

    def _fetch_shard(self, release: Release, shard: int) -> None:
        """A shard that cannot be had costs the items in it, no more."""
        try:
            fetch_shard(self._cloud, self._store, release.version, shard)
            release.load_shard(self._store, shard)
        except (CloudError, CorruptFile, WrongVersion) as error:
            if isinstance(error, CloudError) and error.reason == UNREACHABLE:
                raise
            self._tally.failed(error)
            release.unavailable.add(shard)
            log.warning("item shard %d of version %s: %s", shard, release.version, error)

    def _plan(self, release: Release) -> Plan:
        with self._lock:
            history, wanted = self._history.items(), tuple(self._wanted)
        recent = history[-release.extractor.history :]
        # The popular items first: with them, few others are unknown.
        for item_ids in ((), (*recent[::-1], *wanted)):
            for shard in release.shards_of(item_ids)[:SHARDS_PER_REFRESH]:
                self._fetch_shard(release, shard)
        with self._lock:
            for item_id in wanted:
                self._wanted.pop(item_id, None)
        encodings, max_blocks = self._budget.fit(release.bundle, self._encodings)
        window = release.items.window(history, release.extractor.history)
        return Plan(release.extractor.interest(window, max_blocks), encodings, self._budget)

    def _reason(self, release: Release, plan: Plan, force: bool, outcome: RefreshOutcome) -> str:
        if self._held is None:
            return "no network"
        receipt = self._held.receipt
        outcome.shift = cosine_distance(plan.interest.vector, receipt.interest)
        if force:
            return "forced"
        return self._policy.reason(
            receipt, release.version, self._session_id, outcome.shift, self._clock()
        )

    def _ask(self, release: Release, plan: Plan, outcome: RefreshOutcome) -> None:
        held = self._held
        same = held is not None and held.network.version == release.version
        candidates = held.candidates if held and same else None
        session_id = self._session_id
        request = build_request(release, plan, session_id, candidates)
        report = self._tally.report() if self._tells else None
        if report is not None:
            request.report.CopyFrom(report)
        outcome.requested = True
        start = time.perf_counter()
        response = self._cloud.request_network(request)
        outcome.latency_ms = (time.perf_counter() - start) * 1000
        self._tally.told(report)
        received = read_response(
            response, release, plan, session_id, candidates, self._clock(), self._rng
        )
        with self._lock:
            keep = self._history.seen()
        release.items.add_known(received.candidates.item_ids, received.candidates.embeddings, keep)
        # In memory first: a full disk must not cost a network that is there.
        self._take(release, received)
        outcome.updated = True
        lastgood.save(self._store, release, received)

    def _take(self, release: Release, held: LastGood | None) -> None:
        with self._lock:
            self._release, self._held = release, held
            self._stored_version = release.version

    def _look_up(self, release: Release, item_ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        found = {i: row for i in item_ids if (row := release.items.row(i)) is not None}
        unknown = [item_id for item_id in item_ids if item_id not in found]
        with self._lock:
            self._wanted = dict.fromkeys([*self._wanted, *unknown][-_WANTED_LIMIT:])
        if unknown and not found:
            raise UnknownItem(
                f"no embedding of {unknown[0]!r} or any other candidate is on the device; "
                "refresh() fetches those that the catalogue has"
            )
        hidden = release.bundle.manifest.backbone.hidden
        rows = np.stack(list(found.values())) if found else np.zeros((0, hidden), np.float32)
        return list(found), rows

    def _resumed_session(self) -> str:
        held = self._held
        if held is None:
            return ""
        idle = self._clock() - held.receipt.received_at
        return held.receipt.session_id if 0 <= idle < self._policy.session_idle else ""


def _new_session_id() -> str:
    return secrets.token_urlsafe(15)
