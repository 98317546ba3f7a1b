"""Settings of the session store."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from services.runtime.settings import SettingsError

_REDIS = ("redis://", "rediss://", "unix://")
_YEAR = 365 * 24 * 3600.0


@dataclass(frozen=True)
class SessionSettings:
    """url: memory:// (this process alone), redis://HOST:PORT/DB, rediss:// (TLS),
    unix://PATH?db=0; Celery's redis+socket://PATH?virtual_host=0 is read too.
    ttl_seconds: how long a session's candidates are kept, a year at most.
    limit: sessions in memory at most; Redis has its own maxmemory.
    """

    url: str = "memory://"
    ttl_seconds: float = 1_800.0
    limit: int = 100_000

    def __post_init__(self) -> None:
        if not self.in_memory and not _is_usable(self.redis_url):
            # Not shown: it may hold a password.
            raise SettingsError(
                "sessions: use memory://, redis://HOST:PORT/DB, rediss://HOST:PORT/DB, "
                "unix://PATH?db=0 or redis+socket://PATH"
            )
        if not 0 < self.ttl_seconds <= _YEAR or self.limit < 1:
            raise SettingsError(
                "ttl_seconds must be positive and at most a year, and limit at least 1"
            )

    @property
    def in_memory(self) -> bool:
        return self.url == "memory://"

    @property
    def redis_url(self) -> str:
        """As redis-py spells it."""
        if not self.url.startswith("redis+socket://"):
            return self.url
        return "unix://" + self.url.removeprefix("redis+socket://").replace("virtual_host=", "db=")


def _is_usable(url: str) -> bool:
    """redis-py passes over a database that is no number, and takes 0."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is none
    except ValueError:
        return False
    if not url.startswith(_REDIS):
        return False
    if parts.scheme == "unix":
        return bool(parts.path)
    database = parts.path.removeprefix("/")
    return bool(parts.hostname) and (not database or database.isdecimal())
