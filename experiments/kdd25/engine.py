"""One cell, run: the product's own functions, with the cell's settings."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.kdd25 import machine
from experiments.kdd25.adaptation import adaptation_times
from experiments.kdd25.case import case_study
from experiments.kdd25.cells import Cell
from experiments.kdd25.datasets import ALL, Places
from experiments.kdd25.recipes import finetuned, requirements
from experiments.kdd25.results import Record, read_index
from experiments.kdd25.runner import CellError, Plan
from experiments.kdd25.settings import as_json, configure, same
from forward_ofa.ablations import ReplacedBlocks
from forward_ofa.config import RunConfig
from forward_ofa.data import SequenceDataset
from forward_ofa.runs import data_card, evaluate_run, load_run, train_run, write_json
from forward_ofa.training import Progress

_MACHINE = "machine.json"


@dataclass
class Engine:
    """Runs the cells of a plan. places: where logs are. device: as torch names it.

    progress: who watches a training, by the cell's name.
    """

    plan: Plan
    places: Places
    device: str
    progress: Callable[[str], Progress]

    def __post_init__(self) -> None:
        self._data: tuple[str, SequenceDataset] | None = None

    def run(self, cell: Cell) -> Record:
        """Trains or looks; requirements are finished. Raises CellError and what training raises."""
        data = self._read(cell.dataset)
        if cell.look:
            return self._look(cell, data)
        folder = self.plan.folder(cell)
        config = configure(cell, data.num_interactions, self.plan.quick, data.num_users)
        if self.plan.has_weights(cell):
            if not same(json.loads((folder / "config.json").read_text()), config):
                raise CellError(
                    f"{folder} was trained with other settings than the recipe has today: "
                    "--again trains it anew"
                )
            # Evaluations may have got other figures since, of the same weights.
            run = load_run(folder, self.device)
            report = {**run.report, **evaluate_run(run, data, "test")}
        else:
            begun = (folder / "config.json").exists()
            base = self._base(cell, config, data)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _MACHINE, machine.describe(self.device))
            run = train_run(
                data, config, folder, self.progress(cell.name), begun, base, self.device
            )
            report = run.report
        figures = dict(report["systems"][cell.system])
        for name in ("difference", "device_modules"):
            if name in report:
                figures[name] = report[name]
        shared = set() if cell.system == "device-rec" else {"foundation", "device-rec"}
        stages = {n: _stage(r) for n, r in report["training"].items() if n not in shared}
        record = self._record(cell, data_card(data), config, figures, report["protocol"], stages)
        trained = (folder / "report.json").stat().st_mtime
        return replace(record, machine=_trained_on(folder), finished=_utc(trained))

    def _base(self, cell: Cell, config: RunConfig, data: SequenceDataset) -> Path | None:
        """The run whose stages this one goes on from: that of its DeviceRec; for a DeviceRec, that
        of another with the same foundation, which no backbone has a part in."""
        needed = requirements(cell)
        if needed:
            return self.plan.folder(needed[0])
        for record in self.plan.finished().values():
            other = record.cell
            if (other.dataset, other.system) != (cell.dataset, cell.system):
                continue
            theirs = configure(other, data.num_interactions, self.plan.quick, data.num_users)
            if self.plan.has_weights(other) and _foundation(theirs) == _foundation(config):
                return self.plan.folder(other)
        return None

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
        card, protocol = run.data_card, run.report["protocol"]
        return self._record(cell, card, run.config, figures, protocol, {})

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
        config: RunConfig,
        figures: dict[str, Any],
        protocol: list[str],
        stages: dict[str, Any],
    ) -> Record:
        where = {k: card[k] for k in ("name", "users", "items", "interactions", "fingerprint")}
        # The index is committed: what was read, not where it lay.
        where["source"] = re.sub(r"\S*/", "", card["source"])
        seconds = sum(stage["seconds"] for stage in stages.values())
        budget = {"stages": stages, "seconds": seconds}
        computer = machine.describe(self.device)
        now = _utc(time.time())
        return Record(cell, as_json(config), figures, where, protocol, budget, computer, now)


def _trained_on(folder: Path) -> dict[str, Any]:
    """The machine and revision that a run was trained with, which may not be today's."""
    try:
        found: dict[str, Any] = json.loads((folder / _MACHINE).read_text())
    except FileNotFoundError:
        return machine.unknown()
    return found


def _utc(moment: float) -> str:
    """ISO 8601, of seconds since 1970."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")


def _foundation(config: RunConfig) -> object:
    """What decides how a foundation is trained; equal to no other's where there is none."""
    if config.foundation is None:
        return object()
    return config.foundation, config.method.backbone.hidden


def _stage(records: list[dict[str, Any]]) -> dict[str, Any]:
    best = max(range(len(records)), key=lambda index: records[index].get("ndcg@10", 0.0))
    return {
        "epochs": len(records),
        "best": best + 1,
        "validation_ndcg@10": records[best].get("ndcg@10"),
        "seconds": round(sum(record["seconds"] for record in records), 1),
    }
