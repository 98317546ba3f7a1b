"""Training: one loop for every system, the same protocol for all of them.

A run is fixed by its configuration and seed: same data, targets, loss and
selection. After each epoch the validation split is evaluated (full ranking,
NDCG@10) and the best epoch's weights are kept. The test split is not looked at here.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.batches import Sessions, batches, training_sessions
from forward_ofa.checkpoint import load_checkpoint, save_checkpoint
from forward_ofa.config import MethodConfig, TrainingConfig
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import evaluate
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa.objectives import compact_loss, next_item_loss, retrieval_loss

System = ForwardOFA | DeviceRec
Objective = Callable[[Batch, float], Tensor]
"""(batch, share of training that is done) -> loss."""


class TrainingError(Exception):
    """Training cannot go on; the message says what to do."""


class Progress(Protocol):
    """Who wants to watch."""

    def begin(self, stage: str, steps: int, done: int) -> None:
        """A stage of `steps` steps, `done` of them already made by an earlier run."""

    def step(self, loss: float) -> None:
        """One optimiser step was made."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch ended: epoch, loss, seconds, ndcg@10, hit@10, mean_kept_blocks, best."""


@dataclass(frozen=True)
class Outcome:
    """What a stage did. records: one an epoch, as in `Progress.epoch`."""

    records: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        return max(self.records, key=lambda record: record["ndcg@10"])

    @property
    def seconds(self) -> float:
        return float(sum(record["seconds"] for record in self.records))


def train_device_rec(
    data: SequenceDataset,
    method: MethodConfig,
    config: TrainingConfig,
    progress: Progress,
    checkpoint: Path | None = None,
) -> tuple[DeviceRec, Outcome]:
    """The dense network shared by all devices. See `fit` for the errors."""
    torch.manual_seed(config.seed)
    system = DeviceRec(data.num_items, method.backbone, method.dropout)
    objective = objective_of(system)
    return system, fit("DeviceRec", system, objective, data, config, progress, checkpoint)


def train_forward_ofa(
    data: SequenceDataset,
    method: MethodConfig,
    config: TrainingConfig,
    progress: Progress,
    base: DeviceRec | None = None,
    checkpoint: Path | None = None,
) -> tuple[ForwardOFA, Outcome]:
    """Forward-OFA (Eq. 12), from a trained DeviceRec if `base` is given. See `fit`."""
    torch.manual_seed(config.seed)
    system = ForwardOFA(data.num_items, method)
    if base is not None:
        start_from(system, base)

    objective = objective_of(system)
    return system, fit("Forward-OFA", system, objective, data, config, progress, checkpoint)


def objective_of(system: System) -> Objective:
    """The loss of a system: next item alone, or Eq. 12 with the cloud's retrieval beside it."""

    items = system.items
    if isinstance(system, DeviceRec):
        shared = system

        def shared_network(batch: Batch, done: float) -> Tensor:
            return next_item_loss(shared.vectors(batch), items.weight, batch.targets)

        return shared_network
    method = system.config

    def generated_networks(batch: Batch, done: float) -> Tensor:
        adaptation = system.adapt(batch)
        vectors = system.vectors(batch, adaptation)
        strength = min(1.0, done / method.compact_warmup) if method.compact_warmup else 1.0
        loss = next_item_loss(vectors, items.weight, batch.targets)
        loss = loss + method.compact_weight * strength * compact_loss(adaptation.logits)
        query = system.query(adaptation.interest)
        return loss + method.retrieval_weight * retrieval_loss(query, items.weight, batch.targets)

    return generated_networks


@torch.no_grad()
def start_from(system: ForwardOFA, base: DeviceRec) -> None:
    """Item embeddings, shared parameters and bases B_k of a trained DeviceRec."""
    system.items.weight.copy_(base.items.weight)
    shared = base.shared_parameters()
    for name, value in system.shared_parameters().items():
        value.copy_(shared[name])
    for index in range(base.backbone.config.blocks):
        values = [value.flatten() for value in base.block_parameters(index).values()]
        system.hypernetwork(index).bias.copy_(torch.cat(values))


