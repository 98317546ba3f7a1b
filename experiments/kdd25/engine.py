"""One cell, run: the product's own functions, with the cell's settings."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from experiments.kdd25 import machine
from experiments.kdd25.adaptation import adaptation_times
from experiments.kdd25.case import case_study
from experiments.kdd25.cells import OPTION, STAGES, Cell
from experiments.kdd25.datasets import ALL, Places
from experiments.kdd25.recipes import finetuned, requirements
from experiments.kdd25.results import Record, read_index
from experiments.kdd25.runner import CellError, Plan
from forward_ofa.ablations import ReplacedBlocks
from forward_ofa.config import RunConfig, TrainingConfig
from forward_ofa.data import SequenceDataset
from forward_ofa.recipes import recipe
from forward_ofa.runs import data_card, evaluate_run, load_run, train_run
from forward_ofa.systems import options_of, system_named
from forward_ofa.training import Progress

_QUICK_OPTIONS: dict[str, dict[str, Any]] = {
    "finetune": {"rates": (0.1,), "steps": (2,), "history": 10}
}
"""Of systems whose training has no epochs that could be fewer."""


@dataclass
class Engine:
    """Runs the cells of a plan. places: where logs are. device: as torch names it.

    progress: who watches a training, by the cell's name.
    quick: a smoke run: little networks, next to no training.
    """

    plan: Plan
    places: Places
    device: str
    progress: Callable[[str], Progress]
    quick: bool = False

    def __post_init__(self) -> None:
        self._data: tuple[str, SequenceDataset] | None = None

    def run(self, cell: Cell) -> Record:
        """Trains or looks; requirements are finished. Raises CellError and what training raises."""
        data = self._read(cell.dataset)
        if cell.look:
            return self._look(cell, data)
        folder = self.plan.folder(cell)
        config = configure(cell, data.num_interactions, self.quick)
        if not self.plan.has_weights(cell):
            needed = requirements(cell)
            base = self.plan.folder(needed[0]) if needed else None
            begun = (folder / "config.json").exists()
            train_run(data, config, folder, self.progress(cell.name), begun, base, self.device)
        report = json.loads((folder / "report.json").read_text())
        figures = dict(report["systems"][cell.system])
        for name in ("difference", "device_modules"):
            if name in report:
                figures[name] = report[name]
        shared = set() if cell.system == "device-rec" else {"foundation", "device-rec"}
        stages = {n: _stage(r) for n, r in report["training"].items() if n not in shared}
        return self._record(cell, data_card(data), figures, report["protocol"], stages)

    def _look(self, cell: Cell, data: SequenceDataset) -> Record:
        run = load_run(self.plan.folder(cell.trained), self.device)
        figures: dict[str, Any]
        if cell.look == "case":
            figures = {"case": case_study(run, data, cell.seed)}
        elif cell.look == "time":
            tuned = load_run(self.plan.folder(finetuned(cell)), self.device)
            figures = {"seconds": adaptation_times(run, tuned, data, cell.seed)}
        else:
            variant = ReplacedBlocks(run.forward_ofa, cell.look, cell.seed)
            report = evaluate_run(run, data, "test", variant)
            figures = dict(report["systems"][cell.system])
        return self._record(cell, run.data_card, figures, run.report["protocol"], {})

    def _read(self, key: str) -> SequenceDataset:
        """The set, if it is the one that the index's cells were run on."""
        if self._data is not None and self._data[0] == key:
            return self._data[1]
        if self.places.spec(key) is None:
            raise CellError(f"nobody said where {ALL[key].title} is: give --data {key}=PATH")
        data = self.places.read(key)
        fingerprint = data.fingerprint()
        for record in read_index(self.plan.index).values():
            if record.cell.dataset == key and record.data["fingerprint"] != fingerprint:
                raise CellError(
                    f"{self.plan.index} has cells of another {key}: {record.data['source']}. Give "
                    "that log, or another --results folder"
                )
        self._data = (key, data)
        return data

    def _record(
        self,
        cell: Cell,
        card: dict[str, Any],
        figures: dict[str, Any],
        protocol: list[str],
        stages: dict[str, Any],
    ) -> Record:
        where = {k: card[k] for k in ("name", "users", "items", "interactions", "fingerprint")}
        # The index is committed: what was read, not where it lay.
        where["source"] = re.sub(r"\S*/", "", card["source"])
        seconds = sum(stage["seconds"] for stage in stages.values())
        budget = {"stages": stages, "seconds": seconds}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return Record(cell, figures, where, protocol, budget, machine.describe(self.device), now)


def configure(cell: Cell, interactions: int, quick: bool = False) -> RunConfig:
    """The configuration of a cell's run, for a log of so many interactions.

    Raises ValueError for a system, recipe or setting that does not exist.
    """
    config = recipe(cell.recipe, cell.backbone, interactions, cell.system)
    given: dict[str, Any] = dict(cell.overrides)
    own = _taken(given, OPTION)
    if quick:
        own |= _QUICK_OPTIONS.get(cell.system, {})
    stages = {name: _taken(given, f"{name}.") for name in STAGES}
    given["backbone"] = replace(config.method.backbone, blocks=cell.blocks)
    method = replace(config.method, **given)

    def budget(stage: str, training: TrainingConfig) -> TrainingConfig:
        changed = {} if cell.epochs is None else {"epochs": cell.epochs}
        changed = {**changed, **stages[stage], "seed": cell.seed}
        return replace(training, **(changed | {"epochs": 1} if quick else changed))

    foundation = config.foundation
    if foundation is not None:
        training = budget("foundation", foundation.training)
        foundation = replace(foundation, training=training)
    return replace(
        config, method=method, foundation=foundation,
        training=budget("training", config.training),
        device_rec=budget("device_rec", config.device_rec), compare=True,
        options=options_of(system_named(cell.system), own) if own else config.options,
    )  # fmt: skip


def _taken(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Takes what begins with the prefix out of `given`; without the prefix."""
    names = [name for name in given if name.startswith(prefix)]
    return {name.removeprefix(prefix): given.pop(name) for name in names}


def _stage(records: list[dict[str, Any]]) -> dict[str, Any]:
    best = max(range(len(records)), key=lambda index: records[index].get("ndcg@10", 0.0))
    return {
        "epochs": len(records),
        "best": best + 1,
        "validation_ndcg@10": records[best].get("ndcg@10"),
        "seconds": round(sum(record["seconds"] for record in records), 1),
    }
