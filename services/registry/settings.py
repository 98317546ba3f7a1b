"""Where a process keeps copies of versions from elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from services.runtime.checks import SettingsError


def default_cache() -> Path:
    """$XDG_CACHE_HOME/forward-ofa, or ~/.cache/forward-ofa."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "forward-ofa"


@dataclass(frozen=True)
class CacheSettings:
    """folder: for the versions of registries that are no local folder; processes may share it.
    limit_bytes: what it may hold; versions in use are kept even beyond it.
    """

    folder: Path = field(default_factory=default_cache)
    limit_bytes: int = 20 * 2**30

    def __post_init__(self) -> None:
        if self.limit_bytes < 0:
            raise SettingsError("the registry cache's limit must not be negative")
