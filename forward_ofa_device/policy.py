"""What a device can afford, and when it may ask the cloud."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forward_ofa_device.artefact import Encoding, artefact_bytes
from forward_ofa_device.bundle import DeviceBundle
from forward_ofa_device.errors import CloudError, DeviceError, ImpossibleBudget
from forward_ofa_device.store import StateStore

if TYPE_CHECKING:
    from forward_ofa_device.wire import Receipt

LONGEST_WAIT = 3600.0
"""Seconds. Neither a server's retry window nor a clock that was set back keeps a device
away for longer."""


@dataclass(frozen=True)
class Budget:
    """What a network may cost this device. None: no limit.

    max_artefact_bytes: bytes of the sub-model. max_flops: multiply-accumulates of one
    forward pass, everything counted, without the scoring of candidates.
    """

    max_artefact_bytes: int | None = None
    max_flops: int | None = None

    def __post_init__(self) -> None:
        for limit in (self.max_artefact_bytes, self.max_flops):
            if limit is not None and limit < 1:
                raise ImpossibleBudget("a budget's limits are at least 1, or None for no limit")

    def fit(
        self, bundle: DeviceBundle, encodings: Sequence[Encoding]
    ) -> tuple[tuple[Encoding, ...], int | None]:
        """The encodings to accept, and how many blocks fit at most (None: all).

        With a limit of bytes only one encoding is accepted, the best liked one in which a
        block fits, since the limit holds for the encoding that the cloud chooses.
        Raises ImpossibleBudget if not even one block fits.
        """
        blocks = bundle.manifest.backbone.blocks
        most = blocks if self.max_flops is None else self._blocks_in_flops(bundle)
        accepted = tuple(encodings)
        if self.max_artefact_bytes is not None:
            for encoding in encodings:
                in_bytes = self._blocks_in_bytes(bundle, encoding)
                if in_bytes:
                    break
            accepted, most = (encoding,), min(most, in_bytes)
        if most < 1:
            raise ImpossibleBudget(_impossible(self, bundle, encodings))
        return accepted, None if most >= blocks else most

    def _blocks_in_flops(self, bundle: DeviceBundle) -> int:
        fixed, block = bundle.backbone.fixed_flops().true, bundle.backbone.block_flops().true
        return max(0, ((self.max_flops or 0) - fixed) // block)

    def _blocks_in_bytes(self, bundle: DeviceBundle, encoding: Encoding) -> int:
        blocks = bundle.manifest.backbone.blocks
        fitting = (
            kept
            for kept in range(blocks, 0, -1)
            if _most_bytes(bundle, kept, encoding) <= (self.max_artefact_bytes or 0)
        )
        return next(fitting, 0)


def _most_bytes(bundle: DeviceBundle, kept: int, encoding: Encoding) -> int:
    """Of all paths with so many blocks: the last blocks have the longest names."""
    config = bundle.manifest.backbone
    path = (False,) * (config.blocks - kept) + (True,) * kept
    return artefact_bytes(bundle.manifest.version, config.name, path, encoding, bundle.layout)


def _impossible(budget: Budget, bundle: DeviceBundle, encodings: Sequence[Encoding]) -> str:
    flops = bundle.backbone.fixed_flops().true + bundle.backbone.block_flops().true
    sizes = ", ".join(f"{_most_bytes(bundle, 1, e)} bytes in {e}" for e in encodings)
    return (
        f"no network fits {budget}: the smallest needs {flops} FLOPs and {sizes}. "
        "Raise the budget, or accept a smaller encoding"
    )


@dataclass(frozen=True)
class RefreshPolicy:
    """When `Device.refresh` asks for a network. Times in seconds.

    shift_threshold: cosine distance between the interest now and that of the last request
    from which the interest counts as shifted. min_interval: no two requests closer than
    that, but for a new session. max_age: a network older than this, or than the cloud's
    time to live, is asked for anew. session_idle: a device that opens later than this
    after its last request starts a new session. backoff_first, backoff_max: how long the
    cloud is left alone after it could not be reached: a random time up to backoff_first,
    doubled with each failure, up to backoff_max.
    """

    shift_threshold: float = 0.15
    min_interval: float = 30.0
    max_age: float = 24 * 3600.0
    session_idle: float = 1800.0
    backoff_first: float = 1.0
    backoff_max: float = 120.0

    def __post_init__(self) -> None:
        if not 0 <= self.shift_threshold <= 2:
            raise ValueError("shift_threshold is a cosine distance, from 0 to 2")
        if min(self.min_interval, self.max_age, self.session_idle) < 0:
            raise ValueError("min_interval, max_age and session_idle must not be negative")
        if not 0 < self.backoff_first <= self.backoff_max:
            raise ValueError("backoff_first must be positive and at most backoff_max")

    def reason(
        self, receipt: Receipt, version: str, session_id: str, shift: float, now: float
    ) -> str:
        """Why to ask, or why not, given the receipt of the network in use.

        version: of that network. shift: cosine distance of the interest now from the
        receipt's. See `RefreshOutcome.reason` for the values.
        """
        if receipt.session_id != session_id:
            return "new session"
        age = now - receipt.received_at
        longest = min(receipt.ttl_seconds or self.max_age, self.max_age)
        # A negative age: the clock was set back, so nothing is known about the real age.
        if age < 0 or age >= longest:
            return "expired"
        new_version = receipt.current_version not in ("", version)
        if not new_version and shift <= self.shift_threshold:
            return "up to date"
        if age < self.min_interval or now < receipt.welcome_at:
            return "too soon"
        return "new version" if new_version else "interest shift"


class RetrySchedule:
    """Keeps a device away from a cloud that refused it; survives a restart of the app.

    `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        policy: RefreshPolicy,
        store: StateStore,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._policy, self._store, self._clock, self._rng = policy, store, clock, rng
        self._not_before, self._failures = 0.0, 0
        saved = store.read_json("retry.json") or {}
        not_before, failures = saved.get("not_before"), saved.get("failures")
        if isinstance(not_before, int | float) and isinstance(failures, int) and failures > 0:
            self._not_before, self._failures = float(not_before), failures

    def wait(self) -> float:
        """Seconds until the cloud may be asked; 0: now."""
        left = self._not_before - self._clock()
        return left if 0 < left <= LONGEST_WAIT else 0.0

    def failed(self, error: DeviceError) -> None:
        """Chooses the next moment: in the cloud's window, or by exponential backoff."""
        self._failures += 1
        self._not_before = self._clock() + min(self._delay(error), LONGEST_WAIT)
        self._save()

    def succeeded(self) -> None:
        if self._failures:
            self._not_before, self._failures = 0.0, 0
            self._save()

    def _delay(self, error: DeviceError) -> float:
        if isinstance(error, CloudError) and error.retry_ms is not None:
            earliest, latest = error.retry_ms
            return self._rng.uniform(earliest, latest) / 1000
        most = self._policy.backoff_max
        if isinstance(error, CloudError) and error.reason != "UNREACHABLE":
            # The same request would be refused again, so there is no hurry.
            return self._rng.uniform(most / 2, most)
        doubled = self._policy.backoff_first * 2.0 ** min(self._failures - 1, 30)
        return self._rng.uniform(0, min(most, doubled))

    def _save(self) -> None:
        saved = {"not_before": self._not_before, "failures": self._failures}
        self._store.write_json("retry.json", saved)


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    """From 0 (same direction) to 2 (opposite). A zero vector is at 1 from any other."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norms:
        return 0.0 if np.array_equal(a, b) else 1.0
    return max(0.0, 1.0 - float(a @ b) / norms)
