"""What `Device` answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from forward_ofa_device.errors import DeviceError


class Ranked(NamedTuple):
    """An item and its score; higher is better, comparable within one ranking only."""

    item_id: str
    score: float


@dataclass
class RefreshOutcome:
    """What `Device.refresh` did, and why.

    reason: why the cloud was asked ("no network", "forced", "new session", "expired",
    "new version", "interest shift", "fetching") or not ("up to date", "too soon",
    "retry window").
    requested: RequestNetwork was called. updated: a new network is in use.
    error: what went wrong; the last good network stays in use.
    latency_ms: of the last RequestNetwork that was answered, by the device's clock.
    shift: cosine distance of the interest now from that of the last request.
    retry_in: seconds for which the cloud will not be asked.
    """

    reason: str = "fetching"
    requested: bool = False
    updated: bool = False
    error: DeviceError | None = None
    latency_ms: float | None = None
    shift: float | None = None
    retry_in: float = 0.0
