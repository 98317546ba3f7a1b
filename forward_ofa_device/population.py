"""Many devices, each living a real user's history: what the cloud would see, and the funnel.

Each device observes its history, asks for a network, reranks the candidates, then the user
does what they really did next, and so on. Time between two touches is simulated, so that
hours pass in seconds; waiting for a cloud that is away is real.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import numpy as np

from forward_ofa_device.artefact import Encoding, path_text
from forward_ofa_device.cloud import Connection
from forward_ofa_device.device import Device
from forward_ofa_device.errors import CloudError, DeviceError, ImpossibleBudget, NotReady
from forward_ofa_device.outcome import RefreshOutcome
from forward_ofa_device.policy import Budget, RefreshPolicy
from forward_ofa_device.store import share_bundle

Row = dict[str, Any]
_POLL = 0.1


@dataclass(frozen=True)
class Life:
    """One user: `history` happened before, `next` is what the user really does, in order."""

    device: str
    history: tuple[str, ...]
    next: tuple[str, ...]


@dataclass(frozen=True)
class Population:
    """How the devices live.

    state: a folder of which each device gets one of its own. workers: devices that live at
    the same time. step_seconds: simulated time between two touches; pause: real time.
    patience: real seconds that a device without a network waits for the cloud.
    The first device downloads the bundle; the others take it from its disk.
    """

    connection: Connection
    state: Path
    encodings: tuple[Encoding, ...] = ("float16",)
    budget: Budget = field(default_factory=Budget)
    policy: RefreshPolicy = field(default_factory=RefreshPolicy)
    workers: int = 4
    step_seconds: float = 60.0
    pause: float = 0.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.workers < 1 or min(self.step_seconds, self.pause, self.patience) < 0:
            raise ValueError("workers must be at least 1, times must not be negative")


def read_lives(path: Path) -> list[Life]:
    """One JSON object a line: {"device": "u17", "history": ["id", ...], "next": ["id", ...]}.

    Raises ValueError, naming the line, for anything else.
    """
    lives = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                lives.append(_life(line, f"{path}, line {number}"))
    if not lives:
        raise ValueError(f"{path} has no device")
    twice = [name for name, times in Counter(life.device for life in lives).items() if times > 1]
    if twice:
        raise ValueError(f"{path} has the device {twice[0]!r} twice")
    return lives


def _life(line: bytes, where: str) -> Life:
    try:
        raw = json.loads(line)
        device, history, following = raw["device"], raw["history"], raw.get("next", [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{where}: give {{"device": .., "history": [..], "next": [..]}}'
        ) from error
    ids_are_text = all(
        isinstance(ids, list) and all(isinstance(item, str) and item for item in ids)
        for ids in (history, following)
    )
    if not isinstance(device, str) or not device or not ids_are_text:
        raise ValueError(f"{where}: device and item ids are text, history and next are lists")
    return Life(device, tuple(history), tuple(following))


def run(
    population: Population,
    lives: Sequence[Life],
    out: Path,
    progress: Callable[[int, int, int], None] = lambda done, total, offline: None,
) -> dict[str, Any]:
    """Lets all devices live; writes a line a step to `out` (see `_row`), returns the summary.

    progress(devices done, devices, steps without the cloud so far). `out` appears when all
    is done. Raises ValueError if the state folder is in use from an earlier run,
    ImpossibleBudget.
    """
    if population.state.exists() and any(population.state.iterdir()):
        raise ValueError(f"{population.state} is not empty: give the population a new folder")
    population.state.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    crowd = _Crowd(population)
    start = time.monotonic()
    with (
        temporary.open("w", encoding="utf-8") as file,
        ThreadPoolExecutor(population.workers) as pool,
        _stop_on_error(crowd),
    ):
        for done, rows in enumerate(pool.map(crowd.live, lives), 1):
            _write(file, rows)
            progress(done, len(lives), crowd.offline_steps)
    temporary.replace(out)
    return crowd.summary(len(lives), time.monotonic() - start)


@contextmanager
def _stop_on_error(crowd: _Crowd) -> Iterator[None]:
    try:
        yield
    except BaseException:
        crowd.stopped.set()
        raise


def _write(file: TextIO, rows: list[Row]) -> None:
    for row in rows:
        file.write(json.dumps(row, separators=(",", ":")) + "\n")


class _Crowd:
    """The devices' lives, and what is counted over them. Safe for threads."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._donor: Path | None = None
        self._donor_chosen = False
        self._donor_ready = threading.Event()
        self.stopped = threading.Event()
        self._rows: list[Row] = []
        self._errors: Counter[str] = Counter()
        self._without_network: list[str] = []
        self.offline_steps = 0

    def live(self, life: Life) -> list[Row]:
        """One device's life; its rows. Raises ImpossibleBudget."""
        rows: list[Row] = []
        donor = self._first_or_wait()
        try:
            for row in self._steps(life):
                rows.append(row)
                self._donor_ready.set()
        except ImpossibleBudget:
            raise
        except DeviceError as error:
            with self._lock:
                self._errors[_name(error)] += 1
            rows.append({"device": life.device, "step": len(rows), "error": str(error)})
        finally:
            if donor:
                self._donor_ready.set()
        with self._lock:
            lived = [row for row in rows if "kept_blocks" in row]
            self._rows.extend(lived)
            if not lived:
                self._without_network.append(life.device)
        return rows

    def _first_or_wait(self) -> bool:
        """True for the first device, which downloads the bundle; the others wait for that."""
        with self._lock:
            first, self._donor_chosen = not self._donor_chosen, True
        if not first:
            self._donor_ready.wait()
        return first

    def _steps(self, life: Life) -> Iterator[Row]:
        population, clock = self._population, _SimulatedClock()
        folder = population.state / f"d-{quote(life.device, safe='')}"
        if self.stopped.is_set():
            return
        if self._donor:
            share_bundle(self._donor, folder)
        with Device(
            folder,
            population.connection,
            budget=population.budget,
            policy=population.policy,
            encodings=population.encodings,
            clock=clock,
            sync=False,  # no simulated device loses power
        ) as device:
            device.observe(*life.history)
            for step, following in enumerate(life.next or (None,)):
                if self.stopped.is_set():
                    return
                outcome = self._refresh(device)
                yield self._row(life, step, following, device, outcome)
                self._donor = self._donor or folder
                if following is not None:
                    device.observe(following)
                clock.advance(population.step_seconds)
                self.stopped.wait(population.pause)

    def _refresh(self, device: Device) -> RefreshOutcome:
        """Without a network there is nothing to do but wait for the cloud."""
        give_up = time.monotonic() + self._population.patience
        while True:
            try:
                return device.refresh()
            except NotReady:
                if time.monotonic() > give_up or self.stopped.wait(_POLL):
                    raise

    def _row(
        self, life: Life, step: int, following: str | None, device: Device, outcome: RefreshOutcome
    ) -> Row:
        """One step. rank: of what the user really did next among the candidates that the
        device has not seen, 1 is best, null: not among them. offline: the device would have
        asked, or was told to stay away. Bytes are 0 if nothing was received."""
        ranking = [ranked.item_id for ranked in device.rerank(top=None)]
        error, cost = outcome.error, device.last_cost
        offline = outcome.reason == "retry window" or isinstance(error, CloudError)
        with self._lock:
            self.offline_steps += offline
            if error is not None:
                self._errors[_name(error)] += 1
        return {
            "device": life.device,
            "step": step,
            "at_s": round(time.monotonic() - self._start, 3),
            "requested": outcome.requested,
            "outcome": "updated" if outcome.updated else "kept",
            "reason": outcome.reason,
            "error": _name(error) if error else None,
            "offline": offline,
            "latency_ms": outcome.latency_ms,
            "shift": outcome.shift,
            "version": device.version,
            "path": path_text(device.path or ()),
            "kept_blocks": device.kept_blocks,
            "artefact_bytes": cost.artefact_bytes if cost and outcome.updated else 0,
            "candidate_bytes": cost.candidate_bytes if cost and outcome.updated else 0,
            "device_flops": device.flops,
            "paper_device_flops": cost.paper_device_flops if cost else None,
            "candidates": len(ranking),
            "next": following is not None,
            "rank": ranking.index(following) + 1 if following in ranking else None,
        }

    def summary(self, devices: int, seconds: float) -> dict[str, Any]:
        """Stable keys; FLOPs are multiply-accumulates, everything counted."""
        rows = self._rows
        judged = [row["rank"] for row in rows if row["next"]]
        updates = [row for row in rows if row["outcome"] == "updated"]
        return {
            "devices": devices,
            "devices_with_network": devices - len(self._without_network),
            "without_network": sorted(self._without_network)[:10],
            "steps": len(rows),
            "requests": sum(row["requested"] for row in rows),
            "updates": len(updates),
            "offline_steps": self.offline_steps,
            "errors": dict(self._errors),
            "reasons": dict(Counter(row["reason"] for row in rows)),
            "versions": dict(Counter(row["version"] for row in updates)),
            "latency_ms": _percentiles([row["latency_ms"] for row in updates]),
            "kept_blocks": dict(sorted(Counter(row["kept_blocks"] for row in updates).items())),
            "mean_kept_blocks": _mean([row["kept_blocks"] for row in updates]),
            "mean_device_flops": _mean([row["device_flops"] for row in updates]),
            "mean_paper_device_flops": _mean([row["paper_device_flops"] for row in updates]),
            "mean_artefact_bytes": _mean([row["artefact_bytes"] for row in updates]),
            "mean_candidate_bytes": _mean([row["candidate_bytes"] for row in updates]),
            "funnel": {
                "steps": len(judged),
                "recall": _mean([rank is not None for rank in judged]),
                "hit@10": _mean([rank is not None and rank <= 10 for rank in judged]),
                "ndcg@10": _mean([_gain(rank) for rank in judged]),
            },
            "bundle_shared_on_disk": True,
            "seconds": round(seconds, 3),
        }


class _SimulatedClock:
    """The real time, plus what was skipped."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def __call__(self) -> float:
        return time.time() + self._skipped

    def advance(self, seconds: float) -> None:
        self._skipped += seconds


def _name(error: DeviceError) -> str:
    """The cloud's reason, or the kind of error."""
    cause = error.__cause__ if isinstance(error, NotReady) else error
    return cause.reason if isinstance(cause, CloudError) else type(cause or error).__name__


def _gain(rank: int | None) -> float:
    return 1 / math.log2(rank + 1) if rank is not None and rank <= 10 else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}
