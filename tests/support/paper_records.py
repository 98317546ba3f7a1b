"""Records as the engine makes them, with figures that the tests choose."""

from __future__ import annotations

from typing import Any

from experiments.kdd25.cells import Cell
from experiments.kdd25.results import Record
from experiments.kdd25.settings import as_json, configure

MACHINE = {
    "cpu": "A processor",
    "cores": 2,
    "memory_gb": 8.0,
    "python": "3.11.0",
    "revision": "0123456789abcdef",
    "changed_files": 0,
    "torch": "2.13.0",
    "threads": 2,
    "device": "CPU",
}
DATA: dict[str, Any] = {
    "name": "ml-1m",
    "users": 6040,
    "items": 3011,
    "interactions": 994852,
    "fingerprint": "f" * 64,
    "source": "ratings.dat",
}


def record(cell: Cell, ndcg: float = 0.1, **figures: Any) -> Record:
    """hit is twice ndcg; all six blocks kept unless `figures` says otherwise."""
    blocks = cell.blocks
    figures = {
        "ndcg@10": ndcg,
        "hit@10": 2 * ndcg,
        "paper_mflops": 0.5,
        "true_mflops": 0.6,
        "paper_mbit": 3.5,
        "mean_kept_blocks": float(blocks),
        "kept_blocks_histogram": [0] * blocks + [10],
        "block_usage": [1.0] * blocks,
        **figures,
    }
    stages = {cell.system: {"epochs": 20, "best": 12, "seconds": 60.0}}
    config = configure(cell.trained, DATA["interactions"])
    return Record(
        cell,
        as_json(config),
        figures,
        dict(DATA),
        ["data: ml-1m", f"system: {cell.system}"],
        {"stages": stages, "seconds": 60.0},
        dict(MACHINE),
        "2026-01-02T03:04:05+00:00",
    )
