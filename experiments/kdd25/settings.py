"""What a cell means as a configuration, and whether a finished one still means it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from experiments.kdd25.cells import OPTION, STAGES, Cell
from experiments.kdd25.results import Record, Records, read_index
from forward_ofa.config import MethodConfig, RunConfig
from forward_ofa.recipes import recipe
from forward_ofa.runs import run_config_from_json
from forward_ofa.settings import with_settings
from forward_ofa.systems import system_named

_QUICK = {"options.rates": (0.1,), "options.steps": (2,), "options.history": 10}
"""Finetune's, whose training has no epochs that could be fewer."""


def configure(cell: Cell, interactions: int, quick: bool = False, users: int = 0) -> RunConfig:
    """The configuration of a cell's run, for a log of so many interactions of so many users.

    Raises ValueError for a system, recipe or setting that does not exist.
    """
    config = recipe(cell.recipe, cell.backbone, interactions, cell.system, users)
    stages = [stage for stage in STAGES if getattr(config, stage) is not None]
    settings: dict[str, Any] = {"compare": True, "method.backbone.blocks": cell.blocks}
    for stage in stages:
        settings[_of_stage(stage, "seed")] = cell.seed
        if cell.epochs is not None:
            settings[_of_stage(stage, "epochs")] = cell.epochs
    settings |= {_setting(name): value for name, value in cell.overrides}
    if quick:
        settings |= {_of_stage(stage, "epochs"): 1 for stage in stages}
        settings |= _QUICK if cell.system == "finetune" else {}
    return with_settings(config, settings)


def _setting(name: str) -> str:
    """An override by the name that `with_settings` knows: a bare one is of MethodConfig."""
    stage, _, rest = name.partition(".")
    if stage in STAGES:
        return _of_stage(stage, rest)
    return name if name.startswith(OPTION) else f"method.{name}"


def _of_stage(stage: str, name: str) -> str:
    return f"{stage}.training.{name}" if stage == "foundation" else f"{stage}.{name}"


def as_json(config: RunConfig) -> dict[str, Any]:
    """As a run's config.json has it."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return found


def same(stored: dict[str, Any], config: RunConfig) -> bool:
    """Whether what `as_json` wrote is this configuration, as far as its system reads it. A setting
    that did not exist then has its default; one that no longer exists makes it another."""
    try:
        return _as_read(run_config_from_json(stored)) == _as_read(config)
    except (KeyError, TypeError, ValueError):
        return False


def _as_read(config: RunConfig) -> RunConfig:
    """With defaults for what its system does not read: DeviceRec's cell stays what it is when the
    controller's settings change."""
    reads = (*system_named(config.system).reads, "backbone", "dropout")
    unread: dict[str, Any] = {
        f.name: f.default for f in fields(MethodConfig) if f.name not in reads
    }
    return replace(config, method=replace(config.method, **unread))


def finished(index: Path, quick: bool = False) -> Records:
    """The index, without cells that were run with other settings than they stand for today: a
    recipe's values may have changed since. Raises DamagedIndex."""
    return {name: each for name, each in read_index(index).items() if _current(each, quick)}


def _current(record: Record, quick: bool) -> bool:
    try:
        data = record.data
        config = configure(record.cell.trained, data["interactions"], quick, data["users"])
    except (ValueError, TypeError):  # of a system or a setting that there is no longer
        return False
    return same(record.config, config)
