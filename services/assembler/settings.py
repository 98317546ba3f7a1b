"""Settings of the assembler."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.runtime.settings import SettingsError


@dataclass(frozen=True)
class AssemblerSettings:
    """mapper_seconds: how long to wait for the mapper at most; a caller's nearer deadline
    counts."""

    mapper_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.mapper_seconds < math.inf:
            raise SettingsError("mapper_seconds must be a number above 0")
