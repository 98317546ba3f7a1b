"""What is asked of the cloud, and how much room is wanted: the inputs of a plan, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from forward_ofa_cli.capacity.costs import LAYOUTS
from forward_ofa_device.artefact import ENCODINGS, Encoding

DAY = 86_400.0
Spare = Literal["none", "zone", "region"]
SPARES: tuple[Spare, ...] = ("none", "zone", "region")


class DemandError(ValueError):
    """An input that makes no sense; the text names the option and what it may be."""


WHY = {
    "devices": "",
    "sessions_per_day": "assumed; app statistics give 1 to 2 for shops, 6 to 10 for social media",
    "requests_per_session": "assumed: one at the start, one shift of interest",
    "rankings_per_session": "assumed; for the comparison alone: on a device they are free",
    "peak_to_mean": "assumed for one region; 1.6 to 1.7 is typical of a worldwide service "
    "(robustperception.io, Do you know your peak to mean ratio)",
    "encoding": "the SDK's default",
    "kept_blocks": "all of them if none is named; give your version's mean",
    "candidates": "the services' default",
    "new_items": "assumed; 0.07 to 0.18 on MovieLens-100K (experiments/LOG.md)",
    "session_minutes": "assumed; app statistics: 5 to 20",
    "session_ttl": "the services' default, seconds",
    "updates_per_day": "assumed: a new version every five days, which every device takes",
    "more_shards": "assumed; none where the catalogue is one shard",
    "versions": "stable with canary, or with the one before it",
    "examples": "assumed: a sample of the log",
    "epochs": "assumed",
    "layout": "as overlays/production of deploy/ has it; split needs more cores, one fewer",
    "tls": "ended by our processes, one connection a session",
    "utilisation": "chosen; docs/capacity.md has the waiting times that it gives",
    "processes": "of a pod; a Python process uses about one core",
    "zones": "of a region",
    "regions": "devices and peaks are spread evenly over them",
    "spare": "the others carry the peak when one is lost",
    "redis_gb": "common advice for one node; Google's largest has 46 (Memorystore)",
}
"""Why each default of Demand is what it is; every plan prints it."""

RANGES: dict[str, tuple[float, float]] = {
    "devices": (1, 1e11),
    "sessions_per_day": (0, 1e5),
    "requests_per_session": (1, 1e5),
    "rankings_per_session": (0, 1e5),
    "peak_to_mean": (1, 1_000),
    "kept_blocks": (1, 65_536),
    "candidates": (1, 10_000),
    "new_items": (0, 1),
    "session_minutes": (0, 1e5),
    "session_ttl": (0, 1e7),
    "updates_per_day": (0, 1_000),
    "more_shards": (0, 1e6),
    "versions": (1, 1_000),
    "examples": (0, 1e15),
    "epochs": (0, 1e5),
    "utilisation": (0.01, 1),
    "processes": (1, 1_000),
    "zones": (1, 1_000),
    "regions": (1, 1_000),
    "redis_gb": (0.01, 1e5),
}
"""Least and most of each number: far beyond what is real, and near enough that nothing overflows
and no message that is made to be measured fills the memory."""
_TINY = 1e-9
"""Fewer sessions of a device a day are none, and what is divided by them overflows."""


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1 else f"{number:g}"


@dataclass(frozen=True)
class Demand:
    """Inputs of a plan; each is an option of `forward-ofa plan`.

    devices: active on a day. sessions_per_day, requests_per_session, rankings_per_session: of a
    device, means. new_items: share of the candidates that are new in a later request of a session.
    kept_blocks: mean. peak_to_mean: busiest minutes of a region against its day's mean.
    session_minutes: from a session's first to its last request. session_ttl: seconds.
    updates_per_day: versions that a device moves to. more_shards: item shards that a device
    fetches beside the most popular items. versions: in memory at once. examples, epochs:
    training of a version. utilisation: of a pod's cores at the peak. redis_gb: of one node.
    """

    devices: int
    sessions_per_day: float = 8.0
    requests_per_session: float = 2.0
    rankings_per_session: float = 20.0
    peak_to_mean: float = 2.0
    encoding: Encoding = "float16"
    kept_blocks: float | None = None
    candidates: int = 200
    new_items: float = 0.25
    session_minutes: float = 10.0
    session_ttl: float = 1_800.0
    updates_per_day: float = 0.2
    more_shards: float = 1.0
    versions: int = 2
    examples: float = 10e6
    epochs: float = 5.0
    layout: str = "joined"
    tls: bool = True
    utilisation: float = 0.6
    processes: int = 1
    zones: int = 3
    regions: int = 1
    spare: Spare = "zone"
    redis_gb: float = 25.0

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            # A comparison with nan is never true.
            if value is not None and not least <= value <= most:
                raise self._error(name, f"a number from {_short(least)} to {_short(most)}")
        if 0 < self.sessions_per_day < _TINY:
            raise self._error("sessions_per_day", f"0, or a number from {_TINY:g}")
        for name, known in (("encoding", ENCODINGS), ("layout", LAYOUTS), ("spare", SPARES)):
            if getattr(self, name) not in known:
                raise self._error(name, f"one of {', '.join(known)}")
        self._check_spare()

    def _check_spare(self) -> None:
        for name, several in (("zone", self.zones), ("region", self.regions)):
            if self.spare == name and several < 2:
                raise DemandError(
                    f"--spare {name} needs --{name}s of at least 2: another one has to carry the "
                    "load of the one that is lost. Or use --spare none"
                )

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
        """Every input, its value, whether it differs from the default, and why that is so."""
        return [
            {
                "name": each.name,
                "value": getattr(self, each.name),
                "changed": getattr(self, each.name) != each.default,
                "why": WHY[each.name],
            }
            for each in fields(self)
        ]
