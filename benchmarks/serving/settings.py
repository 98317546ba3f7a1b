"""What a run is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.systems import PEER_NAMES
from benchmarks.serving.venvs import ROOT

RESULTS = ROOT / "benchmarks" / "serving" / "results"


@dataclass(frozen=True)
class Settings:
    """clients: how many at once, one measurement each. rounds: all systems are measured in
    turns so many times. seconds: of one measurement. trials: peers that
    have batching are tried without it too. peers: which to compare with.
    registry, data: a trained version and the log it was trained on, for real paths.
    pin: servers on all cores but the last, the load generator on the last one: else the two
    take time from each other, and what is measured is the scheduler. ours: more options of
    `python -m services`. out: folder for raw results.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    rounds: int = 5
    seconds: float = 4.0
    warmup: float = 0.5
    load_seconds: float = 20.0
    trials: bool = True
    peers: tuple[str, ...] = PEER_NAMES
    registry: Path | None = None
    data: str | None = None
    pin: bool = True
    ours: tuple[str, ...] = ()
    out: Path = RESULTS

    def __post_init__(self) -> None:
        if not self.clients or min(self.clients) < 1 or self.rounds < 1 or self.seconds <= 0:
            raise ValueError("clients and rounds must be at least 1, seconds above 0")
        unknown = set(self.peers) - set(PEER_NAMES)
        if unknown:
            raise ValueError(f"peers are {', '.join(PEER_NAMES)}; not {', '.join(unknown)}")
        if self.registry is not None and self.data is None:
            raise ValueError("--registry needs --data: the log whose histories ask")

    def cores(self) -> tuple[list[int], list[int]]:
        """(the servers', the load generator's); empty: wherever the system puts them."""
        mine = sorted(os.sched_getaffinity(0))
        if not self.pin or len(mine) < 2:
            return [], []
        return mine[:-1], mine[-1:]
