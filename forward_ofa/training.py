"""Training: one loop for every task, the same protocol for all of them.

A run is fixed by its configuration and seed. After each epoch the validation
split is evaluated (full ranking, NDCG@10) and the best epoch's weights are kept.
The test split is not looked at here.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from forward_ofa.checkpoint import load_checkpoint, save_checkpoint
from forward_ofa.config import TrainingConfig
from forward_ofa.distributed import (
    agreed,
    average,
    is_main,
    lost_a_rank,
    own_rows,
    reseed,
    with_gradients_averaged,
)
from forward_ofa.tasks import Example, Task

Loss = Callable[[Any, float], Tensor]
"""A batch and the share of training that is behind -> the objective."""


class TrainingError(Exception):
    """Training cannot go on; the message says what to do."""


class Progress(Protocol):
    """Who wants to watch."""

    def begin(self, stage: str, steps: int, done: int) -> None:
        """A stage of `steps` steps, `done` of them already made by an earlier run."""

    def step(self, loss: float) -> None:
        """One optimiser step was made."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch ended: epoch, seconds, the task's validation figures, best, and the mean loss
        if it had steps."""


@dataclass(frozen=True)
class Outcome:
    """What a stage did. records: one an epoch, as in `Progress.epoch`."""

    records: list[dict[str, Any]]


def fit(
    task: Task[Example], progress: Progress, checkpoint: Path | None = None, device: str = "cpu"
) -> Outcome:
    """Trains the task's system in place; it ends with its best epoch's weights.

    checkpoint: a file that is written after each epoch; if it is there, training goes on
    from it. device: where, as torch names it; the system stays there. Raises TrainingError
    when loss or gradient is no longer finite, CheckpointError for a file that is damaged or of
    another run, OSError when it cannot be written.
    """
    keep_memory()
    system, config = task.system.to(device), task.config
    rng = np.random.default_rng(config.seed)
    optimiser = make_optimiser(task)
    loss_of = with_gradients_averaged(system, task.loss)
    best: dict[str, Tensor] = {}
    records: list[dict[str, Any]] = []
    run = run_identity(task)
    if checkpoint is not None and checkpoint.exists():
        best, saved = load_checkpoint(checkpoint, run, system, optimiser, rng)
        records = saved["records"]
    steps, _ = task.epoch(np.random.default_rng(0))
    progress.begin(task.name, config.epochs * steps, len(records) * steps)
    for epoch in range(len(records), config.epochs):
        started = time.monotonic()
        reseed(config.seed, epoch)
        try:
            loss = _train_epoch(task, loss_of, optimiser, rng, epoch, progress)
            figures = agreed(task.validate())
        except RuntimeError as error:
            if not lost_a_rank(error):
                raise
            raise TrainingError(
                "another process of this training ended; what it said comes first. "
                "Start them all again with --resume"
            ) from error
        record: dict[str, Any] = {"epoch": epoch + 1, **figures}
        if loss is not None:
            record["loss"] = loss
        record["seconds"] = time.monotonic() - started
        record["best"] = all(record["ndcg@10"] > earlier["ndcg@10"] for earlier in records)
        if record["best"]:
            best = {name: value.clone() for name, value in system.state_dict().items()}
        records.append(record)
        if checkpoint is not None and is_main():
            saved = {"records": records}
            save_checkpoint(checkpoint, run, system, optimiser, best, rng, saved)
        progress.epoch(record)
    system.load_state_dict(best)
    system.eval()
    return Outcome(records)


def _train_epoch(
    task: Task[Example],
    loss_of: Loss,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    epoch: int,
    progress: Progress,
) -> float | None:
    """Its mean loss; None for an epoch that has no steps."""
    task.system.train()
    device = next(task.system.parameters()).device
    steps, stream = task.epoch(rng)
    losses, norms = [], torch.zeros((), device=device)
    for index, batch in enumerate(stream):
        done = (epoch + index / steps) / task.config.epochs
        rate = learning_rate(task.config, epoch * steps + index, done)
        for group in optimiser.param_groups:
            group["lr"] = rate
        value, norm = _step(task, loss_of, optimiser, own_rows(batch).to(device), done)
        _require_finite("loss", value, task.config, epoch)
        if not norm.is_cuda:
            _require_finite("gradient's norm", norm.item(), task.config, epoch)
        norms += norm
        losses.append(value)
        progress.step(value)
    # A GPU is asked once for all steps, which their sum tells; the next loss often tells before.
    _require_finite("gradient's norm", norms.item(), task.config, epoch)
    return float(np.mean(losses)) if losses else None


def _require_finite(what: str, value: float, config: TrainingConfig, epoch: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} became {value} in epoch {epoch + 1}: "
            f"use a lower --learning-rate than {config.learning_rate:g}"
        )


def _step(
    task: Task[Example],
    loss_of: Loss,
    optimiser: torch.optim.Optimizer,
    batch: Example,
    done: float,
) -> tuple[float, Tensor]:
    """One optimiser step. Returns the loss, and the gradient's norm as `update` does; nothing is
    changed if the loss is not finite, and the norm is 0 then."""
    loss = loss_of(batch, done)
    value = average(loss.item())
    if not math.isfinite(value):
        return value, torch.zeros(())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return value, update(task, optimiser)


def update(task: Task[Any], optimiser: torch.optim.Optimizer) -> Tensor:
    """Clips the gradients that are there and takes a step with them. Returns their norm before, on
    their device; on the CPU no step is taken with one that is not finite."""
    parameters = [p for p in task.system.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # To ask a GPU would cost more than to multiply.
    if not norm.is_cuda and not math.isfinite(norm.item()):
        return norm
    # The factor is 1 most of the time, and millions of gradients are not multiplied by it then.
    if norm.is_cuda or norm > task.config.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, task.config.clip_norm, norm)
    optimiser.step()
    return norm


def fit_seconds(task: Task[Example], device: str = "cpu") -> float:
    """About how long `fit` will take, from a few steps. The task's system is spoilt by it.

    The median step counts: the first ones, and those that another program disturbs, are slow.
    """
    keep_memory()
    task.system.to(device).train()
    optimiser = make_optimiser(task)
    steps, stream = task.epoch(np.random.default_rng(0))
    times = []
    for batch in itertools.islice(stream, 9):
        started = time.monotonic()
        _step(task, task.loss, optimiser, own_rows(batch).to(device), 0.5)
        times.append(time.monotonic() - started)
    return statistics.median(times) * steps * task.config.epochs if times else 0.0


def learning_rate(config: TrainingConfig, step: int, done: float) -> float:
    """Linear warm-up, constant, then linear to a twentieth."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if done <= config.decay_from or config.decay_from == 1:
        return config.learning_rate * warm
    left = (1 - done) / (1 - config.decay_from)
    return config.learning_rate * warm * max(0.05, left)


def run_identity(task: Task[Example]) -> str:
    """Equal for two runs exactly if one may go on from the other's checkpoint."""
    parts = [task.data.fingerprint(), dataclasses.asdict(task.config), task.settings()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make_optimiser(task: Task[Any]) -> torch.optim.Optimizer:
    """AdamW with the task's settings."""
    config = task.config
    return torch.optim.AdamW(
        task.system.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )


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
