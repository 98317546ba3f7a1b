"""Settings of the session store."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import SettingsError

_REDIS = ("redis://", "rediss://", "unix://")


@dataclass(frozen=True)
class SessionSettings:
    """url: memory:// (this process alone), redis://HOST:PORT/DB, rediss:// (TLS),
    unix://PATH?db=0; Celery's redis+socket://PATH?virtual_host=0 is read too.
    ttl_seconds: how long a session's candidates are kept.
    limit: sessions in memory at most; Redis has its own maxmemory.
    """

    url: str = "memory://"
    ttl_seconds: float = 1_800.0
    limit: int = 100_000

    def __post_init__(self) -> None:
        if not self.in_memory and not self.redis_url.startswith(_REDIS):
            raise SettingsError(
                f"sessions is {self.url!r}: use memory://, redis://HOST:PORT/DB, rediss:// or "
                "redis+socket://PATH"
            )
        if self.ttl_seconds <= 0 or self.limit < 1:
            raise SettingsError("ttl_seconds must be positive and limit at least 1")

    @property
    def in_memory(self) -> bool:
        return self.url == "memory://"

    @property
    def redis_url(self) -> str:
        """As redis-py spells it."""
        if not self.url.startswith("redis+socket://"):
            return self.url
        return "unix://" + self.url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
