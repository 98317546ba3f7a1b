"""Runs: a folder with everything about one training, from configuration to report.

config.json        the configuration, as given
data.json          the log, its filter, counts and fingerprint
STAGE.safetensors  weights of a stage's best epoch: foundation, device-rec, and the system's own
stages.json        what each finished stage was trained from, and its records
*.checkpoint       while a stage is trained
lock               held by the process that trains
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
from forward_ofa.checkpoint import CheckpointError, write_atomically
from forward_ofa.config import FoundationConfig, MethodConfig, RunConfig, TrainingConfig
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.devices import make_repeatable
from forward_ofa.locks import locked
from forward_ofa.model import ForwardOFA
from forward_ofa.ranking import RankingSystem
from forward_ofa.report import describe
from forward_ofa.stages import STAGES_FILE, StageError, Stages
from forward_ofa.systems import DEVICE_REC, Context, options_of, system_named
from forward_ofa.training import Progress
from forward_ofa_device.backbones.contract import BackboneConfig


class RunError(Exception):
    """A run's folder is not usable; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A trained run in memory.

    system: what was trained. device_rec: what it is compared with; None if the run has none, the
    system itself if that is it. report: empty until the run is complete.
    """

    folder: Path
    config: RunConfig
    data_card: dict[str, Any]
    system: RankingSystem
    device_rec: DeviceRec | None
    report: dict[str, Any]

    @property
    def forward_ofa(self) -> ForwardOFA:
        """The system, if it is Forward-OFA; raises RunError if it is another: only Forward-OFA
        can be published, since devices and services know no other one."""
        if self.config.system != "forward-ofa" or not isinstance(self.system, ForwardOFA):
            title = system_named(self.config.system).title
            raise RunError(
                f"{self.folder} is a run of {title}, which is here to be compared with: only "
                "Forward-OFA can be published and served (forward-ofa train --system forward-ofa)"
            )
        return self.system


def train_run(
    data: SequenceDataset,
    config: RunConfig,
    folder: Path,
    progress: Progress,
    resume: bool = False,
    base: Path | None = None,
    device: str = "cpu",
) -> Run:
    """All stages of the system, then the test split once.

    resume: go on where the folder's run stopped. base: a run's folder whose foundation and
    DeviceRec are taken over instead of being trained again, if they are of the same data and
    settings; a run of DeviceRec itself may take the foundation alone. device: as torch names it.

    Raises RunError if the folder holds another run and `resume` is false, if another process
    trains in it, or if `base` is not fit; CheckpointError if the folder's checkpoints are of
    other data or settings (nothing is changed then), and what `training.fit` raises.
    """
    with locked(folder / "lock", wait=False) as free:
        if not free:
            raise RunError(f"another process trains in {folder}: wait for it, or end it")
        return _train(data, config, folder, progress, resume, base, device)


def require_base(data: SequenceDataset, config: RunConfig, folder: Path, base: Path | None) -> None:
    """Raises RunError unless the runs in `base` and `folder` have what `train_run` takes over."""
    if base is None:
        return
    stages = system_named(config.system).stages(config)
    try:
        Stages(folder, "cpu").require(stages, Context(data, config, {}), base)
    except StageError as error:
        raise RunError(str(error)) from error


def _train(
    data: SequenceDataset,
    config: RunConfig,
    folder: Path,
    progress: Progress,
    resume: bool,
    base: Path | None,
    device: str,
) -> Run:
    started = time.monotonic()
    make_repeatable(device)
    card = data_card(data)
    require_base(data, config, folder, base)
    system = system_named(config.system)
    _prepare_folder(folder, config, card, resume)
    write_json(folder / "config.json", asdict(config))
    write_json(folder / "data.json", card)
    stages = Stages(folder, device)
    context = Context(data, config, {})
    for stage in system.stages(config):
        try:
            module = stages.finish(stage, context, progress, base)
        except StageError as error:
            raise RunError(str(error)) from error
        context = Context(data, config, {**context.trained, stage.name: module})
    trained, device_rec = context.trained[system.name], context.trained.get(DEVICE_REC)
    assert isinstance(trained, RankingSystem)
    assert device_rec is None or isinstance(device_rec, DeviceRec)
    report = describe(data, config, trained, device_rec, "test")
    report["training"] = stages.records()
    report["device"] = device
    report["seconds"] = time.monotonic() - started
    write_json(folder / "report.json", report)
    return Run(folder, config, card, trained, device_rec, report)


def load_run(folder: Path, device: str = "cpu") -> Run:
    """A complete run. Raises RunError for one that is missing, unfinished or damaged."""
    if not (folder / "report.json").exists():
        raise RunError(
            f"{folder} holds no complete run. Train one: forward-ofa train --run-dir {folder}"
        )
    try:
        config = run_config_from_json(json.loads((folder / "config.json").read_text()))
        card = json.loads((folder / "data.json").read_text())
        report = json.loads((folder / "report.json").read_text())
        _ = report["protocol"], report["systems"][config.system]
        system = _restored(folder, config.system, config, card["items"], device)
        device_rec: RankingSystem | None = system
        if config.system != DEVICE_REC:
            device_rec = None
            if DEVICE_REC in report["systems"]:
                device_rec = _restored(folder, DEVICE_REC, config, card["items"], device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RunError(f"the run in {folder} is damaged ({error}). Train it again.") from error
    assert device_rec is None or isinstance(device_rec, DeviceRec)
    return Run(folder, config, card, system, device_rec, report)


def _restored(folder: Path, name: str, config: RunConfig, items: int, device: str) -> RankingSystem:
    system = system_named(name).build(config, items)
    system.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return system.to(device).eval()


def evaluate_run(
    run: Run, data: SequenceDataset, split: str, system: RankingSystem | None = None, age: int = 0
) -> dict[str, Any]:
    """The report of a run on the "validation" or "test" split.

    system: evaluated in place of the run's own, which it is a variant of. age: items that users
    have met since their networks were made.
    Raises RunError if `data` is not what the run was trained on.
    """
    if data.fingerprint() != run.data_card["fingerprint"]:
        raise RunError(
            f"this log is not the one that {run.folder} was trained on "
            f"({run.data_card['source']}): give the same --data and filter"
        )
    return describe(data, run.config, system or run.system, run.device_rec, split, age)


def estimate_seconds(
    data: SequenceDataset,
    config: RunConfig,
    folder: Path | None = None,
    base: Path | None = None,
    device: str = "cpu",
) -> float:
    """How long `train_run` will take, from a few steps of each stage.

    What a run that was begun in `folder` has done already, or takes over from `base`, is not
    counted. Stages that start from the weights of one before are tried with untrained ones.
    """
    context = Context(data, config, {})
    stages = Stages(folder, device)
    seconds = 0.0
    for stage in system_named(config.system).stages(config):
        task, needed = stages.estimate(stage, context, base)
        seconds += needed
        context = Context(data, config, {**context.trained, stage.name: task.system})
    return seconds


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
    options = raw["options"]
    if options is not None:
        options = options_of(system_named(raw["system"]), options)
    return RunConfig(
        method=MethodConfig(backbone=BackboneConfig(**backbone), **method),
        device_rec=TrainingConfig(**raw["device_rec"]),
        training=TrainingConfig(**raw["training"]),
        warm_start=raw["warm_start"],
        foundation=foundation,
        candidates=raw["candidates"],
        system=raw["system"],
        options=options,
        compare=raw["compare"],
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
    if (folder / "report.json").exists():
        discard(folder)
    # Compared before anything is written: else the next --resume would not find its settings.
    if _progress_files(folder) and not _begun_with(folder, config, card):
        raise CheckpointError(
            f"the checkpoints in {folder} belong to a run with other data or settings. "
            "Use another --run-dir, or delete them to start afresh."
        )


def discard(folder: Path) -> None:
    """Forgets how far a folder's run has come; it will be trained from the start."""
    for path in (folder / "report.json", *_progress_files(folder)):
        path.unlink(missing_ok=True)


def _progress_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.checkpoint"), *folder.glob(STAGES_FILE)]


def _begun_with(folder: Path, config: RunConfig, card: Mapping[str, Any]) -> bool:
    try:
        stored = run_config_from_json(json.loads((folder / "config.json").read_text()))
        begun = json.loads((folder / "data.json").read_text())
        return stored == config and begun["fingerprint"] == card["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