def fit(
    stage: str,
    system: System,
    objective: Objective,
    data: SequenceDataset,
    config: TrainingConfig,
    progress: Progress,
    checkpoint: Path | None = None,
) -> Outcome:
    """Trains in place; the system ends with its best epoch's weights.

    checkpoint: a file that is written after each epoch; if it is there, training goes on
    from it. Raises TrainingError when the loss is no longer finite, CheckpointError for a
    file that is damaged or of another run, OSError when it cannot be written.
    """
    keep_memory()
    rng = np.random.default_rng(config.seed)
    optimiser = torch.optim.AdamW(
        system.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    run = run_identity(system, data, config)
    best: dict[str, Tensor] = {}
    records: list[dict[str, Any]] = []
    if checkpoint is not None and checkpoint.exists():
        best, saved = load_checkpoint(checkpoint, run, system, optimiser, rng)
        records = saved["records"]
    total = config.epochs * _steps_per_epoch(data, config)
    progress.begin(stage, total, len(records) * _steps_per_epoch(data, config))
    for epoch in range(len(records), config.epochs):
        started = time.monotonic()
        loss = _train_epoch(system, objective, optimiser, data, config, rng, epoch, progress)
        validation = evaluate(system, data, "validation")
        record = {
            "epoch": epoch + 1,
            "loss": loss,
            "seconds": time.monotonic() - started,
            "ndcg@10": validation.ndcg,
            "hit@10": validation.hit,
            "mean_kept_blocks": float(validation.kept.mean()),
        }
        record["best"] = all(record["ndcg@10"] > earlier["ndcg@10"] for earlier in records)
        if record["best"]:
            best = {name: value.clone() for name, value in system.state_dict().items()}
        records.append(record)
        if checkpoint is not None:
            saved = {"records": records}
            save_checkpoint(checkpoint, run, system, optimiser, best, rng, saved)
        progress.epoch(record)
    system.load_state_dict(best)
    system.eval()
    return Outcome(records)


def _train_epoch(
    system: System,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    data: SequenceDataset,
    config: TrainingConfig,
    rng: np.random.Generator,
    epoch: int,
    progress: Progress,
) -> float:
    system.train()
    sessions = training_sessions(data, config.targets_per_network, rng)
    steps = math.ceil(len(sessions) / config.batch_size)
    losses = []
    for index, batch in enumerate(_batches(system, data, sessions, config, rng)):
        done = (epoch + index / steps) / config.epochs
        rate = learning_rate(config, epoch * steps + index, done)
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = _step(system, objective, optimiser, batch, done, config)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in epoch {epoch + 1}: "
                f"use a lower --learning-rate than {config.learning_rate:g}"
            )
        losses.append(value)
        progress.step(value)
    return float(np.mean(losses))


def _batches(
    system: System,
    data: SequenceDataset,
    sessions: Sessions,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    window = system.backbone.config.history
    return batches(data, sessions, config.batch_size, system.extractor_history, window, rng)


def _step(
    system: System,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    done: float,
    config: TrainingConfig,
) -> float:
    """One optimiser step; nothing is changed if the loss is not finite. Returns the loss."""
    loss = objective(batch, done)
    value = loss.item()
    if math.isfinite(value):
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(system.parameters(), config.clip_norm)
        optimiser.step()
    return value


def fit_seconds(system: System, data: SequenceDataset, config: TrainingConfig) -> float:
    """About how long `fit` will take, from a few steps. `system` is spoilt by it."""
    keep_memory()
    system.train()
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(system.parameters(), lr=config.learning_rate, fused=True)
    sessions = training_sessions(data, config.targets_per_network, rng)
    stream = _batches(system, data, sessions, config, rng)
    warm, timed = 2, 6
    for index, batch in enumerate(itertools.islice(stream, warm + timed)):
        if index == warm:
            started = time.monotonic()
        _step(system, objective_of(system), optimiser, batch, 0.5, config)
    if index < warm:
        return 0.0
    a_step = (time.monotonic() - started) / (index + 1 - warm)
    return a_step * _steps_per_epoch(data, config) * config.epochs


def learning_rate(config: TrainingConfig, step: int, done: float) -> float:
    """Linear warm-up, constant, then linear to a twentieth."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if done <= config.decay_from or config.decay_from == 1:
        return config.learning_rate * warm
    left = (1 - done) / (1 - config.decay_from)
    return config.learning_rate * warm * max(0.05, left)


def _steps_per_epoch(data: SequenceDataset, config: TrainingConfig) -> int:
    """About: where sessions are cut is drawn anew each epoch."""
    sessions = training_sessions(data, config.targets_per_network, np.random.default_rng(0))
    return math.ceil(len(sessions) / config.batch_size)


def run_identity(system: System, data: SequenceDataset, config: TrainingConfig) -> str:
    """Equal for two runs exactly if one may go on from the other's checkpoint."""
    settings = asdict(system.config) if isinstance(system, ForwardOFA) else repr(system)
    text = json.dumps([data.fingerprint(), asdict(config), settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def keep_memory() -> None:
    """Tells glibc to keep large buffers instead of giving them back after each use.

    A step allocates and frees hundreds of megabytes of generated parameters; fresh pages from
    the kernel each time made a step a quarter slower. Elsewhere than on glibc: nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
