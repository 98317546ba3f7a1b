"""Settings of the mapper."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from services.runtime.settings import SettingsError


@dataclass(frozen=True)
class MapperSettings:
    """workers: threads that generate; one a core by default.
    queue: requests that may wait for a worker; one more is refused with OVERLOADED at once.
    torch_threads: threads of one generation; more than 1 only pays for very large blocks.
    """

    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    queue: int = 64
    torch_threads: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1 or self.queue < 0 or self.torch_threads < 1:
            raise SettingsError(
                "mapper workers and torch_threads must be at least 1, queue not negative"
            )
