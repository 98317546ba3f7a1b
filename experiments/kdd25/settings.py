"""What a cell means as a configuration, and whether a finished one still means it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from experiments.kdd25.cells import OPTION, STAGES, Cell
from experiments.kdd25.results import Record, Records, read_index
from forward_ofa.config import MethodConfig, RunConfig, TrainingConfig
from forward_ofa.recipes import recipe
from forward_ofa.runs import run_config_from_json
from forward_ofa.systems import options_of, system_named

_QUICK_OPTIONS: dict[str, dict[str, Any]] = {
    "finetune": {"rates": (0.1,), "steps": (2,), "history": 10}
}
"""Of systems whose training has no epochs that could be fewer."""


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
        config = configure(record.cell.trained, record.data["interactions"], quick)
    except (ValueError, TypeError):  # of a system or a setting that there is no longer
        return False
    return same(record.config, config)
