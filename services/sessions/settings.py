"""Settings of the session store."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import SettingsError
from services.sessions.address import FORMS, parse_address

_YEAR = 365 * 24 * 3600.0


@dataclass(frozen=True)
class SessionSettings:
    """url: memory:// (this process alone), or Redis: redis://HOST:PORT/DB, unix://PATH?db=0,
        redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB (sentinels that know the master),
        redis+cluster://HOST:PORT,HOST:PORT (some of the nodes); rediss://, rediss+sentinel://
        and rediss+cluster:// for TLS. Celery's redis+socket://PATH?virtual_host=0 is read too.
    ttl_seconds: how long a session's candidates are kept after their last use, a year at most.
    limit: sessions in memory at most; Redis has its own maxmemory.
    timeout_seconds: how long a request waits for Redis at most, before it goes on without.
    """

    url: str = "memory://"
    ttl_seconds: float = 1_800.0
    limit: int = 100_000
    timeout_seconds: float = 0.05

    def __post_init__(self) -> None:
        if not self.in_memory:
            try:
                parse_address(self.url)
            except ValueError:
                # Neither is shown, for the address may hold a password.
                raise SettingsError(f"sessions: use {FORMS}") from None
        if not 0 < self.ttl_seconds <= _YEAR or self.limit < 1:
            raise SettingsError(
                "ttl_seconds must be positive and at most a year, and limit at least 1"
            )
        if not 0 < self.timeout_seconds <= 10:
            raise SettingsError("timeout_seconds must be positive and at most 10")

    @property
    def in_memory(self) -> bool:
        return self.url == "memory://"
