"""How long a cell will take: as it took before, else an estimate."""

from __future__ import annotations

import dataclasses

from experiments.kdd25.cells import Cell
from experiments.kdd25.datasets import ALL
from experiments.kdd25.results import Records
from experiments.kdd25.settings import configure

_LOOK_SECONDS = 60.0
_MILLISECONDS = {
    "device-rec": 0.11,
    "duet": 0.95,
    "sttd": 0.35,
    "rare-gem": 0.25,
    "gater": 0.25,
    "litepred": 0.2,
    "plus-controller": 0.2,
    "no-structural-vector": 0.95,
    "forward-ofa": 0.95,
}
"""A training target, SASRec of six blocks, two cores of a 2.4 GHz server: DeviceRec and Forward-OFA
as measured, the others by how they are built."""
_FINETUNE_SECONDS = 600.0
"""It tunes on as many users whatever the log's size, and has no epochs."""
_OF_SASREC = {"sasrec": 1 / 6, "nextitnet": 1 / 5}
"""A block's share of that: NextItNet has twice the blocks, each a little dearer."""


def estimate(cell: Cell, records: Records, quick: bool = False) -> tuple[float, bool]:
    """(seconds, whether a cell that differs in seed alone took so long on some machine)."""
    for record in records.values():
        if dataclasses.replace(record.cell, seed=cell.seed) == cell and not cell.look:
            return float(record.budget["seconds"]), True
    if cell.look:
        return _LOOK_SECONDS, False
    if cell.system == "finetune":
        return _FINETUNE_SECONDS * cell.blocks * _OF_SASREC[cell.backbone], False
    targets = ALL[cell.dataset].interactions
    config = configure(cell, targets, quick, ALL[cell.dataset].users)
    depth = cell.blocks * _OF_SASREC[cell.backbone]
    each = _MILLISECONDS[cell.system] / 1000 * depth
    if config.training.targets_per_network > 1:
        each /= 3.5
    return targets * config.training.epochs * each, False
