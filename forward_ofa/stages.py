"""The stages of a run on disk: trained, gone on with, finished earlier, or taken over.

A stage's identity is a digest of its data, settings and seed, and of the identities of the
stages before it that it may have started from: of two stages with equal identities either may
stand for the other, whichever run trained it. On one kind of machine, with as many threads, their
weights are equal; elsewhere sums are made in another order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from forward_ofa.checkpoint import epochs_done, save_tensors, write_atomically
from forward_ofa.systems import DEVICE_REC, FOUNDATION, Context, Stage
from forward_ofa.tasks import Task
from forward_ofa.training import (
    Outcome,
    Progress,
    TrainingError,
    fit,
    fit_seconds,
    run_identity,
)

STAGES_FILE = "stages.json"


class StageError(Exception):
    """A finished stage cannot be used; the message says what to do."""


class Stages:
    """The finished stages of one run. folder: None only for `estimate`. device: torch's name."""

    def __init__(self, folder: Path | None, device: str) -> None:
        self._folder = folder
        self._device = device
        self._identities: list[str] = []

    def require(self, stages: Sequence[Stage], context: Context, base: Path) -> None:
        """Raises StageError unless `base`, or the run's own folder, has all that a run takes over.

        Trains and writes nothing: tasks are made from untrained ones before, whose identities
        are the same.
        """
        if not (base / STAGES_FILE).exists():
            raise StageError(f"there is no run in {base}: check --base-run")
        for stage in stages:
            if not _before_own(stage, context):
                break
            task = stage.task(context)
            identity = self._identity(task)
            self._source(stage, context, identity, base)
            self._identities.append(identity)
            context = replace(context, trained={**context.trained, stage.name: task.system})

    def finish(
        self, stage: Stage, context: Context, progress: Progress, base: Path | None
    ) -> nn.Module:
        """The trained system of a stage, on the device, whatever of it has been done before.

        Raises StageError if `base` has no such stage or another one, what `fit` raises, and
        OSError.
        """
        folder = self._folder
        assert folder is not None
        task = stage.task(context)
        identity = self._identity(task)
        source = self._source(stage, context, identity, base)
        weights, checkpoint = (folder / f"{stage.name}.{end}" for end in _ENDINGS)
        if source is None:
            outcome = _fitted(task, progress, checkpoint, self._device)
            save_tensors(weights, task.system.state_dict())
            self._remember(folder, stage.name, identity, outcome.records)
        else:
            self._take(source, stage, task, weights)
        checkpoint.unlink(missing_ok=True)
        self._identities.append(identity)
        return task.system.eval()

    def estimate(
        self, stage: Stage, context: Context, base: Path | None
    ) -> tuple[Task[Any], float]:
        """The stage's task, and about how many seconds of it are left. Trains a few steps."""
        task = stage.task(context)
        task.system.to(self._device)  # a later stage's teacher may be tried with it
        identity = self._identity(task)
        try:
            done = self._source(stage, context, identity, base) is not None
        except StageError:
            done = False  # said when the run is started
        share = 0.0
        if not done:
            share = 1.0
            if self._folder is not None:
                made = epochs_done(self._folder / f"{stage.name}.checkpoint")
                share = 1 - min(made, task.config.epochs) / task.config.epochs
        self._identities.append(identity)
        return task, share * _whole_seconds(task, self._device) if share else 0.0

    def records(self) -> dict[str, Any]:
        """One list a stage, an entry an epoch."""
        assert self._folder is not None
        return {name: known["records"] for name, known in _known(self._folder).items()}

    def _identity(self, task: Task[Any]) -> str:
        parts = [run_identity(task), *self._identities]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _source(
        self, stage: Stage, context: Context, identity: str, base: Path | None
    ) -> Path | None:
        """The folder that has this very stage, finished; None: it must be trained.

        Raises StageError for a base without a stage that comes before the system's own.
        """
        for folder in (self._folder, base):
            if folder is None:
                continue
            if _known(folder).get(stage.name, {}).get("identity") == identity:
                return folder
        if base is not None and _before_own(stage, context):
            raise StageError(
                f"{base} has no {stage.name} that was trained on the same data with the same "
                "settings and seed: give the run's own data, recipe and options, or leave out "
                "--base-run"
            )
        return None

    def _take(self, source: Path, stage: Stage, task: Task[Any], weights: Path) -> None:
        path = source / weights.name
        try:
            task.system.load_state_dict(load_file(path))
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise StageError(f"{path} is damaged ({error}). Train that run again.") from error
        task.system.to(self._device)
        if source != self._folder:
            write_atomically(weights, path.read_bytes())
            known = _known(source)[stage.name]
            self._remember(weights.parent, stage.name, known["identity"], known["records"])

    def _remember(self, folder: Path, name: str, identity: str, records: list[Any]) -> None:
        known = {**_known(folder), name: {"identity": identity, "records": records}}
        write_atomically(folder / STAGES_FILE, (json.dumps(known, indent=2) + "\n").encode())


def _before_own(stage: Stage, context: Context) -> bool:
    """Whether it is one that runs share and `--base-run` takes over."""
    return stage.name in (FOUNDATION, DEVICE_REC) and stage.name != context.config.system


def _fitted(task: Task[Any], progress: Progress, checkpoint: Path, device: str) -> Outcome:
    try:
        return fit(task, progress, checkpoint, device)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{task.name} does not fit into the memory of {device}: give a lower --batch-size than "
            f"{task.config.batch_size}, or --device cpu"
        ) from error


@runtime_checkable
class Timed(Protocol):
    """A task that takes its time elsewhere than in steps."""

    def seconds(self) -> float:
        """About how long all its epochs take."""


def _whole_seconds(task: Task[Any], device: str) -> float:
    if isinstance(task, Timed):
        return task.seconds()
    return fit_seconds(task, device)


_ENDINGS = ("safetensors", "checkpoint")


def _known(folder: Path) -> dict[str, Any]:
    """The finished stages of a folder; none for a file that is missing or damaged."""
    try:
        found = json.loads((folder / STAGES_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
