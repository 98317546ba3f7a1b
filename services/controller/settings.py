"""Settings of the controller."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import SettingsError

_MOST = 2**32 - 1
"""What the API's fields hold."""


@dataclass(frozen=True)
class ControllerSettings:
    """candidates: items retrieved for a request.
    network_ttl_seconds: how long a network is good without a shift of interest; sent to devices.
    retry_min_ms, retry_max_ms: when a device may ask again after an answer, at a random moment
        between the two.
    retrieval_workers: threads that search the item index.
    """

    candidates: int = 200
    network_ttl_seconds: int = 1_800
    retry_min_ms: int = 1_000
    retry_max_ms: int = 3_000
    retrieval_workers: int = 2

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.network_ttl_seconds < 1 or self.retrieval_workers < 1:
            raise SettingsError(
                "candidates, network_ttl_seconds and retrieval_workers must be at least 1"
            )
        if not 0 <= self.retry_min_ms <= self.retry_max_ms:
            raise SettingsError("retry_min_ms must not be negative nor above retry_max_ms")
        if max(self.network_ttl_seconds, self.retry_max_ms) > _MOST:
            raise SettingsError(f"network_ttl_seconds and retry_max_ms must be at most {_MOST}")
