"""Settings of the mapper."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from services.runtime.settings import SettingsError


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class MapperSettings:
    """workers: threads that generate; one a core by default.
    queue: requests that may wait for a worker; one more is refused with OVERLOADED at once.
    max_batch: requests that share one product of a block. Larger batches gain little, and keep
        those in them waiting for each other.
    precision: float32 is exact. bfloat16 halves the weights in memory and is faster where the
        processor multiplies it natively; experiments/LOG.md has its effect on quality.
    torch_threads: threads of one product; more than 1 only pays for very large blocks.
    """

    workers: int = field(default_factory=usable_cores)
    queue: int = 256
    max_batch: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    torch_threads: int = 1

    def __post_init__(self) -> None:
        if min(self.workers, self.max_batch, self.torch_threads) < 1 or self.queue < 0:
            raise SettingsError(
                "mapper workers, max_batch and torch_threads must be at least 1, queue not negative"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise SettingsError(f"precision is {self.precision!r}: use float32 or bfloat16")
