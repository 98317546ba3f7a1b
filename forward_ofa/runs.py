"""Runs: a folder with everything about one training, from configuration to report.

config.json        the configuration, as given
data.json          the log, its filter, counts and fingerprint
device-rec.safetensors, forward-ofa.safetensors   weights of the best epochs
*.checkpoint       while training; removed when it is done
report.json        figures on the test split, written last: a run with one is complete
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.checkpoint import CheckpointError, save_tensors, write_atomically
from forward_ofa.config import FoundationConfig, MethodConfig, RunConfig, TrainingConfig
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.model import ForwardOFA
from forward_ofa.report import describe
from forward_ofa.tasks import DeviceRecTask, ForwardOFATask, FoundationTask, Task
from forward_ofa.training import Outcome, Progress, fit, fit_seconds
from forward_ofa_device.backbones.contract import BackboneConfig


class RunError(Exception):
    """A run's folder is not usable; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A trained run in memory. report is empty until the run is complete."""

    folder: Path
    config: RunConfig
    data_card: dict[str, Any]
    device_rec: DeviceRec
    forward_ofa: ForwardOFA
    report: dict[str, Any]


def train_run(
    data: SequenceDataset,
    config: RunConfig,
    folder: Path,
    progress: Progress,
    resume: bool = False,
) -> Run:
    """The foundation, DeviceRec, Forward-OFA, then the test split once.

    resume: go on from the folder's checkpoints. Raises RunError if the folder holds another
    run and `resume` is false, CheckpointError if its checkpoints are of other data or settings
    (nothing is changed then), and what `training.fit` raises.
    """
    started = time.monotonic()
    card = data_card(data)
    _prepare_folder(folder, config, card, resume)
    write_json(folder / "config.json", asdict(config))
    write_json(folder / "data.json", card)
    outcomes: dict[str, Outcome] = {}

    def train(task: Task[Any], name: str) -> None:
        outcomes[name] = fit(task, progress, folder / f"{name}.checkpoint")

    method = config.method
    foundation = None
    if config.foundation is not None:
        first = _foundation_task(data, config, config.foundation)
        train(first, "foundation")
        foundation = first.system
    second = DeviceRecTask(data, method, config.device_rec, foundation)
    train(second, "device-rec")
    save_tensors(folder / "device-rec.safetensors", second.system.state_dict())
    base = second.system if config.warm_start else None
    third = ForwardOFATask(data, method, config.forward_ofa, base, foundation)
    train(third, "forward-ofa")
    save_tensors(folder / "forward-ofa.safetensors", third.system.state_dict())
    device_rec, forward_ofa = second.system, third.system
    report = describe(data, config, device_rec, forward_ofa, "test")
    report["training"] = {name: outcome.records for name, outcome in outcomes.items()}
    report["seconds"] = time.monotonic() - started
    write_json(folder / "report.json", report)
    for checkpoint in folder.glob("*.checkpoint"):
        checkpoint.unlink()
    return Run(folder, config, card, device_rec, forward_ofa, report)


def load_run(folder: Path) -> Run:
    """A complete run. Raises RunError for one that is missing, unfinished or damaged."""
    if not (folder / "report.json").exists():
        raise RunError(
            f"{folder} holds no complete run. Train one: forward-ofa train --run-dir {folder}"
        )
    try:
        config = run_config_from_json(json.loads((folder / "config.json").read_text()))
        card = json.loads((folder / "data.json").read_text())
        report = json.loads((folder / "report.json").read_text())
        _ = report["protocol"], report["systems"]["forward-ofa"]
        device_rec = DeviceRec(card["items"], config.method.backbone, config.method.dropout)
        device_rec.load_state_dict(load_file(folder / "device-rec.safetensors"))
        forward_ofa = ForwardOFA(card["items"], config.method)
        forward_ofa.load_state_dict(load_file(folder / "forward-ofa.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RunError(f"the run in {folder} is damaged ({error}). Train it again.") from error
    return Run(folder, config, card, device_rec.eval(), forward_ofa.eval(), report)


def evaluate_run(run: Run, data: SequenceDataset, split: str) -> dict[str, Any]:
    """The report of a run on the "validation" or "test" split.

    Raises RunError if `data` is not what the run was trained on.
    """
    if data.fingerprint() != run.data_card["fingerprint"]:
        raise RunError(
            f"this log is not the one that {run.folder} was trained on "
            f"({run.data_card['source']}): give the same --data and filter"
        )
    return describe(data, run.config, run.device_rec, run.forward_ofa, split)


def estimate_seconds(data: SequenceDataset, config: RunConfig) -> float:
    """How long `train_run` will take, from a few steps of each system."""
    tasks: list[Task[Any]] = [
        DeviceRecTask(data, config.method, config.device_rec),
        ForwardOFATask(data, config.method, config.forward_ofa),
    ]
    if config.foundation is not None:
        tasks.append(_foundation_task(data, config, config.foundation))
    return sum(fit_seconds(task) for task in tasks)


def _foundation_task(
    data: SequenceDataset, config: RunConfig, foundation: FoundationConfig
) -> FoundationTask:
    method = config.method
    return FoundationTask(data, foundation, method.backbone.hidden, method.extractor_history)


def data_card(data: SequenceDataset) -> dict[str, Any]:
    """What a run was trained on."""
    return {
        "name": data.name,
        "source": data.source,
        "notes": data.notes,
        "filter": asdict(data.filter),
        "split": asdict(data.split),
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "fingerprint": data.fingerprint(),
    }


def run_config_from_json(raw: Mapping[str, Any]) -> RunConfig:
    """What `asdict` wrote, read back. Raises KeyError, TypeError or ValueError."""
    method = dict(raw["method"])
    backbone = dict(method.pop("backbone"))
    backbone["dilations"] = tuple(backbone["dilations"])
    foundation = raw["foundation"]
    if foundation is not None:
        training = TrainingConfig(**foundation["training"])
        foundation = FoundationConfig(**{**foundation, "training": training})
    return RunConfig(
        method=MethodConfig(backbone=BackboneConfig(**backbone), **method),
        device_rec=TrainingConfig(**raw["device_rec"]),
        forward_ofa=TrainingConfig(**raw["forward_ofa"]),
        warm_start=raw["warm_start"],
        foundation=foundation,
        candidates=raw["candidates"],
    )


def write_json(path: Path, value: object) -> None:
    """Atomically: a reader sees the old file or the new one."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _prepare_folder(folder: Path, config: RunConfig, card: Mapping[str, Any], resume: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not resume and (folder / "config.json").exists():
        raise RunError(
            f"{folder} holds a run already: add --resume to go on with it, "
            "or give another --run-dir"
        )
    # Compared before anything is written: else the next --resume would not find its settings.
    if any(folder.glob("*.checkpoint")) and not _begun_with(folder, config, card):
        raise CheckpointError(
            f"the checkpoints in {folder} belong to a run with other data or settings. "
            "Use another --run-dir, or delete them to start afresh."
        )
    (folder / "report.json").unlink(missing_ok=True)


def _begun_with(folder: Path, config: RunConfig, card: Mapping[str, Any]) -> bool:
    try:
        stored = run_config_from_json(json.loads((folder / "config.json").read_text()))
        begun = json.loads((folder / "data.json").read_text())
        return stored == config and begun["fingerprint"] == card["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
