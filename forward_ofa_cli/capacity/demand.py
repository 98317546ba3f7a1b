"""What is asked of the cloud, and how much room is wanted: the inputs of a plan, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from forward_ofa_cli.capacity.costs import LAYOUTS
from forward_ofa_device.artefact import ENCODINGS, Encoding

DAY = 86_400.0
Spare = Literal["none", "zone", "region"]
SPARES: tuple[Spare, ...] = ("none", "zone", "region")


class DemandError(ValueError):
    """An input that makes no sense; the text names the option and what it may be."""


def _field(default: Any, why: str) -> Any:
    """A field of Demand and why its default is what it is, which every plan prints."""
    from dataclasses import field

    return field(default=default, metadata={"why": why})


@dataclass(frozen=True)
class Demand:
    """Inputs of a plan; each is an option of `forward-ofa plan`.

    devices: active on a day. sessions_per_day, requests_per_session, rankings_per_session: of a
    device, means. new_items: share of the candidates that are new in a later request of a session.
    kept_blocks: mean. peak_to_mean: busiest minutes of a region against its day's mean.
    session_minutes: from a session's first to its last request. session_ttl: seconds.
    updates_per_day: versions that a device moves to. more_shards: item shards that a device
    fetches beside the most popular items. versions: in memory at once. examples, epochs: training of a
    version. utilisation: of a pod's cores at the peak. redis_gb: of one node.
    """

    devices: int
    sessions_per_day: float = _field(8.0, "assumed; app statistics give 1 to 2 for shops, 6 to 10 "
        "for social media")  # fmt: skip
    requests_per_session: float = _field(2.0, "assumed: one at the start, one shift of interest")
    rankings_per_session: float = _field(20.0, "assumed; only compared with: on the device they "
        "cost the cloud nothing")  # fmt: skip
    peak_to_mean: float = _field(2.0, "assumed for one region; 1.6 to 1.7 is typical of a worldwide "
        "service (robustperception.io, Do you know your peak to mean ratio)")  # fmt: skip
    encoding: Encoding = _field("float16", "the SDK's default")
    kept_blocks: float | None = _field(None, "all; give your version's mean")
    candidates: int = _field(200, "the services' default")
    new_items: float = _field(0.25, "assumed; 0.07 to 0.18 on MovieLens-100K (experiments/LOG.md)")
    session_minutes: float = _field(10.0, "assumed; app statistics: 5 to 20")
    session_ttl: float = _field(1_800.0, "the services' default, seconds")
    updates_per_day: float = _field(0.2, "assumed: a new version every five days, every device "
        "takes it")  # fmt: skip
    more_shards: float = _field(1.0, "assumed; none where the catalogue is one shard")
    versions: int = _field(2, "stable with canary, or with the one before it")
    examples: float = _field(10e6, "assumed: a sample of the log")
    epochs: float = _field(5.0, "assumed")
    layout: str = _field("split", "as deploy/ does; joined or one need fewer cores")
    tls: bool = _field(
        True, "the default off loopback; ended by our processes, a connection a session"
    )
    utilisation: float = _field(
        0.6, "chosen; the simulation in docs/capacity.md shows waiting times"
    )
    processes: int = _field(1, "a pod has one process; a Python process uses about one core")
    zones: int = _field(3, "of a region")
    regions: int = _field(1, "devices and peaks spread evenly over them")
    spare: Spare = _field("zone", "the rest carries the peak when one is lost")
    redis_gb: float = _field(25.0, "common advice for one node, and 46 GB in Google's largest "
        "(Memorystore node specification)")  # fmt: skip

    def __post_init__(self) -> None:
        self._at_least("devices", 1)
        for name in ("sessions_per_day", "session_minutes", "session_ttl", "examples", "epochs",
                     "rankings_per_session", "updates_per_day", "more_shards"):  # fmt: skip
            self._at_least(name, 0)
        for name in ("requests_per_session", "peak_to_mean", "candidates", "versions", "zones",
                     "processes", "regions"):  # fmt: skip
            self._at_least(name, 1)
        if self.kept_blocks is not None:
            self._at_least("kept_blocks", 1)
        if not 0 <= self.new_items <= 1:
            raise self._error("new_items", "from 0 to 1")
        if not 0 < self.utilisation <= 1:
            raise self._error("utilisation", "above 0 and at most 1")
        if not 0 < self.redis_gb < math.inf:
            raise self._error("redis_gb", "above 0")
        for name, known in (("encoding", ENCODINGS), ("layout", LAYOUTS), ("spare", SPARES)):
            if getattr(self, name) not in known:
                raise self._error(name, f"one of {', '.join(known)}")
        self._check_spare()

    def _check_spare(self) -> None:
        for name, several in (("zone", self.zones), ("region", self.regions)):
            if self.spare == name and several < 2:
                raise DemandError(
                    f"--spare {name} needs --{name}s of at least 2: who carries the load of the one "
                    "that is lost? Or --spare none"
                )

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not least <= value < math.inf:
            raise self._error(name, f"a number, at least {least:g}")

    def _error(self, name: str, what: str) -> DemandError:
        return DemandError(f"--{name.replace('_', '-')} is {getattr(self, name)}: use {what}")

    @property
    def sessions_per_second(self) -> float:
        """Mean of a day."""
        return self.devices * self.sessions_per_day / DAY

    @property
    def requests_per_second(self) -> float:
        """Mean of a day: calls of RequestNetwork."""
        return self.sessions_per_second * self.requests_per_session

    def assumptions(self) -> list[dict[str, Any]]:
        """Every input, its value, whether it was given or is the default, and why that is so."""
        return [
            {
                "name": each.name,
                "value": getattr(self, each.name),
                "given": getattr(self, each.name) != each.default,
                "why": each.metadata.get("why", "given"),
            }
            for each in fields(self)
        ]
